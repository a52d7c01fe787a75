"""``enabler doctor``: each thing that must be right on a host, what was found, and how to mend it.

A broken host is what this is for: whatever is wrong becomes a `Check`, never an error. Nothing on
the host is changed; listening addresses are tried for an instant.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from enabler.checks import Check, Status
from enabler.checks import callers as callers_checks
from enabler.checks import hypervisor as hypervisor_checks
from enabler.checks import listeners as listener_checks
from enabler.checks import machine as machine_checks
from enabler.checks import network as network_checks
from enabler.errors import ConfigurationError, EnablerError
from enabler.identity import Claim
from enabler.keys import Keys
from enabler.listen import Address, HttpAddress, UnixAddress, VsockAddress, parse
from enabler.platforms import read_claims, read_cpuinfo
from enabler.runs import Runs

LIBVIRT_WITHIN = 20.0
"""Seconds that libvirt has to answer; its QEMU driver looks at every emulator on its first day."""

_MARK = {Status.OK: "ok  ", Status.WARN: "WARN", Status.FAIL: "FAIL"}
_WIDTH = 100


def run_checks(
    libvirt_uri: str,
    listen: Sequence[str],
    machine: Mapping[str, str | None],
    keys: Keys,
    callers: Sequence[str] = ("vsock", "token", "address"),
    *,
    metrics: HttpAddress | None = None,
    root: Path = Path("/"),
    within: float = LIBVIRT_WITHIN,
) -> list[Check]:
    """Look at everything, in the order in which an administrator would mend it.

    Args:
        libvirt_uri: where to find the hypervisor.
        listen: the addresses to listen on, as in the configuration.
        machine: the configured machine identity, by the names of `enabler.identity.FIELDS`.
        keys: the signing key's place.
        callers: the ways by which callers are known, as in the configuration.
        metrics: the listener for Prometheus, if there is to be one.
        root: where this machine's file systems are seen.
        within: seconds that libvirt has to answer.
    """
    checks = [
        machine_checks.check_python(),
        machine_checks.check_user(),
        machine_checks.check_package("libvirt-python", purpose="no way to ask libvirt"),
    ]
    found = _ask_libvirt(libvirt_uri, root, within, checks)
    claims = read_claims(
        found.sysinfo if found else None,
        found.sysinfo_error if found else "libvirt can't be asked",
        root=root,
    )
    checks += _check_identity(claims, machine, asked=found is not None)
    if found:
        checks.append(
            machine_checks.check_capacity(
                found.capabilities, found.node_info, found.sysinfo, read_cpuinfo(root)
            )
        )
        checks.append(hypervisor_checks.check_runs(found, lambda: Runs.of_uri(libvirt_uri)))
    checks.append(machine_checks.check_key(keys))
    addresses, broken = _addresses(listen)
    checks += [*_check_network(addresses, found.vms if found else None), *broken]
    if metrics is not None:
        checks.append(listener_checks.check_metrics(metrics))
    checks.append(callers_checks.check_ways(callers, addresses))
    if found:
        checks += callers_checks.check_vsock(addresses, found.vms, root)
        checks.append(callers_checks.check_tokens([*found.vms, *found.resting]))
        checks.append(hypervisor_checks.check_generation_ids(found.vms, found.driver))
    checks.append(machine_checks.check_clock(machine_checks.clock_is_synchronised()))
    return checks


def exit_code(checks: Sequence[Check]) -> int:
    """0 if nothing fails (warnings are no failure), else 1."""
    return int(any(check.status is Status.FAIL for check in checks))


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks for a program. ``status`` is the worst; ``remedy`` is null if there is none."""
    statuses = {check.status for check in checks}
    worst = next((status for status in (Status.FAIL, Status.WARN) if status in statuses), Status.OK)
    return {
        "status": worst.value,
        "checks": [
            {
                "name": check.name,
                "status": check.status.value,
                "found": check.found,
                "remedy": check.remedy,
            }
            for check in checks
        ],
    }


def render_text(checks: Sequence[Check]) -> str:
    """The checks for a person: a line or two each, the remedy beneath, the sum at the end."""
    column = max((len(check.name) for check in checks), default=0)
    lines: list[str] = []
    for check in checks:
        head = f"{_MARK[check.status]}  {check.name.ljust(column)}  "
        lines += _wrap(check.found, head, " " * (column + 8))
        if check.remedy:
            lines += _wrap(check.remedy, " " * (column + 8) + "→ ", " " * (column + 10))
    lines += ["", _sum(checks)]
    return "\n".join(lines)


def _ask_libvirt(
    uri: str, root: Path, within: float, checks: list[Check]
) -> hypervisor_checks.Libvirt | None:
    try:
        found = hypervisor_checks.ask(uri, within)
    except EnablerError as error:
        checks.append(hypervisor_checks.check_failed(error, machine_checks.libvirt_unit(root)))
        return None
    checks += hypervisor_checks.check_driver(uri, found)
    sbin = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    checks += hypervisor_checks.check_dnsmasq(found, shutil.which("dnsmasq", path=sbin))
    return found


def _check_identity(
    claims: Sequence[Claim], configured: Mapping[str, str | None], *, asked: bool
) -> list[Check]:
    checks, identified = machine_checks.check_identity(claims, configured)
    if identified:
        checks.append(machine_checks.check_real(identified.machine))
    elif not asked:
        first = "first mend libvirt (above); if that does not help, "
        checks = [replace(check, remedy=f"{first}{check.remedy}") for check in checks]
    if not asked:
        return checks
    dmidecode = machine_checks.has_dmidecode()
    return [machine_checks.check_smbios(claims, identified, dmidecode=dmidecode), *checks]


def _addresses(listen: Sequence[str]) -> tuple[list[Address], list[Check]]:
    addresses: list[Address] = []
    broken: list[Check] = []
    for text in listen:
        try:
            addresses.append(parse(text))
        except ConfigurationError as error:
            broken.append(Check.failed("listen", error))
    return addresses, broken


def _check_network(
    addresses: Sequence[Address], vms: Sequence[hypervisor_checks.Vm] | None
) -> list[Check]:
    guests = [address for address in addresses if isinstance(address, HttpAddress)]
    table, network = network_checks.check_network()
    checks = [table]
    name = network_checks.bridge_of(network, guests) if network else None
    if network and name:
        checks.append(network_checks.check_bridge(network, name, guests))
    for address in addresses:
        match address:
            case HttpAddress():
                checks.append(listener_checks.check_http(address))
            case UnixAddress():
                checks.append(listener_checks.check_unix(address))
            case VsockAddress():
                checks.append(listener_checks.check_vsock(address))
    if network and name and vms is not None:
        link = network.link(name)
        ports = network.ports(link) if link else frozenset()
        checks += [
            hypervisor_checks.check_bridge_members(vms, name, ports),
            hypervisor_checks.check_spoofing(vms, name, ports),
            hypervisor_checks.check_macs(vms, link.mac if link else None),
        ]
    return checks


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sum(checks: Sequence[Check]) -> str:
    failed = sum(check.status is Status.FAIL for check in checks)
    warned = sum(check.status is Status.WARN for check in checks)
    if not failed and not warned:
        return f"{len(checks)} of {len(checks)} checks are ok."
    parts = [
        f"{count} {what}" for count, what in ((failed, "failed"), (warned, "to look at")) if count
    ]
    return f"Of {len(checks)} checks {' and '.join(parts)}."
