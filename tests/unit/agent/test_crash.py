"""Nothing is lost: the real agent is killed (-9) at every step, and the next one finishes the work.

Each row of the table kills one agent at one point of one migration's way: around every commit of
the state, in a run, and while an event is sent. Then an agent is started that is not killed. For
every row: each program has run for the migration; the agent ID was regenerated once; the event has
arrived, in effect once, with one ID.

The table of step by outcome is printed at the end (``pytest -s``).
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guest_client.agent.event import event_id
from guest_client.guard import judge
from guest_client.times import utc_now
from guest_client.triggers import TriggerBox, make_trigger, trigger_key
from tests.lab.receiver import MUTE, Receiver

from ..guest.documents import identity
from ..processes import lives
from .conftest import GUEST_CLIENT, AgentHome, stay

ROOT = Path(__file__).parents[3]
BEFORE, AFTER = identity(stay(0)), identity(stay(1))
KEY = trigger_key(AFTER)

STEPS = [
    # label of the commit, and how many there are of it on one migration's way with two programs
    ("make the programs known", 1),
    ("forget old triggers", 1),
    ("record a trigger", 1),
    ("note the identity", 1),
    ("plan", 1),
    ("begin a run", 2),
    ("end a run", 2),
    ("complete", 1),
    ("delivered", 1),
    ("deregister the programs", 1),
]
POINTS = [
    (label, f"{when}:{number}")
    for label, count in STEPS
    for number in range(1, count + 1)
    for when in ("before", "after")
]


@dataclass
class Row:
    step: str
    died: str
    runs: int
    arrivals: int
    events: int


@pytest.fixture(scope="module")
def table() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    print(f"\n\n{'killed':<51} {'by':<8} runs  arrivals  events in effect")
    for row in rows:
        print(f"{row.step:<51} {row.died:<8} {row.runs:>4}  {row.arrivals:>8}  {row.events:>6}")


class Crash:
    """A home with a trigger from a scan, two programs, and an agent ID."""

    def __init__(self, home: AgentHome, receiver: Receiver) -> None:
        self.home = home
        self.receiver = receiver
        self.effects = home.home / "effects"
        more = (
            '[[program]]\nname = "agent-id"\n'
            f"command = {json.dumps([*GUEST_CLIENT, 'agent-id', 'regenerate'])}\n"
            '[[program]]\nname = "meter"\n'
            f'command = ["/bin/sh", "-c", "echo $TRIGGER_KEY >> {self.effects}"]\n'
        )
        home.configure(receiver, programs=True, more=more)
        self.old = home.run("agent-id", "show").strip()
        home.migrate(0)
        home.run("agent", "run", "--once")  # knows host A
        box = TriggerBox(home.state_dir)
        box.prepare()
        box.record(make_trigger(judge(BEFORE, AFTER), BEFORE, AFTER, utc_now(), "scan"))
        home.migrate(1)

    def dying(self, step: str, point: str) -> int:
        module = "tests.unit.agent.dying_agent"
        self.home.environment["PYTHONPATH"] = str(ROOT)
        driver = (sys.executable, "-m", module, step, point)
        return self.home.agent("--once", driver=driver).wait()

    def finish_and_check(self) -> Row:
        """Start an agent that lives, and look at what has become of the migration."""
        self.home.run("agent", "run", "--once")
        effects = self.effects.read_text().split()
        assert set(effects) == {KEY}, "every program has run, for that migration"
        (event,) = self.receiver.events
        assert event["id"] == event_id(KEY)
        assert {arrival.event["id"] for arrival in self.receiver.arrivals} == {event["id"]}
        assert event["data"]["agent_id"]["old"] == self.old
        new = self.home.json("agent-id", "show")
        assert event["data"]["agent_id"]["new"] == new["id"] != self.old
        assert new["previous"] == self.old, "the agent ID was regenerated once"
        assert {p["name"]: p["outcome"] for p in event["data"]["programs"]} == {
            "agent-id": "ok",
            "meter": "ok",
        }
        (entry,) = self.home.history()
        assert entry["state"] == "done"
        assert list((self.home.state_dir / "triggers").glob("*.json")) == []
        assert self.home.json("agent", "status", expect=3)["destinations"] == []
        before = len(self.receiver.arrivals)
        self.home.run("agent", "run", "--once")  # a further one finds nothing to do
        assert len(self.receiver.arrivals) == before
        assert self.effects.read_text().split() == effects
        return Row("", "", len(effects), before, len(self.receiver.events))


@pytest.fixture
def crash(home: AgentHome, receiver: Receiver) -> Crash:
    return Crash(home, receiver)


def note(table: list[Row], row: Row, step: str, died: str) -> None:
    row.step, row.died = step, died
    table.append(row)


@pytest.mark.parametrize(("step", "point"), POINTS)
def test_around_every_commit(crash: Crash, table: list[Row], step: str, point: str) -> None:
    assert crash.dying(step, point) == -signal.SIGKILL
    row = crash.finish_and_check()
    again = point.startswith("before") and step == "end a run" and point.endswith("2")
    assert row.runs == (2 if again else 1)
    sent_again = (step, point) == ("delivered", "before:1")
    assert row.arrivals == (2 if sent_again else 1)
    when, _, number = point.partition(":")
    note(table, row, f"{when} the commit of: {step} ({number})", "itself")


def test_the_table_has_every_commit_that_there_is(crash: Crash) -> None:
    labels = crash.home.home / "labels"
    assert crash.dying("list", str(labels)) == 0
    found = labels.read_text().splitlines()
    assert {label: found.count(label) for label in found} == dict(STEPS)


def test_in_a_run_the_program_dies_with_it_and_is_run_again(crash: Crash, table: list[Row]) -> None:
    """The program kills its agent; what it leaves behind is ended before it is run again."""
    leftover = crash.home.home / "leftover"
    crash.home.register(
        "killer",
        f'[ "$TRIGGER_TRY" = 1 ] || exit 0; echo $$ > {leftover}; kill -9 $PPID; sleep 600',
    )
    agent = crash.home.agent("--once")
    assert agent.wait() == -signal.SIGKILL
    row_events = crash.receiver.events
    assert row_events == []
    crash.home.run("agent", "run", "--once")
    assert not lives(leftover.read_text())
    (event,) = crash.receiver.events
    killer = event["data"]["programs"][-1]
    assert (killer["name"], killer["outcome"], killer["tries"]) == ("killer", "ok", 2)
    runs = [run for run in crash.home.history()[0]["runs"] if run["name"] == "killer"]
    assert [run["outcome"] for run in runs] == ["interrupted", "ok"]
    effects = crash.effects.read_text().split()
    note(table, Row("", "", len(effects), len(crash.receiver.arrivals), 1), "in a run", "program")


def test_a_program_that_always_kills_the_agent_is_given_up(crash: Crash) -> None:
    crash.home.register("killer", "kill -9 $PPID; sleep 600", "--tries", "2")
    for _ in range(2):
        assert crash.home.agent("--once").wait() == -signal.SIGKILL
    crash.home.run("agent", "run", "--once")
    (event,) = crash.receiver.events
    killer = event["data"]["programs"][-1]
    assert (killer["outcome"], killer["tries"]) == ("failed", 2)
    assert "agent ended before it did" in killer["problem"]


def test_while_an_event_is_sent(home: AgentHome, tmp_path: Path, table: list[Row]) -> None:
    """The receiver kills the agent while it has the event half in hand: before it keeps it."""
    agents: list[Any] = []

    def kill(event: dict[str, Any]) -> None:
        if agents:
            agents.pop().process.kill()

    receiver = Receiver(tmp_path / "killing.jsonl", on_event=kill)
    crash = Crash(home, receiver)
    agent = home.agent("--once")
    agents.append(agent)
    assert agent.wait() == -signal.SIGKILL
    row = crash.finish_and_check()
    assert row.arrivals == 2
    note(table, row, "while sending, the event arriving", "receiver")
    receiver.close()


def test_after_it_was_sent_and_before_the_answer(crash: Crash, table: list[Row]) -> None:
    crash.receiver.behaviour = MUTE
    agent = crash.home.agent()
    crash.receiver.wait_for(lambda arrivals: len(arrivals) >= 1)
    agent.kill()
    crash.receiver.behaviour = type(MUTE)()
    row = crash.finish_and_check()
    assert row.arrivals >= 2
    note(table, row, "after sending, before the answer", "tester")


def test_the_watchs_triggers_are_as_safe(home: AgentHome, receiver: Receiver) -> None:
    """What the watch sees is in the state together with its having been seen, or neither is."""
    for when, recorded in (("before", False), ("after", True)):
        home.configure(receiver)
        home.migrate(0 if when == "before" else 1)
        home.run("agent", "run", "--once")
        number = 1 if when == "before" else 2
        home.migrate(number)
        home.environment["PYTHONPATH"] = str(ROOT)
        driver = (sys.executable, "-m", "tests.unit.agent.dying_agent", "note the identity")
        assert home.agent("--once", driver=(*driver, f"{when}:1")).wait() == -signal.SIGKILL
        keys = [one["key"] for one in home.history()]
        assert (trigger_key(identity(stay(number))) in keys) == recorded
        home.run("agent", "run", "--once")
        assert [e["data"]["new"]["residency"]["id"] for e in receiver.events][-1] == (
            f"stay-{number + 1}"
        )
    assert len(receiver.events) == 2
