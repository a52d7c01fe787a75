#!/bin/sh
# QEMU as libvirt starts it, but for a guest's memory, which gets 64 KiB more.
#
# Under TCG, QEMU before 9.0 loses writes in a live migration of a memory block whose size is a
# multiple of 256 KiB: the fast path of its dirty bitmap's sync clears bits and leaves the TLB as it
# is, so that later writes to those pages go unnoticed, and the guest crashes on its new host. Any
# other size takes the slow path, which is right. Libvirt rounds memory to whole MiB, so it is done
# here.
set -eu
more=65536
previous=
for argument do
    shift
    case $previous in
        -m) argument=$((argument * 1024 + more / 1024))k ;;
        -object)
            case $argument in
                *memory-backend-ram*\"size\":*)
                    size=${argument##*\"size\":}
                    size=${size%%[!0-9]*}
                    argument="${argument%%\"size\":*}\"size\":$((size + more))${argument##*\"size\":"$size"}"
                    ;;
            esac
            ;;
    esac
    set -- "$@" "$argument"
    previous=$argument
done
exec /usr/bin/qemu-system-x86_64 "$@"
