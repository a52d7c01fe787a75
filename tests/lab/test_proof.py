"""What can be proven to somebody outside: a scan by its attestations, a VM's way by its history.

Three real hosts with a key each. The auditor is this process, with nothing but the hosts' public
keys and the files that came out of the guest.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import libvirt
import pytest

from enabler.history import NAMESPACE
from guest_client.attest import payload
from guest_client.cli import main
from tests.lab.events import arrivals
from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.scans import scan
from tests.unit.guest.hosts import SigningHost, by_hmac, by_none

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("no_lab")]

NONCE = "audit-2026-11-db01-0001"


@pytest.fixture(scope="module")
def three_hosts(no_lab: None) -> Iterator[Lab]:
    with Lab(hosts=3, guests=1) as lab:
        yield lab


@dataclass
class Audit:
    """The auditor's folder."""

    lab: Lab
    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def guest(self) -> Guest:
        return self.lab.guests[0]

    def keys(self, *hosts: Host) -> list[str]:
        files = []
        for host in hosts:
            command = ("enabler", "keys", "export", "--config", str(host.enabler_config))
            files.append(self.write(f"{host.name}.jwks", host.run(*command).stdout))
        return files

    def write(self, name: str, content: str | bytes | dict[str, Any]) -> str:
        path = self.folder / name
        if isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def run(self, *command: str) -> tuple[int, str]:
        self.capsys.readouterr()
        code = main(command)
        return code, self.capsys.readouterr().out

    def reason(self, *command: str) -> str:
        code, said = self.run(*command, "--json")
        assert code == 1, said
        reason: str = json.loads(said)["reason"]
        return reason


@pytest.fixture
def audit(three_hosts: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Audit:
    three_hosts.settle()
    return Audit(three_hosts, tmp_path, capsys)


# Where a VM has been -----------------------------------------------------------------------------


def entries_kept(guest: Guest) -> int:
    """How many entries are in the live domain's metadata, with which it travels."""
    try:
        found: str = guest.domain.metadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE
        )
    except libvirt.libvirtError:
        return 0
    return found.count("<entry>")


def test_history_after_a_to_b_to_a_to_c(audit: Audit) -> None:
    a, b, c = audit.lab.hosts
    guest = audit.guest
    assert wait_until(lambda: entries_kept(guest) > 0, 20)
    already, moved_already = entries_kept(guest), len(arrivals(audit.lab.events(guest), guest.name))
    for number, host in enumerate((b, a, c), 1):
        audit.lab.migrate(guest, host)
        # A stay is told by its host as soon as libvirt lets it: once the migration is over.
        assert wait_until(lambda count=already + number: entries_kept(guest) == count, 20)
    document = json.loads(guest.run(["guest-client", "history", "--json"]).stdout)
    shown = guest.run(["guest-client", "history"]).stdout

    file = audit.write("history.json", document)
    verify = ("history", file, "--verify", "--jwks", *audit.keys(a, b, c))
    code, said = audit.run(*verify)
    assert code == 0, said
    assert "without a gap" in said
    found = json.loads(audit.run(*verify, "--json")[1])
    stays = found["stays"][-4:]
    serials = [host.machine.serial for host in (a, b, a, c) if host.machine]
    assert [stay["machine"]["serial_number"] for stay in stays] == serials
    assert [line.split()[2] for line in shown.splitlines()[-4:]] == serials
    assert [stay["arrived_by"] for stay in stays[1:]] == ["migration"] * 3

    # True times: libvirt's own log has them, written by a program that knows nothing of ours.
    moves = arrivals(audit.lab.events(guest), guest.name)[moved_already:]
    assert [move.host for move in moves] == [b.name, a.name, c.name]
    for stay, following, move in zip(stays, stays[1:], moves, strict=False):
        assert stay["until"] == following["from"]
        assert abs(time_of(following["from"]) - move.time) < timedelta(seconds=1)
    assert stays[-1]["until"] is None

    code, said = audit.run("history", file, "--verify", "--jwks", *audit.keys(a, b))
    assert code == 1
    assert "unknown-key" in said
    for reason, cheat in HISTORY_CHEATS.items():
        audit.write("history.json", cheat(copy.deepcopy(document)))
        reasons = [
            each["reason"] for each in json.loads(audit.run(*verify, "--json")[1])["findings"]
        ]
        assert reason in reasons


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _removed(document: dict[str, Any]) -> dict[str, Any]:
    del document["entries"][-2]
    return document


