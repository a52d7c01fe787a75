"""The state on real disks: what a transaction is worth, and each way in which a disk can fail."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guest_client.agent import schema
from guest_client.agent.control import ask
from guest_client.agent.model import (
    Event,
    JobState,
    Known,
    NewTrigger,
    Outcome,
    Owner,
    Result,
    Road,
)
from guest_client.agent.phases import Phase
from guest_client.agent.settings import Program
from guest_client.agent.state import State
from guest_client.errors import StateError, StateFromLater, StateNotMade

from ..guest.documents import MIGRATED, document, identity
from .conftest import AgentHome, said

TRUE = Program("true", ("true",))
T0 = "2026-11-23T02:37:30.112Z"


def trigger(key: str = "k1", phase: Phase = Phase.MIGRATED, **more: Any) -> NewTrigger:
    what = {"before": document(), "after": document(MIGRATED), **more}
    return NewTrigger(key, phase, "migrated", ("host",), "it moved", T0, "watch", **what)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State(tmp_path) as made:
        yield made


def test_the_same_migration_is_recorded_once_and_the_first_account_of_it_stays(
    state: State,
) -> None:
    assert state.record(trigger())
    assert not state.record(replace(trigger(), sentence="another account"))
    (found,) = state.latest(10)
    assert found.what == trigger()


def test_what_is_written_is_there_for_another_process_at_once(state: State, tmp_path: Path) -> None:
    state.record(trigger())
    with State(tmp_path) as other:
        assert other.latest(10) == state.latest(10)
    assert (tmp_path / "agent.db").stat().st_mode & 0o777 == 0o600


def test_a_plan_is_of_those_registered_then_for_that_phase(state: State) -> None:
    state.registry.register(TRUE)
    state.registry.register(Program("clones", ("true",), (Phase.CLONED,)))
    state.registry.register(Program("both", ("true",), (Phase.CLONED, Phase.MIGRATED)))
    state.record(trigger())
    (unfinished,) = state.unfinished()
    assert state.plan(unfinished.seq, "old") == ["true", "both"]
    state.registry.deregister("clones")
    state.registry.register(replace(TRUE, command=("false",)))
    assert [job.name for job in state.jobs(unfinished.seq)] == ["true", "both"]
    assert state.program(state.jobs(unfinished.seq)[0]).command == ("true",), "as it was planned"


def test_the_agents_come_first_a_persons_next_and_the_last_last(state: State) -> None:
    state.registry.register(Program("p1", ("true",)))
    own = [Program("c1", ("true",)), Program("c2", ("true",))]
    for _ in range(2):
        assert state.registry.begin(own, [Program("z", ("true",))]) == []
    state.registry.register(Program("p2", ("true",)))
    state.registry.register(Program("p1", ("false",)))
    found = state.registry.all()
    assert [r.program.name for r in found] == ["c1", "c2", "p1", "p2", "z"]
    assert [r.owner for r in found].count(Owner.RUN) == 3
    state.registry.end()
    assert [r.program.name for r in state.registry.all()] == ["p1", "p2"]


def test_a_job_goes_its_way_and_is_begun_by_one_alone(state: State) -> None:
    state.registry.register(TRUE)
    state.record(trigger())
    state.plan(1, None)
    (job,) = state.jobs(1)
    begun = state.begin_run(job, "r1")
    assert begun is not None
    assert (begun.state, begun.tries) == (JobState.RUNNING, 1)
    assert state.begin_run(job, "r2") is None
    assert [run.id for run in state.running()] == ["r1"]
    result = Result(Outcome.FAILED, exit_code=3, output="x")
    assert state.end_run(begun, result, lambda j: (JobState.DUE, 5.0)) is JobState.DUE
    (again,) = state.jobs(1)
    assert (again.state, again.tries, again.not_before) == (JobState.DUE, 1, 5.0)
    assert state.runs(1)[0].result == result


def test_completion_and_the_events_are_one_change(state: State) -> None:
    state.record(trigger())
    state.plan(1, None)
    with pytest.raises(StateError):
        # The second of its statements fails: an outbox can't hold nothing.
        state.complete(1, "new", T0, Event("e1", None), ["http://one/"])  # type: ignore[arg-type]
    assert state.unfinished()[0].seq == 1
    assert state.post.events() == []
    state.complete(1, "new", T0, Event("e1", b"body"), ["http://one/", "http://two/"])
    assert state.unfinished() == []
    assert [event["url"] for event in state.post.events()] == ["http://one/", "http://two/"]


def test_the_post_is_in_order_and_knows_what_stands_in_the_way(state: State) -> None:
    for number in (1, 2):
        state.record(trigger(f"k{number}"))
        state.complete(number, None, T0, Event(f"e{number}", b"body"), ["http://one/"])
    first = state.post.next("http://one/")
    assert first is not None
    state.post.failed(first, Road("http://one/", 2, 1, 99.0, False, "busy"))
    assert state.post.road("http://one/") == Road("http://one/", 2, 1, 99.0, False, "busy")
    assert state.post.next("http://one/") == replace(first, tries=1)
    state.post.delivered(first)
    assert state.post.road("http://one/") == Road("http://one/", waiting=1)
    second = state.post.next("http://one/")
    assert second is not None
    assert second.event_id == "e2"
    assert state.post.discard("e2") == 1
    assert state.post.roads() == []


def test_a_clone_closes_its_originals_triggers_and_no_others(state: State) -> None:
    state.record(trigger("original"))
    state.record(trigger("by hand", after=None, before=None))
    clone = {"vm.uuid": "22222222-0000-4000-8000-000000000002"}
    news = [trigger("clone", Phase.CLONED, after=document(clone))]
    assert state.observed(Known(identity(clone)), news) == news
    states = {found.what.key: str(found.state) for found in state.latest(10)}
    assert states == {"original": "superseded", "by hand": "recorded", "clone": "recorded"}


def test_old_triggers_are_forgotten_but_none_that_is_not_delivered(state: State) -> None:
    state.registry.register(TRUE)
    for number in range(1, 6):
        state.record(trigger(f"k{number}"))
        urls = ["http://one/"] if number in (1, 3) else []
        if number != 2:
            state.plan(number, None)
            state.complete(number, None, T0, Event(f"e{number}", b"body"), urls)
    assert state.post.discard("e3") == 1
    assert state.jobs(3) != []
    state.forget_old(2)
    assert [found.what.key for found in state.latest(10)] == ["k1", "k2", "k4", "k5"]
    assert state.post.events(3) == [], "with all that belonged to it"
    assert state.jobs(3) == []


def test_a_later_schema_is_refused(tmp_path: Path, home: AgentHome) -> None:
    with State(home.state_dir):
        pass
    with contextlib.closing(sqlite3.connect(home.state_dir / "agent.db")) as raw:
        raw.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    with pytest.raises(StateFromLater):
        State(home.state_dir)
    assert "later guest-client" in home.run("agent", "run", "--once", expect=78)


def test_another_programs_database_is_left_alone(home: AgentHome) -> None:
    home.state_dir.mkdir()
    with contextlib.closing(sqlite3.connect(home.state_dir / "agent.db")) as raw:
        raw.execute("CREATE TABLE theirs (x)")
    assert "not the agent's" in home.run("agent", "run", "--once", expect=74)


@pytest.mark.parametrize("damage", ["head", "middle", "text"])
def test_a_damaged_file_is_told_and_left_as_it_is(home: AgentHome, damage: str) -> None:
    with State(home.state_dir) as made:
        for number in range(200):
            made.record(trigger(f"k{number}"))
    file = home.state_dir / "agent.db"
    with file.open("r+b") as stream:
        match damage:
            case "head":
                stream.write(b"\0" * 100)
            case "middle":
                stream.seek(3 * 4096)
                stream.write(os.urandom(20 * 4096))
            case "text":
                stream.write(b"#!/bin/sh\necho I am no database at all\n" * 100)
    before = file.read_bytes()
    error = home.run("agent", "run", "--once", expect=74)
    assert "damaged" in error
    assert "move it" in error
    assert file.read_bytes() == before


def test_a_folder_that_is_read_only_is_told(home: AgentHome) -> None:
    with mounted(home.state_dir) as remount:
        remount("ro")
        for command in (["agent", "run", "--once"], ["agent", "trigger"]):
            error = home.run(*command, expect=73)
            assert "Read-only file system" in error
            assert "--state-dir" in error
        remount("rw")
        home.run("agent", "trigger")
        remount("ro")
        error = home.run("agent", "run", "--once", expect=73)
        assert "Read-only file system" in error


def test_a_full_disk_is_told_and_leaves_no_half_done_trigger(home: AgentHome) -> None:
    effects = home.home / "effects"
    with mounted(home.state_dir):
        home.register("mark", f"echo $TRIGGER_KEY >> {effects}")
        home.run("agent", "run", "--once")
        ballast = home.state_dir / "ballast"
        fill(ballast)
        error = home.run("agent", "trigger", "--key", "one", expect=74)
        assert "disk is full" in error
        ballast.unlink()
        assert home.history() == []
        home.run("agent", "trigger", "--key", "two")
        fill(ballast)
        error = home.run("agent", "run", "--once", expect=74)
        assert "disk is full" in error
        assert not effects.exists(), "what can't be written down is not begun"
        ballast.unlink()
        home.run("agent", "run", "--once")
        assert effects.read_text().split() == ["two"]
        assert [(one["key"], one["state"]) for one in home.history()] == [("two", "done")]


def test_a_disk_that_fills_under_a_running_agent_ends_it_and_loses_nothing(
    home: AgentHome,
) -> None:
    effects = home.home / "effects"
    with mounted(home.state_dir):
        home.register("mark", f"echo $TRIGGER_KEY >> {effects}")
        agent = home.ready_agent("--watch")
        home.wait_known("stay-1")
        ballast = home.state_dir / "ballast"
        fill(ballast)
        home.migrate(1)
        ask(home.state_dir, "wake")
        assert agent.wait() == 74
        assert said(agent, "the disk is full; make room") == 1
        assert said(agent, "Traceback") == 0
        ballast.unlink()
        home.run("agent", "run", "--once")
        assert len(effects.read_text().split()) == 1
        assert [(one["phase"], one["state"]) for one in home.history()] == [("migrated", "done")]


def fill(path: Path) -> None:
    """Take all the room that there is."""
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(b"\0" * 4096):
            pass


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Any]:
    """Give a folder a small disk of its own, that can be remounted."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "state", str(folder)], check=True)

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_reasons_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateNotMade, match="can't make or open") as caught:
        State(tmp_path / "file" / "state")
    assert "\n" not in str(caught.value)
