# Runs as the first process of one lab host, in its own network, mount and UTS namespaces, and
# then stays there to hold them. Arguments: host name, the host's directory, the lab's directory.
set -eu
name=$1 dir=$2 lab=$3

hostname "$name"
mount -t sysfs sysfs /sys

# IPv6 addresses are usable at once: nobody else is on these links.
if [ -d /proc/sys/net/ipv6/conf ]; then
    for scope in all default; do
        echo 0 > /proc/sys/net/ipv6/conf/$scope/disable_ipv6
        echo 0 > /proc/sys/net/ipv6/conf/$scope/accept_dad
    done
fi
ip link add "$BRIDGE" address "$BRIDGE_MAC" type bridge stp_state 0 forward_delay 0 mcast_snooping 0
ip address add "$BRIDGE_ADDRESS/16" dev "$BRIDGE"
ip -6 address add "$BRIDGE_ADDRESS_V6/64" dev "$BRIDGE" nodad 2>/dev/null || true
ip link set "$BRIDGE" up

# A host's own files. /run comes last: the lab's directory lives there and must stay visible.
for pair in etc-libvirt:/etc/libvirt var-lib-libvirt:/var/lib/libvirt \
    var-log-libvirt:/var/log/libvirt var-cache-libvirt:/var/cache/libvirt \
    hosts:/etc/hosts hostname:/etc/hostname machine-id:/etc/machine-id \
    boot-id:/proc/sys/kernel/random/boot_id dmidecode:/usr/sbin/dmidecode; do
    [ -e "${pair#*:}" ] && mount --bind "$dir/${pair%%:*}" "${pair#*:}"
done
# The real machine's own SMBIOS, where it has one, is none of this host's business.
for path in /sys/class/dmi/id /sys/firmware/dmi; do
    [ -e "$path/." ] && mount -t tmpfs -o ro,size=4k tmpfs "$path"
done
mount --bind "$lab" "$dir/run/vm-enabler-lab"
mount --rbind "$dir/run" /run
: > "$dir/up"
exec sleep infinity