def _end_removed(document: dict[str, Any]) -> dict[str, Any]:
    del document["entries"][-1]
    return document


def _beginning_removed(document: dict[str, Any]) -> dict[str, Any]:
    del document["entries"][0]
    return document


def _altered(document: dict[str, Any]) -> dict[str, Any]:
    head, _, signature = document["entries"][-2].split(".")
    _, other, _ = document["entries"][-3].split(".")
    document["entries"][-2] = f"{head}.{other}.{signature}"
    return document


HISTORY_CHEATS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "broken-link": _removed,
    "end-cut-off": _end_removed,
    "beginning-cut-off": _beginning_removed,
    "bad-signature": _altered,
}


# A scan ------------------------------------------------------------------------------------------


def test_an_attested_scan_is_proven_and_each_cheat_refused(audit: Audit) -> None:
    a, b, _ = audit.lab.hosts
    assert a.machine is not None
    scanned = scan(audit.guest, "--attest", "--attest-nonce", NONCE)
    assert scanned.code == 0, scanned.done.stderr
    assert scanned.output is not None
    report, output = scanned.report, scanned.output
    vm = report["after"]["identity"]["vm"]["uuid"]
    audit.lab.migrate(audit.guest, b)
    on_b = scan(audit.guest, "--attest", "--attest-nonce", NONCE).report

    files = (audit.write("report.json", report), "--output", audit.write("output", output))
    keys = audit.keys(a, b)
    strict = ("verify", *files, "--nonce", NONCE, "--vm", vm, "--max-age", "1d", "--jwks", *keys)
    code, said = audit.run(*strict)
    assert code == 0, said
    assert said.startswith(f"proven: the VM {audit.guest.name} ({vm}) lived on")
    assert a.machine.serial in said
    found = json.loads(audit.run(*strict, "--json")[1])
    assert found["output"]["compared"] is True
    assert found["from"] <= found["until"]

    claims = payload(report["after"]["attestation"])
    stranger, forger = SigningHost(), SigningHost()
    forger.kid = stranger.kid = json.loads(Path(keys[0]).read_text())["keys"][0]["kid"]
    cheats = {
        "attestation-stripped": attested(report, "after", None),
        "mixed-pair": attested(report, "before", on_b["before"]["attestation"]),
        "algorithm-refused": attested(report, "after", by_none(claims, forger.kid)),
        "bad-signature": attested(report, "after", forger.attest(claims["identity"], {})),
        "host-swapped": edited(report, "identity", on_b["after"]["identity"]),
    }
    for reason, cheat in cheats.items():
        audit.write("report.json", cheat)
        assert audit.reason(*strict) == reason
    audit.write("report.json", attested(report, "after", by_hmac(claims, stranger)))
    assert audit.reason(*strict) == "algorithm-refused"

    audit.write("report.json", report)
    other_vm = "22222222-0000-4000-8000-000000000002"
    later = (datetime.now(UTC) + timedelta(days=800)).isoformat()
    beyond: dict[str, tuple[str, ...]] = {
        "replayed": (*strict, "--nonce", "audit-2027-11-db01-0001"),
        "another-vm": (*strict, "--vm", other_vm),
        "expired": (*strict, "--at", later),
        "unknown-key": ("verify", *files, "--jwks", keys[1]),
    }
    for reason, command in beyond.items():
        assert audit.reason(*command) == reason
    audit.write("output", output.replace(b"{", b"{ ", 1))
    assert audit.reason(*strict) == "output-edited"


def edited(report: dict[str, Any], member: str, value: object) -> dict[str, Any]:
    """The report with another ``member`` in both of its reads."""
    made = copy.deepcopy(report)
    for place in (made, made["attempts"][-1]):
        for read in ("before", "after"):
            place[read][member] = value
    return made


def attested(report: dict[str, Any], read: str, token: str | None) -> dict[str, Any]:
    """The report with another attestation."""
    made = copy.deepcopy(report)
    for place in (made, made["attempts"][-1]):
        place[read]["attestation"] = token
    return made
