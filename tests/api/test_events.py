"""The stream of events on the admin socket, on libvirt's test driver; and the command beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import libvirt

from enabler.api.streams import STREAMS
from tests.api.running import DEFAULT_VM, Enabler, eventually
from tests.api.test_admin import valid


class Stream:
    """One reader."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()
        self.last: str | None = None

    def next(self) -> dict[str, Any]:
        """The next event; its ID goes to ``last``."""
        deadline = time.monotonic() + 20
        fields: dict[str, str] = {}
        for line in self._lines:
            assert time.monotonic() < deadline, f"after {self.last} nothing came"
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                break
        document: dict[str, Any] = json.loads(fields["data"])
        valid("EventDocument", document)
        assert document["kind"] == fields["event"]
        self.last = fields.get("id", self.last)
        return document

    def until(self, kind: str) -> list[dict[str, Any]]:
        found = [self.next()]
        while found[-1]["kind"] != kind:
            found.append(self.next())
        return found


@contextmanager
def streaming(enabler: Enabler, last: str | None = None) -> Iterator[Stream]:
    headers = {} if last is None else {"Last-Event-ID": last}
    transport = httpx.HTTPTransport(uds=str(enabler.socket))
    with (
        httpx.Client(transport=transport, base_url="http://enabler", timeout=20) as client,
        client.stream("GET", "/v1/events", headers=headers) as answer,
    ):
        yield Stream(answer)


def restart(hypervisor: libvirt.virConnect) -> None:
    domain = hypervisor.lookupByUUIDString(DEFAULT_VM)
    domain.destroy()
    domain.create()


def test_a_stay_ends_and_another_begins(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    first = enabler.identity()["residency"]["id"]
    with streaming(enabler) as stream:
        assert stream.answer.headers["content-type"].startswith("text/event-stream")
        state = stream.next()
        assert state["kind"] == "state"
        assert [vm["uuid"] for vm in state["vms"]] == [DEFAULT_VM]
        restart(hypervisor)
        departure, arrival = stream.until("arrival")
    assert (departure["kind"], departure["residency"]["id"]) == ("departure", first)
    assert arrival["vm"] == {"uuid": DEFAULT_VM, "name": "test"}
    assert arrival["residency"] == enabler.identity()["residency"]


def test_a_reader_goes_on_where_it_was_cut_off(
    enabler: Enabler, hypervisor: libvirt.virConnect
) -> None:
    with streaming(enabler) as stream:
        stream.next()
    for _ in range(2):
        before = enabler.identity()["residency"]["id"]
        restart(hypervisor)
        eventually(lambda before=before: enabler.identity()["residency"]["id"] != before)
    with streaming(enabler, stream.last) as resumed:
        told = [resumed.next() for _ in range(4)]
    assert [event["kind"] for event in told] == ["departure", "arrival"] * 2
    assert told[-1]["residency"]["id"] == enabler.identity()["residency"]["id"]


def test_what_happened_of_late(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    [present] = enabler.get("/v1/events/recent").json()["events"]
    assert present["kind"] == "present"
    restart(hypervisor)

    def recent(limit: int = 100) -> dict[str, Any]:
        listed: dict[str, Any] = enabler.get(f"/v1/events/recent?limit={limit}").json()
        valid("EventListDocument", listed)
        return listed

    eventually(lambda: len(recent()["events"]) == 3)
    everything = recent()
    assert [event["kind"] for event in everything["events"]] == ["present", "departure", "arrival"]
    assert everything["last_event_id"] == everything["events"][-1]["id"]
    assert recent(1) == everything | {"events": everything["events"][-1:]}
    assert recent(0) == everything | {"events": []}
    with streaming(enabler, everything["events"][1]["id"]) as stream:
        assert stream.next() == {k: v for k, v in everything["events"][2].items() if k != "id"}
    refused = enabler.get("/v1/events/recent?limit=-1")
    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/bad-request")


def test_who_names_an_event_of_another_run_begins_anew(enabler: Enabler) -> None:
    with streaming(enabler, "00000000-1") as stream:
        assert stream.next()["kind"] == "reset"
        assert stream.last is None
        assert stream.next()["kind"] == "state"
        assert stream.last is not None


def test_streams_are_bounded_and_give_their_place_back(enabler: Enabler) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(streaming(enabler)) for _ in range(STREAMS)]
        assert {stream.next()["kind"] for stream in streams} == {"state"}
        refused = enabler.get("/v1/events")
        assert refused.status_code == 429
        assert refused.json()["type"] == "/problems/too-many-streams"

    def again() -> bool:
        with streaming(enabler) as stream:
            return stream.answer.status_code == 200

    eventually(again)


def test_the_command_and_the_service_end(hypervisor: libvirt.virConnect, tmp_path: Path) -> None:
    running = Enabler(tmp_path)
    with running.running():
        command = subprocess.Popen(
            [sys.executable, "-m", "enabler", "events", "--listen", f"unix:{running.socket}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert command.stdout is not None
        assert json.loads(command.stdout.readline())["kind"] == "state"
        restart(hypervisor)
        arrival = json.loads(command.stdout.readline())
        assert arrival["kind"] == "departure"
        assert arrival["id"]
    _, said = command.communicate(timeout=20)
    assert command.returncode == 69
    assert "ended" in said


def test_a_vm_that_is_resized(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    domain = hypervisor.lookupByUUIDString(DEFAULT_VM)
    with streaming(enabler) as stream:
        stream.next()
        domain.setVcpus(1)
        hypervisor.lookupByUUIDString(DEFAULT_VM).suspend()  # an event, so that it is looked at
        [changed] = stream.until("vm-changed")
        assert changed["allocation"]["vcpus"] == 1
        assert changed["migration"] == {"state": "none"}
