"""The chain of custody, from the hosts that write it (`enabler.history`) to the auditor who reads
it (`guest_client.verify.history`): any change of it is found.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enabler import history
from enabler.documents import timestamp
from enabler.events import ArrivedBy, Carried, Stay
from enabler.history import MOST, Archive
from enabler.keys import Keys
from guest_client.cli import main
from guest_client.verify.history import read_history
from guest_client.verify.keyring import Keyring
from guest_client.verify.refusal import Refusal

VM = "11111111-0000-4000-8000-000000000001"
OTHER_VM = "22222222-0000-4000-8000-000000000002"
T0 = datetime(2026, 11, 23, tzinfo=UTC)


class Host:
    """A host with a key and an archive of its own."""

    def __init__(self, name: str) -> None:
        self.keys = Keys(Path(tempfile.mkdtemp(prefix="vm-enabler-keys-")) / "keys")
        self.component_id = "sha256:" + name * 64
        machine = {"manufacturer": "Acme", "type": None, "model": "Rack", "serial_number": name}
        self.archive = Archive(self.component_id, machine, self.keys.sign)


HOSTS = [Host(name) for name in "abc"]
RING = Keyring([key for host in HOSTS for key in host.keys.public()])


@dataclass
class Travel:
    """A VM that goes from host to host, and what it carries."""

    carried: Carried = field(default_factory=Carried)
    host: Host = HOSTS[0]
    stay: Stay = field(default_factory=lambda: Stay("", T0, ArrivedBy.START))
    now: datetime = T0
    count: int = 0

    def arrive(self, host: Host, by: ArrivedBy = ArrivedBy.MIGRATION, vm_uuid: str = VM) -> None:
        self.now += timedelta(hours=1)
        self.host, self.stay = host, Stay(f"stay-{self.count}", self.now, by)
        self.count += 1
        self.carried = host.archive.arrival(self.seen(vm_uuid), vm_uuid, self.stay, self.now)

    def seen(self, vm_uuid: str = VM) -> Carried:
        """What the next host finds: through XML, as it travels."""
        if not self.carried.entries:
            return self.carried
        return history.read(domain(history.element(self.carried)), vm_uuid)

    def document(self) -> dict[str, Any]:
        carried = self.carried
        return {
            "vm_uuid": VM,
            "checkpoint": carried.checkpoint,
            "entries": list(carried.entries),
            "statement": self.host.archive.statement(carried, VM, self.stay, self.now),
        }


def domain(element: str) -> Any:
    inner = element.replace("<history", f'<history xmlns="{history.NAMESPACE}"', 1)
    return fromstring(f"<domain><metadata>{inner}</metadata></domain>")


def journey(stays: int) -> Travel:
    travel = Travel()
    travel.arrive(HOSTS[0], ArrivedBy.START)
    for number in range(1, stays):
        travel.arrive(HOSTS[number % 3])
    return travel


def reasons(document: dict[str, Any], ring: Keyring | None = RING) -> list[str]:
    return [finding.reason for finding in read_history(document, ring).findings]


@pytest.mark.parametrize("stays", [1, 4, MOST, MOST + 1, 3 * MOST])
def test_an_honest_chain_is_whole_bounded_and_true(stays: int) -> None:
    travel = journey(stays)
    assert travel.seen() == travel.carried
    assert travel.carried.flaw is None
    found = read_history(travel.document(), RING)
    assert found.findings == []
    assert len(found.stays) == min(stays, MOST)
    assert found.dropped == max(0, stays - MOST)
    assert found.stays[-1].until is None
    for stay, following in zip(found.stays, found.stays[1:], strict=False):
        assert (stay.until, stay.until_told_by) == (following.since, "next-arrival")
    assert found.stays[-1].since == timestamp(travel.now)
    assert len(history.element(travel.carried)) < 64 * 1024


def test_an_entry_is_written_once() -> None:
    travel = journey(3)
    assert travel.host.archive.has(travel.seen(), travel.stay)
    assert not travel.host.archive.has(travel.seen(), replace(travel.stay, id="another"))


def test_a_departure_tells_the_end_of_a_stay() -> None:
    travel = journey(2)
    until = travel.now + timedelta(minutes=5)
    archive = travel.host.archive
    travel.carried = archive.departure(travel.seen(), VM, travel.stay, until, until)
    travel.arrive(travel.host, ArrivedBy.START)
    found = read_history(travel.document(), RING)
    assert found.findings == []
    assert (found.stays[1].until, found.stays[1].until_told_by) == (timestamp(until), "departure")


def test_an_end_that_nobody_told_is_no_more_than_a_limit() -> None:
    travel = journey(2)
    travel.arrive(travel.host, ArrivedBy.RESTORE)
    stay = read_history(travel.document(), RING).stays[1]
    assert (stay.until, stay.until_told_by) == (timestamp(travel.now), "latest")


# Every change is found --------------------------------------------------------------------------


@st.composite
def tampered(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """An honest document, and the same with one change."""
    travel = JOURNEYS[draw(st.sampled_from(sorted(JOURNEYS)))]
    honest = travel.document()
    entries = list(honest["entries"])
    at = draw(st.integers(0, len(entries) - 1))
    match draw(st.sampled_from(["alter", "remove", "swap", "double", "cut", "checkpoint"])):
        case "alter":
            letter = draw(st.integers(0, len(entries[at]) - 1))
            changed = draw(st.sampled_from("AZaz09-_"))
            entries[at] = entries[at][:letter] + changed + entries[at][letter + 1 :]
        case "remove":
            del entries[at]
        case "swap":
            other = draw(st.integers(0, len(entries) - 1))
            entries[at], entries[other] = entries[other], entries[at]
        case "double":
            entries.insert(draw(st.integers(0, len(entries))), entries[at])
        case "cut":
            entries = entries[:at]
        case "checkpoint":
            return honest, honest | {"checkpoint": None if honest["checkpoint"] else entries[0]}
    return honest, honest | {"entries": entries}


JOURNEYS = {stays: journey(stays) for stays in (1, 2, 5, MOST + 7)}


@settings(max_examples=150, deadline=None)
@given(tampered())
def test_any_change_is_found(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    honest, changed = both
    assert (reasons(changed) == []) is (changed == honest)


@settings(max_examples=100, deadline=None)
@given(tampered())
def test_no_host_heals_what_was_changed_before_it(
    both: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    honest, changed = both
    travel = Travel(Carried(changed["checkpoint"], tuple(changed["entries"])), count=1000)
    travel.now = T0 + timedelta(days=30)
    travel.arrive(HOSTS[2])
    whole = reasons(travel.document()) == []
    kept = changed["entries"]
    # The one thing that no later host can know: that the end is not the end.
    end_cut_off = changed["checkpoint"] == honest["checkpoint"] and (
        kept == honest["entries"][: len(kept)]
    )
    assert not whole or end_cut_off


# Each in its own words --------------------------------------------------------------------------


def test_what_was_removed_is_told() -> None:
    travel = journey(5)
    honest = travel.document()
    for at, reason in ((0, "beginning-cut-off"), (2, "broken-link"), (4, "end-cut-off")):
        entries = [entry for number, entry in enumerate(honest["entries"]) if number != at]
        found = read_history(honest | {"entries": entries}, RING)
        assert reason in [finding.reason for finding in found.findings]
        # Of the stay before what was removed nobody can say when it ended, only by when.
        ends = [stay.until_told_by for stay in found.stays]
        assert ends.count("latest") == (reason == "broken-link")
    assert reasons(honest | {"statement": None}) == ["no-statement"]
    assert "end-cut-off" in reasons(honest | {"statement": journey(4).document()["statement"]})


def test_a_host_whose_key_is_not_known_is_named() -> None:
    stranger = Host("d")
    travel = journey(2)
    travel.arrive(stranger)
    travel.arrive(HOSTS[0])
    [finding] = read_history(travel.document(), RING).findings
    assert (finding.reason, finding.seq) == ("unknown-key", 2)
    assert stranger.keys.kid() in finding.sentence
    assert stranger.component_id in finding.sentence


def test_an_entry_forged_with_another_key_is_found() -> None:
    travel = journey(2)
    forged = Host("c")  # says that it is host c, with a key of its own
    travel.arrive(forged)
    assert "unknown-key" in reasons(travel.document())


def test_gaps_are_told() -> None:
    first_seen_late = Travel()
    first_seen_late.arrive(HOSTS[1])
    assert reasons(first_seen_late.document()) == ["unknown-before"]

    returned = journey(1)
    returned.arrive(HOSTS[0])
    assert reasons(returned.document()) == ["elsewhere"]

    cut = journey(4)
    cut.carried = Carried(None, cut.carried.entries[1:])
    cut.arrive(HOSTS[0])
    assert reasons(cut.document()) == ["begun-anew"]

    cloned = journey(3)
    cloned.arrive(HOSTS[0], ArrivedBy.START, OTHER_VM)
    document = cloned.document() | {"vm_uuid": OTHER_VM}
    document["statement"] = HOSTS[0].archive.statement(
        cloned.carried, OTHER_VM, cloned.stay, cloned.now
    )
    [finding] = read_history(document, RING).findings
    assert finding.reason == "begun-anew"
    assert "another-vm" in finding.sentence

    backwards = journey(2)
    backwards.now = T0 - timedelta(days=2)
    backwards.arrive(HOSTS[2])
    assert reasons(backwards.document()) == ["out-of-order"]

    arriving = journey(2)
    arriving.stay = replace(arriving.stay, id="another")
    assert reasons(arriving.document()) == ["present-missing"]


@pytest.mark.parametrize(
    "element",
    [
        "<history/>",
        "<history><entry>no token</entry></history>",
        "<history><entry>a.b.c</entry></history>",
        "<history><other>a.b.c</other></history>",
        "<history><checkpoint>a.b.c</checkpoint></history>",
        f"<history><entry>{'a' * 9000}.b.c</entry></history>",
        "<history>" + "<entry>a.b.c</entry>" * 5000 + "</history>",
        "<history><entry>bnVsbA.bnVsbA.bnVsbA</entry></history>",
    ],
)
def test_what_was_mangled_is_left_behind_and_said_so(element: str) -> None:
    carried = history.read(domain(element), VM)
    assert carried.flaw is not None
    made = HOSTS[0].archive.arrival(carried, VM, Stay("s", T0, ArrivedBy.START), T0)
    assert len(made.entries) == 1
    assert made.flaw is None


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_document_is_too_strange(nonsense: object) -> None:
    for document in (
        nonsense,
        {"vm_uuid": VM, "entries": nonsense},
        {"vm_uuid": VM, "entries": [nonsense], "checkpoint": nonsense, "statement": nonsense},
    ):
        for ring in (None, RING):
            try:
                found = read_history(document, ring)
            except Refusal:
                continue
            assert found.findings


# The command ------------------------------------------------------------------------------------


def test_history_is_shown_and_verified_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, keys = tmp_path / "history.json", tmp_path / "keys.json"
    travel = journey(MOST + 2)
    document.write_text(json.dumps(travel.document()))
    keys.write_text(json.dumps({"keys": [key for host in HOSTS for key in host.keys.public()]}))
    assert main(["history", str(document)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["HOST", "FROM", "UNTIL", "ARRIVED", "BY"]
    assert lines[1] == "(2 older entries, dropped)"
    assert lines[-1].split() == ["Acme", "Rack", "a", timestamp(travel.now), "-", "migration"]
    verify = ["history", str(document), "--verify", "--jwks", str(keys)]
    assert main(verify) == 0
    assert capsys.readouterr().out.endswith(f"verified: {MOST} stays, without a gap\n")
    cut = travel.document()
    del cut["entries"][5]
    document.write_text(json.dumps(cut))
    assert main(verify) == 1
    assert "broken-link" in capsys.readouterr().out
    assert main([*verify, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["whole"], found["findings"][0]["reason"]) == (False, "broken-link")
    assert main(["history", str(document), "--verify"]) == 64
    assert main(["history", str(document), "--jwks", str(keys)]) == 64
    assert main(["history", str(keys)]) == 1
