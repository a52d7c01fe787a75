#!/bin/sh
# Make the nodes' certificates, and the CA that signs for them and nobody else. Needs openssl.
#
#   certificates.sh DIRECTORY NODE[,NAME-OR-ADDRESS…] …
#   certificates.sh tls nats-1,nats-1.example.com,10.0.0.1 nats-2,nats-2.example.com,10.0.0.2 …
#
# Leaves in DIRECTORY ca.pem and ca.key, and for each node NODE.pem and NODE.key. A CA that is there
# is used again: run it with the nodes whose certificates are to be renewed.
set -eu
umask 077
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 64; }
directory=$1
shift
mkdir -p "$directory"
cd "$directory"

if [ ! -e ca.pem ]; then
    openssl ecparam -name prime256v1 -genkey -noout -out ca.key
    openssl req -x509 -new -key ca.key -days 3650 -out ca.pem -subj "/CN=vm-enabler fleet nodes" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign"
fi
for given; do
    node=${given%%,*}
    names=$(printf '%s\n' "$given" | tr ',' '\n' | sort -u |
        sed -E 's/^(([0-9]+\.){3}[0-9]+|.*:.*)$/IP:\1/; t; s/^/DNS:/' | paste -sd , -)
    openssl ecparam -name prime256v1 -genkey -noout -out "$node.key"
    printf '%s\n' "subjectAltName=$names" "extendedKeyUsage=serverAuth,clientAuth" \
        "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" >"$node.ext"
    openssl req -new -key "$node.key" -subj "/CN=$node" |
        openssl x509 -req -CA ca.pem -CAkey ca.key -days 825 -sha256 -extfile "$node.ext" \
            -set_serial "0x$(openssl rand -hex 16 | sed 's/^./1/')" -out "$node.pem" 2>/dev/null
    rm "$node.ext"
done
