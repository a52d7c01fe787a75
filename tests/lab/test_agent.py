"""The other half of the mission, for real: a migration ends in a new agent ID, and in one event.

The receiver stands for a licence server; guests reach it at the same address on every host.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.doorway import Doorway
from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.images import build_images
from tests.lab.jobs import Job
from tests.lab.lab import Lab
from tests.lab.migration import migrate
from tests.lab.processes import wait_until
from tests.lab.receiver import DEAD, TAKING, Receiver
from tests.lab.scans import GatedScan

pytestmark = pytest.mark.lab

STATE = "/var/lib/guest-client"
PATIENCE = 90


@pytest.fixture
def receiver(lab: Lab, tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "record")
    with Doorway(lab.hosts, made.address):
        yield made
    made.close()


class Agent:
    """`guest-client agent run` in a guest, set up from nothing."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.run(["sh", "-c", f"rm -rf {STATE}/* /etc/guest-client/*"])
        guest.write_file(
            "/etc/guest-client/config.toml",
            'watch_interval = 1\n[[destination]]\nurl = "http://169.254.77.1:9900/events"\n',
        )
        self._job: Job | None = None

    def start(self, *options: str) -> None:
        self._job = self.guest.spawn(["guest-client", "agent", "run", *options])
        assert wait_until(self.answers, PATIENCE, 0.5), self._job.output_so_far()

    def answers(self) -> bool:
        return self.guest.run(["guest-client", "agent", "status"]).returncode == 0

    def kill(self) -> None:
        assert self._job is not None
        self._job.kill()
        self._job.wait()

    def stop(self) -> None:
        if self._job is not None and self._job.poll() is None:
            self.guest.run(["guest-client", "agent", "stop"], check=True)
            self._job.wait()

    def agent_id(self) -> str:
        return self.guest.run(["guest-client", "agent-id", "show"], check=True).stdout.strip()


@pytest.fixture
def agent(guest: Guest, receiver: Receiver) -> Iterator[Agent]:
    made = Agent(guest)
    yield made
    made.stop()


def events(receiver: Receiver, count: int) -> list[dict[str, Any]]:
    """The events in effect, once there are so many."""
    assert wait_until(lambda: len(receiver.events) >= count, PATIENCE), receiver.events
    return receiver.events


def serials(event: dict[str, Any]) -> tuple[str, str]:
    data = event["data"]
    return (
        data["old"]["machine"]["serial_number"],
        data["new"]["machine"]["serial_number"],
    )


def serial(host: Host) -> str:
    assert host.machine is not None
    return host.machine.serial


def test_a_crossed_scan_ends_in_a_new_agent_id_and_one_event(
    guest: Guest, a: Host, b: Host, receiver: Receiver, agent: Agent
) -> None:
    agent.start()
    before = agent.agent_id()
    gated = GatedScan(guest, "--repeat-if-migrated", "--notify-if-migrated")
    gated.wait_begun()
    migrate(guest, b)
    assert gated.finish().verdicts() == [("inconsistent", "migrated"), ("consistent", None)]
    [event] = events(receiver, 1)
    after = agent.agent_id()
    assert after != before
    assert serials(event) == (serial(a), serial(b))
    print(json.dumps(event, indent=1))


def test_a_migration_while_no_scan_runs(
    guest: Guest, a: Host, b: Host, receiver: Receiver, agent: Agent
) -> None:
    agent.start("--watch")
    before = agent.agent_id()
    migrate(guest, b)
    [event] = events(receiver, 1)
    assert serials(event) == (serial(a), serial(b))
    assert agent.agent_id() != before


def test_a_scan_and_the_watch_see_one_migration_once(
    guest: Guest, b: Host, receiver: Receiver, agent: Agent
) -> None:
    agent.start("--watch")
    gated = GatedScan(guest, "--notify-if-migrated")
    gated.wait_begun()
    migrate(guest, b)
    events(receiver, 1)
    assert gated.finish().code == 75
    # Whatever the scan's own trigger still does, it has done by the agent's end.
    agent.stop()
    assert len(receiver.events) == 1


def test_three_migrations_while_the_receiver_is_dead(
    guest: Guest, a: Host, b: Host, receiver: Receiver, agent: Agent
) -> None:
    agent.start("--watch")
    receiver.behaviour = DEAD
    ids = [agent.agent_id()]
    for host in (b, a, b):
        migrate(guest, host)
        assert wait_until(lambda: agent.agent_id() != ids[-1], PATIENCE, 0.5)
        ids.append(agent.agent_id())
    receiver.behaviour = TAKING
    found = events(receiver, 3)
    expected = [(serial(a), serial(b)), (serial(b), serial(a)), (serial(a), serial(b))]
    assert [serials(event) for event in found] == expected
    assert len({event["id"] for event in found}) == 3


def test_an_agent_that_was_down_learns_of_the_migration(
    guest: Guest, a: Host, b: Host, receiver: Receiver, agent: Agent
) -> None:
    agent.start("--watch")
    before = agent.agent_id()
    agent.kill()
    migrate(guest, b)
    agent.start("--watch")
    [event] = events(receiver, 1)
    assert serials(event) == (serial(a), serial(b))
    assert agent.agent_id() != before


def test_a_clone_reports_itself_once(
    lab: Lab, guest: Guest, a: Host, receiver: Receiver, agent: Agent
) -> None:
    agent.start("--watch")
    before = agent.agent_id()
    agent.stop()
    state = guest.run(["tar", "-C", STATE, "-c", "."], check=True).stdout_bytes
    original = guest.uuid
    try:
        boot_as(lab, guest, a, str(uuid.uuid4()))
        agent = Agent(guest)
        guest.run(["tar", "-C", STATE, "-x"], input=state, check=True)
        assert agent.agent_id() == before
        agent.start("--watch")
        [event] = events(receiver, 1)
        assert event["type"].endswith(".cloned.v1")
        assert agent.agent_id() != before
        agent.stop()
        agent.start("--watch")
        agent.stop()
        assert len(receiver.events) == 1
    finally:
        boot_as(lab, guest, a, original)


def boot_as(lab: Lab, guest: Guest, host: Host, vm_uuid: str) -> None:
    """Boot the guest anew as another VM with the same disks."""
    guest.undefine()
    guest.uuid = vm_uuid
    guest.define(host, build_images(lab.progress))
    guest.start(host)
    guest.wait_ready()
