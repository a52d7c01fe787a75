#!/usr/bin/env bash
# Install what the tests and the lab need on a fresh Debian machine, and make the virtual environment.
# Says what it installs; does nothing, quickly, where everything is there. Run by make. Arguments are
# more lists of Debian packages.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo --preserve-env=DEBIAN_FRONTEND "$@"
    fi
}

mapfile -t wanted < <(sed 's/#.*//' tests/lab/packages.txt "$@" | tr -s '[:space:]' '\n' | sed '/^$/d')
missing=()
for package in "${wanted[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [ "${status:0:2}" = ii ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get -q update >/dev/null
    # No service may start by itself: the lab runs daemons of its own, in namespaces of its own.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        trap 'as_root rm -f "$policy"' EXIT
    fi
    as_root apt-get -q install -y --no-install-recommends "${missing[@]}" >/dev/null
fi

locked=$(cat requirements/dev.txt pyproject.toml | sha256sum | cut -d ' ' -f 1)
if [ "$(cat .venv/.locked 2>/dev/null || true)" != "$locked" ]; then
    say "making the virtual environment .venv from requirements/dev.txt"
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes \
        -r requirements/dev.txt
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
    printf '%s\n' "$locked" >.venv/.locked
fi
