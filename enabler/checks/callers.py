"""Checks of the ways by which callers are known: the vsock device, CIDs, tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from enabler.checks import Check
from enabler.checks.hypervisor import Vm
from enabler.listen import Address, HttpAddress, VsockAddress

_DEVICE = "dev/vhost-vsock"
_CONFIGURED = "in /etc/enabler/enabler.toml"


def check_ways(callers: Sequence[str], addresses: Sequence[Address]) -> Check:
    """That guests which the listeners serve can be known by some way."""
    name = "callers"
    order = "known by " + ", then ".join(callers)
    useless = [
        str(address)
        for address in addresses
        if (isinstance(address, VsockAddress) and not {"vsock", "token"} & set(callers))
        or (isinstance(address, HttpAddress) and not {"address", "token"} & set(callers))
    ]
    if useless:
        return Check.warn(
            name,
            f"{order}, and so nobody that asks at {', '.join(useless)}",
            f"change callers or listen {_CONFIGURED}",
        )
    return Check.ok(name, order)


def check_vsock(addresses: Sequence[Address], vms: Sequence[Vm], root: Path) -> list[Check]:
    """That vsock works, where it is listened on; which VMs have it."""
    name = "vsock"
    with_cid = [vm.name for vm in vms if vm.cid is not None]
    if not any(isinstance(address, VsockAddress) for address in addresses):
        if not with_cid:
            return [Check.ok(name, "not listened on, and no running VM has it")]
        return [
            Check.warn(
                name,
                f"{len(with_cid)} of {len(vms)} running VMs have it, and it is not listened on",
                f'add "vsock:8777" to listen {_CONFIGURED}',
            )
        ]
    if not (root / _DEVICE).exists():
        return [
            Check.fail(
                name,
                f"there is no /{_DEVICE}, so no guest's connection arrives",
                "load it, now and at each start: modprobe vhost_vsock && "
                "echo vhost_vsock > /etc/modules-load.d/vhost_vsock.conf",
            )
        ]
    without = [vm.name for vm in vms if vm.cid is None]
    checks = [Check.ok(name, f"/{_DEVICE} is there")]
    if without:
        shown = ", ".join(sorted(without)[:10]) + (" and more" if len(without) > 10 else "")
        checks.append(
            Check.ok(
                "VMs with vsock",
                f"{len(with_cid)} of {len(vms)} running VMs; known by other ways alone: {shown}",
            )
        )
    else:
        checks.append(Check.ok("VMs with vsock", f"{len(vms)} of {len(vms)} running VMs"))
    return checks


def check_tokens(vms: Sequence[Vm]) -> Check:
    """That a token stands for one VM: a copied domain XML has its original's."""
    name = "tokens"
    owners: defaultdict[str, list[str]] = defaultdict(list)
    for vm in vms:
        if vm.token_sha256 is not None:
            owners[vm.token_sha256].append(vm.name)
    shared = [", ".join(sorted(names)) for names in owners.values() if len(names) > 1]
    if not shared:
        return Check.ok(name, f"{len(owners)} of {len(vms)} VMs are enrolled")
    return Check.warn(
        name,
        f"VMs with the same token, which is refused while several of them run: {'; '.join(shared)}",
        "give each its own: enabler enroll VM",
    )
