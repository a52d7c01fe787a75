"""A history that a VM gave out against what its hosts told: with real keys, and every cheat."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from enabler.events import ArrivedBy, Carried, Stay
from enabler.fleet import exported
from enabler.fleet.audit import Audit
from enabler.fleet.event import TYPE, Event, Mark, make
from enabler.fleet.keyring import Keyring
from enabler.history import STAY, Archive
from enabler.keys import Keys
from tests.unit.fleet.events import VM, A, B, at, component, of_host, told

OTHER = "22222222-0000-4000-8000-000000000002"
GIVEN_OUT = 10_000.0
STAYS = [(A, "a1", 100.0), (B, "b1", 2000.0), (A, "a2", 4000.0)]
"""Of the VM: on which host, its ID, since when."""

Json = dict[str, Any]


class Scene:
    """Two hosts with a key each, the VM's chain, and what the hosts told of it."""

    def __init__(self, folder: Path) -> None:
        self.keys = {host: Keys(folder / host) for host in (A, B)}
        self.stranger = Keys(folder / "stranger")
        self.chain = Carried()
        self.told: list[Event] = []
        self._numbers = dict.fromkeys(self.keys, 0)
        for host in self.keys:
            self.tell(of_host(host, "host-started", self.number(host), 0))
        for host, stay_id, since in STAYS:
            self.live(host, stay_id, since)
        for host in self.keys:
            self.tell(of_host(host, "libvirt-found", self.number(host), GIVEN_OUT + 1000))

    def archive(self, host: str) -> Archive:
        machine = {"manufacturer": "Acme", "serial_number": host[-1]}
        return Archive(component(host), machine, self.keys[host].sign)

    def live(self, host: str, stay_id: str, since: float) -> None:
        arrived_by = ArrivedBy.MIGRATION if self.told[2:] else ArrivedBy.START
        stay = Stay(stay_id, at(since), arrived_by)
        number = self.number(host)
        self.tell(told(host, "arrival", number, since, stay_id, since, arrived_by=arrived_by.value))
        self.chain = self.archive(host).arrival(self.chain, VM, stay, at(since))
        self.record(host, self.chain.entries[-1], since + 1)

    def record(self, host: str, entry: str, seconds: float) -> None:
        data = {"component_id": component(host), "entry": entry}
        mark = Mark("1", self.number(host))
        self.tell(make(host, VM, "recorded", at(seconds), mark, data))

    def tell(self, event: Event) -> None:
        signature = self.keys[event.host].sign_detached(TYPE, event.content())
        self.told.append(event.with_signature(signature))

    def number(self, host: str) -> int:
        self._numbers[host] += 1
        return self._numbers[host]

    def document(self, chain: Carried | None = None, when: float = GIVEN_OUT) -> Json:
        chain = chain or self.chain
        host, stay_id, since = STAYS[-1]
        stay = Stay(stay_id, at(since), ArrivedBy.MIGRATION)
        return {
            "vm_uuid": VM,
            "checkpoint": chain.checkpoint,
            "entries": list(chain.entries),
            "statement": self.archive(host).statement(chain, VM, stay, at(when)),
        }

    def keyring(self) -> Keyring:
        return Keyring(
            key | {"component_id": component(host)}
            for host, keys in self.keys.items()
            for key in keys.public()
        )

    def reasons(
        self, document: Json, but: Callable[[Event], bool] = lambda event: False, **more: Any
    ) -> list[str]:
        """What is found in a history, if the stream has all ``but`` some events."""
        keyring = more.get("keyring", self.keyring())
        audit = Audit(keyring, timedelta(seconds=5))
        for event in self.told:
            if not but(event):
                audit.add(event.topic, event)
        read = exported.read("h.json", json.dumps(document).encode())
        found = exported.compare(read, audit, keyring)
        assert all(each.vm == VM and each.sentence.startswith("h.json: ") for each in found)
        return [each.reason for each in found]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_history_as_it_was_told_fits(scene: Scene) -> None:
    assert scene.reasons(scene.document()) == []
    assert scene.reasons(scene.document(), keyring=None) == []


def test_a_stay_that_no_host_told_is_found(scene: Scene) -> None:
    def hidden(event: Event) -> bool:
        return event.host == B and event.vm is not None

    assert scene.reasons(scene.document(), but=hidden) == ["not-told"]
    # B published nothing then: that it has entries is known of the VM alone.
    assert scene.reasons(scene.document(), but=lambda event: event.host == B) == []


def test_what_was_told_a_moment_ago_may_be_on_its_way(scene: Scene) -> None:
    since = GIVEN_OUT + 990
    stay = Stay("a3", at(since), ArrivedBy.START)
    chain = scene.archive(A).arrival(scene.chain, VM, stay, at(since))
    assert scene.reasons(scene.document(chain)) == []


