"""``enabler enroll`` and ``enabler revoke``: a token for a VM, its hash in the domain's metadata,
and the token into the guest.

Both speak to libvirt by themselves; the running service learns of it by libvirt's event. The hash
goes into the live domain, with which it migrates, and into the persistent one, so that it is there
after a power-off.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import libvirt
import libvirt_qemu

from enabler import domains, tokens
from enabler.errors import EnrolmentError
from enabler.libvirt_host import connected, find_vm

GUEST_FILE = "/etc/guest-client/token"
"""Where the guest client looks for its token."""

_AGENT_WITHIN = 5
"""Seconds that the guest agent has for one answer."""

_WRITTEN_WITHIN = 15.0
"""Seconds that the guest has to write the file."""

# By standard input, for a command line is everybody's to read; into its place in one rename.
_INSTALL = f"""\
set -eu
umask 022
mkdir -p {GUEST_FILE.rpartition("/")[0]}
umask 077
rm -f {GUEST_FILE}.new
cat >{GUEST_FILE}.new
sync {GUEST_FILE}.new 2>/dev/null || :
mv -f {GUEST_FILE}.new {GUEST_FILE}
"""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A VM that was given a token."""

    name: str
    vm_uuid: str
    token: str = field(repr=False)
    not_handed_over: str | None
    """Why the guest does not have the token yet; None if it has."""


def enroll(uri: str, vm: str, *, hand_over: bool = True) -> Enrolment:
    """Make a new token for a VM of the libvirt at ``uri``; the one before is void from now on.

    ``vm`` is a name or a UUID. With ``hand_over`` the guest agent is asked to keep the token as
    `GUEST_FILE`, for root alone. Raises `EnrolmentError`, `NoSuchVm`, `HypervisorError`.
    """
    token = tokens.make()
    with _domain(uri, vm) as domain:
        _keep(domain, domains.token_record(tokens.sha256_of(token)))
        why_not: str | None = "as was asked for"
        if hand_over:
            why_not = _hand_over(domain, token)
        return Enrolment(domain.name(), domain.UUIDString(), token, why_not)


def revoke(uri: str, vm: str) -> str:
    """Make a VM's token void, if it has one; return the VM's name.

    Raises `EnrolmentError`, `NoSuchVm`, `HypervisorError`.
    """
    with _domain(uri, vm) as domain:
        _keep(domain, None)
        return str(domain.name())


@contextmanager
def _domain(uri: str, vm: str) -> Iterator[libvirt.virDomain]:
    with connected(uri) as connection:
        yield find_vm(connection, vm)


def _keep(domain: libvirt.virDomain, record: str | None) -> None:
    flags = 0
    if domain.isActive():
        flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
    if domain.isPersistent():
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    try:
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            record,
            domains.PREFIX,
            domains.TOKEN_NAMESPACE,
            flags,
        )
    except libvirt.libvirtError as error:
        message = " ".join(str(error).split())
        busy = error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT
        raise EnrolmentError(
            f"libvirt does not change the metadata of VM {domain.name()!r}: {message}; "
            + ("it is being migrated or saved: try again after that" if busy else "nothing is done")
        ) from error


def _hand_over(domain: libvirt.virDomain, token: str) -> str | None:
    """Have the guest keep its token; return why it does not, or None."""
    if not domain.isActive():
        return "the VM does not run"
    command = {
        "path": "/bin/sh",
        "arg": ["-c", _INSTALL],
        "input-data": base64.b64encode(f"{token}\n".encode()).decode(),
        "capture-output": True,
    }
    try:
        pid = _ask_agent(domain, "guest-exec", command)["pid"]
        end = time.monotonic() + _WRITTEN_WITHIN
        while not (status := _ask_agent(domain, "guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > end:
                return f"the guest did not write it within {_WRITTEN_WITHIN:g} s"
            time.sleep(0.1)
    except libvirt.libvirtError as error:
        return f"the guest agent does not do it: {' '.join(str(error).split())}"
    except (KeyError, TypeError, ValueError):
        return "the guest agent answers what it should not"
    if status.get("exitcode") == 0:
        return None
    said = base64.b64decode(status.get("err-data", "")).decode(errors="replace")[:200]
    return f"the guest can't write {GUEST_FILE}: {' '.join(said.split()) or 'it does not say why'}"


def _ask_agent(domain: libvirt.virDomain, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    question = json.dumps({"execute": name, "arguments": arguments})
    answer = libvirt_qemu.qemuAgentCommand(domain, question, _AGENT_WITHIN, 0)
    found: dict[str, Any] = json.loads(answer)["return"]
    return found