def test_what_a_vm_leaves_out_is_found(scene: Scene) -> None:
    document = scene.document()
    cut = document | {"entries": document["entries"][:-1]}
    assert scene.reasons(cut) == ["end-cut-off", "not-exported"]
    middle = document | {"entries": [document["entries"][0], document["entries"][2]]}
    assert scene.reasons(middle) == ["broken-link", "end-cut-off", "not-exported"]
    assert scene.reasons(document | {"entries": []}) == ["end-cut-off"] + 3 * ["not-exported"]
    early = Carried(None, scene.chain.entries[:1])
    # A host is made to say that an old chain is all of it: a domain that was put back.
    assert scene.reasons(scene.document(early)) == 2 * ["not-exported"]
    assert scene.reasons(scene.document(early, when=2000)) == [], "it is an old one"


def test_an_end_that_came_too_late_for_the_next_start_need_not_be_there(scene: Scene) -> None:
    host, stay_id, since = STAYS[-1]
    stay = Stay(stay_id, at(since), ArrivedBy.START)
    ended = scene.archive(host).departure(scene.chain, VM, stay, at(5000), at(5000))
    scene.record(host, ended.entries[-1], 5000)
    scene.live(host, "a3", 5001)
    assert scene.reasons(scene.document()) == []


def test_what_a_checkpoint_stands_for_need_not_be_there(scene: Scene) -> None:
    for each in range(40):
        scene.live(A, f"more-{each}", 5000 + each * 10)
    document = scene.document()
    assert len(document["entries"]) == 32
    assert scene.reasons(document) == []
    assert set(scene.reasons(document | {"checkpoint": None})) == {"not-exported"}


def replaced(entry: Callable[[Scene], str]) -> Callable[[Json, Scene], Json]:
    """The history with another first entry."""
    return lambda it, scene: it | {"entries": [entry(scene), *it["entries"][1:]]}


def of_another_vm(scene: Scene) -> str:
    stay = Stay("a2", at(4000), ArrivedBy.MIGRATION)
    return scene.archive(A).statement(scene.chain, OTHER, stay, at(GIVEN_OUT))


def entry(host: str, **more: Any) -> Json:
    return {"vm": VM, "iss": component(host), "seq": 0, "iat": int(at(100).timestamp())} | more


CHEATS: dict[str, tuple[Callable[[Json, Scene], Json], list[str]]] = {
    "no statement": (lambda it, scene: it | {"statement": None}, ["malformed"]),
    "an entry in the statement's place": (
        lambda it, scene: it | {"statement": it["entries"][0]},
        ["wrong-type"],
    ),
    "another VM's statement": (
        lambda it, scene: it | {"statement": of_another_vm(scene)},
        ["malformed"],
    ),
    "a checkpoint that is none": (lambda it, scene: it | {"checkpoint": "x"}, ["malformed"]),
    "a stranger's entry": (
        replaced(lambda scene: scene.stranger.sign(STAY, entry(A))),
        ["unknown-key", "not-exported"],
    ),
    "one host's for another": (
        replaced(lambda scene: scene.keys[A].sign(STAY, entry(B))),
        ["wrong-issuer", "not-exported"],
    ),
    "another VM's entry": (
        replaced(lambda scene: scene.keys[A].sign(STAY, entry(A, vm=OTHER))),
        ["malformed", "not-exported"],
    ),
    "a host that lies of the past": (
        replaced(lambda scene: scene.keys[A].sign(STAY, entry(A))),
        ["not-told", "broken-link", "not-exported"],
    ),
    "no number": (
        replaced(lambda scene: scene.keys[A].sign(STAY, entry(A, seq=None))),
        ["malformed", "not-exported"],
    ),
    "no time": (
        replaced(lambda scene: scene.keys[A].sign(STAY, entry(A, iat=10**20))),
        ["malformed", "not-exported"],
    ),
    "nothing signed": (replaced(lambda scene: "x"), ["malformed", "not-exported"]),
    "what is signed is no object": (
        replaced(lambda scene: scene.keys[A].sign(STAY, cast(Json, []))),
        ["malformed", "not-exported"],
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_is_found(scene: Scene, cheat: str) -> None:
    edit, expected = CHEATS[cheat]
    assert scene.reasons(edit(scene.document(), scene)) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"vm_uuid": 1, "entries": []}',
        b'{"vm_uuid": "x", "entries": []}',
        b'{"vm_uuid": "11111111-0000-4000-8000-000000000001", "entries": [1]}',
        b'{"vm_uuid": "11111111-0000-4000-8000-000000000001", "entries": {}}',
        b"[" * 100_000,
        b" " * (exported.LARGEST + 1),
    ],
)
def test_what_is_no_history_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is"):
        exported.read("x", content)
