"""Real agents, from trigger to event: programs, receivers, the watch, scans, and commands."""

from __future__ import annotations

import json
import signal
import threading
import uuid
from pathlib import Path

import jsonschema
import pytest

from guest_client.agent.control import ask
from guest_client.agent.event import event_id
from guest_client.agent.event_schema import event_schema
from guest_client.agent.observe import observe
from guest_client.agent.state import State
from guest_client.times import utc_now
from guest_client.triggers import trigger_key
from tests.lab.receiver import Behaviour, Receiver

from ..guest.documents import identity
from ..guest.enabler_server import Handler
from ..processes import lives
from .conftest import AgentHome, Fifo, said, stay, until

SECOND_VM = "22222222-0000-4000-8000-000000000002"


def test_a_migration_that_the_watch_sees_ends_in_a_new_agent_id_and_one_event(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver, programs=True)
    old = home.run("agent-id", "show").strip()
    agent = home.ready_agent("--watch")
    home.wait_known("stay-1")
    home.migrate(1)
    look(home)
    (event,) = receiver.wait_for_events(1)
    new = home.run("agent-id", "show").strip()
    assert uuid.UUID(new) != uuid.UUID(old)
    jsonschema.validate(event, event_schema())
    assert event["id"] == event_id(trigger_key(identity(stay(1))))
    assert event["data"]["agent_id"] == {"old": old, "new": new, "regenerated": True}
    assert event["data"]["old"]["machine"]["serial_number"] == "78AAAAA"
    assert event["data"]["new"]["machine"]["serial_number"] == "78BBBBB"
    assert [(p["name"], p["outcome"]) for p in event["data"]["programs"]] == [("agent-id", "ok")]
    assert receiver.arrivals[0].content_type == "application/cloudevents+json"
    assert agent.stop() == 0
    assert len(receiver.arrivals) == 1


def test_a_scan_that_a_migration_crossed_does_the_same(home: AgentHome, receiver: Receiver) -> None:
    home.configure(receiver, programs=True)
    home.ready_agent()
    there = home.home / "there"
    here = home.home / "here"
    here.write_text(json.dumps(_document(0)))
    there.write_text(json.dumps(_document(1)))
    home.server.otherwise = home.server._tell
    home.server.file = here
    old = home.run("agent-id", "show").strip()
    home.run(
        "scan", "--notify-if-migrated", "--output", "out", "--",
        "sh", "-c", f"mv {there} {here}", expect=75,
    )  # fmt: skip
    (event,) = receiver.wait_for_events(1)
    assert event["data"]["trigger"]["source"] == "scan"
    assert event["data"]["agent_id"]["old"] == old
    assert event["data"]["agent_id"]["new"] == home.run("agent-id", "show").strip() != old
    home.run("agent", "stop")
    assert list((home.state_dir / "triggers").glob("*.json")) == []


def test_a_scan_and_the_watch_that_see_one_migration_make_one_event(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    home.register("count", f"echo $TRIGGER_KEY >> {home.home}/count")
    home.run("agent", "run", "--once")
    here, there = home.home / "here", home.home / "there"
    here.write_text(json.dumps(_document(0)))
    there.write_text(json.dumps(_document(1)))
    home.server.otherwise = home.server._tell
    home.server.file = here
    scan = ("scan", "--notify-if-migrated", "--output", "out", "--")
    home.run(*scan, "sh", "-c", f"cp {there} {here}", expect=75)
    home.run("agent", "run", "--once")  # reads, too, and sees the same
    here.write_text(json.dumps(_document(0)))
    home.run(*scan, "sh", "-c", f"cp {there} {here}", expect=75)  # a second, crossed by the same
    home.run("agent", "run", "--once")
    assert len(receiver.arrivals) == 1
    assert len((home.home / "count").read_text().splitlines()) == 1


def test_a_dead_receiver_gets_three_migrations_in_order_when_it_is_back(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    home.register("mark", f"echo $TRIGGER_NEW_RESIDENCY_ID >> {home.home}/marks")
    receiver.close()
    agent = home.ready_agent("--watch")
    home.wait_known("stay-1")
    for number in (1, 2, 3):
        home.migrate(number)
        look(home)
        home.wait_done(number)
        if number == 2:  # an outage is longer than an agent's life
            agent.kill()
            agent = home.ready_agent("--watch")
    assert home.json("agent", "status")["destinations"][0]["waiting"] == 3
    receiver.open()
    home.run("agent", "outbox", "--retry")
    events = receiver.wait_for_events(3)
    where = [event["data"]["new"]["residency"]["id"] for event in events]
    assert where == ["stay-2", "stay-3", "stay-4"]
    assert [e["data"]["old"]["residency"]["id"] for e in events] == ["stay-1", "stay-2", "stay-3"]
    assert (home.home / "marks").read_text().split() == where
    until(
        lambda: home.json("agent", "outbox") == []
    )  # the receiver has it before it is crossed off
    assert agent.stop() == 0


def test_each_destination_has_its_own_queue(
    home: AgentHome, receiver: Receiver, tmp_path: Path
) -> None:
    other = Receiver(tmp_path / "other.jsonl")
    home.configure(receiver, other)
    receiver.behaviour = Behaviour("failing", status=500)
    home.ready_agent()
    for key in ("one", "two", "three"):
        home.run("agent", "trigger", "--key", key)
    events = other.wait_for_events(3)
    assert [event["data"]["trigger"]["key"] for event in events] == ["one", "two", "three"]
    receiver.wait_for(lambda arrivals: len(arrivals) >= 1)
    assert {arrival.event["data"]["trigger"]["key"] for arrival in receiver.arrivals} == {"one"}
    receiver.behaviour = Behaviour()
    home.run("agent", "outbox", "--retry")
    events = receiver.wait_for_events(3)
    assert [event["data"]["trigger"]["key"] for event in events] == ["one", "two", "three"]
    other.close()


def test_an_event_whose_answer_is_lost_is_sent_again_with_the_same_id(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    receiver.behaviour = Behaviour("mute")
    home.ready_agent()
    home.run("agent", "trigger")
    receiver.wait_for(lambda arrivals: len(arrivals) >= 1)
    receiver.behaviour = Behaviour()
    arrivals = receiver.wait_for(lambda arrivals: any(a.answered == 204 for a in arrivals))
    assert len(arrivals) >= 2
    assert len({arrival.event["id"] for arrival in arrivals}) == 1
    assert [arrival.repeat for arrival in arrivals] == [False] + [True] * (len(arrivals) - 1)
    assert len({json.dumps(arrival.event) for arrival in arrivals}) == 1


def test_a_destination_that_is_gone_is_left_alone_until_a_person_says_so(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    receiver.behaviour = Behaviour("failing", status=410)
    home.run("agent", "trigger")
    home.run("agent", "run", "--once", expect=75)
    home.run("agent", "run", "--once", expect=75)
    assert len(receiver.arrivals) == 1
    assert home.json("agent", "status", expect=3)["destinations"][0]["gone"]
    receiver.behaviour = Behaviour()
    home.run("agent", "outbox", "--retry")
    home.run("agent", "run", "--once")
    assert len(receiver.events) == 1


def test_an_event_that_is_never_taken_can_be_discarded_by_a_person(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    receiver.behaviour = Behaviour("failing", status=422)
    for key in ("one", "two"):
        home.run("agent", "trigger", "--key", key)
    home.run("agent", "run", "--once", expect=75)
    home.run("agent", "outbox", "--discard", event_id("one"))
    receiver.behaviour = Behaviour()
    home.run("agent", "run", "--once")
    assert [event["data"]["trigger"]["key"] for event in receiver.events] == ["two"]
    one, two = home.history()
    assert [d["state"] for d in one["deliveries"]] == ["discarded"]
    assert [d["state"] for d in two["deliveries"]] == ["delivered"]


def test_a_clone_says_so_once_and_does_not_speak_for_its_original(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    home.register("mark", "echo $TRIGGER_REASON", "--on", "migrated,cloned")
    home.run("agent", "run", "--once")  # the original knows itself
    home.run("agent", "trigger", "--key", "unfinished")  # and is copied before it acted on this
    home.say({"vm.uuid": SECOND_VM, "residency.id": "clone-1"})
    for _ in range(3):
        home.run("agent", "run", "--once")
    (event,) = receiver.events
    assert event["type"] == "vm-enabler.agent.cloned.v1"
    assert event["source"] == f"urn:uuid:{SECOND_VM}"
    assert event["data"]["trigger"]["reason"] == "cloned"
    assert event["data"]["old"]["vm"]["uuid"].startswith("11111111")
    states = {one["key"]: one["state"] for one in home.history()}
    assert states.pop("unfinished") == "superseded"
    assert list(states.values()) == ["done"]


def test_a_reverted_vm_says_so_once(home: AgentHome, receiver: Receiver) -> None:
    home.configure(receiver)
    home.run("agent", "run", "--once")
    home.say({"vm.generation_id": "another"})
    for _ in range(2):
        home.run("agent", "run", "--once")
    assert [event["type"] for event in receiver.events] == ["vm-enabler.agent.reverted.v1"]


def test_migrating_and_aborted_run_their_programs_and_tell_nobody(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    home.register("mark", f"echo $TRIGGER_PHASE >> {home.home}/marks", "--on", "migrating,aborted")
    for state in ("none", "outgoing", "outgoing", "none", "outgoing"):
        home.say({"migration.state": state})
        home.run("agent", "run", "--once")
    home.migrate(1)
    home.run("agent", "run", "--once")
    marks = (home.home / "marks").read_text().split()
    assert marks == ["migrating", "aborted", "migrating"]
    assert [event["data"]["trigger"]["phase"] for event in receiver.events] == ["migrated"]


def test_programs_run_in_order_and_one_that_fails_stops_no_other(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    marks = home.home / "marks"
    home.register("bad", f"echo bad$TRIGGER_TRY >> {marks}; echo oops >&2; exit 3", "--tries", "2")
    home.register("good", f"echo good >> {marks}")
    home.register("later", f"echo later >> {marks}; [ $TRIGGER_TRY = 2 ]")
    home.run("agent", "trigger")
    agent = home.agent("--once")
    assert agent.wait() == 0
    assert said(agent, r"bad failed \(exit code 3: oops\); it will be tried again") == 1
    assert said(agent, r"bad failed \(exit code 3: oops\); given up after 2 tries") == 1
    order = marks.read_text().split()
    assert order[:3] == ["bad1", "good", "later"]
    assert sorted(order[3:]) == ["bad2", "later"]
    (event,) = receiver.events
    accounts = {program["name"]: program for program in event["data"]["programs"]}
    assert list(accounts) == ["bad", "good", "later"]
    assert accounts["bad"]["outcome"] == "failed"
    assert accounts["bad"]["exit_code"] == 3
    assert accounts["bad"]["problem"] == "exit code 3"
    assert (accounts["bad"]["tries"], accounts["later"]["tries"]) == (2, 2)
    assert accounts["later"]["outcome"] == "ok"
    runs = home.history()[0]["runs"]
    assert {run["output"] for run in runs if run["name"] == "bad"} == {"oops\n"}


def test_a_program_registered_afterwards_is_not_run_and_one_deregistered_not_again(
    home: AgentHome, fifo: Fifo, tmp_path: Path
) -> None:
    gate = Fifo(tmp_path / "gate")
    home.register("slow", f"echo began > {fifo.path}; read line < {gate.path}; exit 1")
    home.register("off", "echo never")
    home.run("agent", "trigger", "--key", "first")
    agent = home.ready_agent()
    assert fifo.line() == "began"
    home.register("new", "true")
    home.run("agent", "deregister", "off")
    home.run("agent", "deregister", "slow")
    gate.say()
    home.wait_done(1)
    (entry,) = home.history()
    assert {p["name"]: p["state"] for p in entry["programs"]} == {
        "slow": "failed",
        "off": "cancelled",
    }
    assert entry["programs"][0]["tries"] == 1
    assert agent.stop() == 0
    gate.close()


def test_what_an_agent_registered_goes_with_it_and_what_a_person_did_stays(
    home: AgentHome,
) -> None:
    home.configure(more='[[program]]\nname = "meter"\ncommand = ["true"]\n', programs=True)
    home.register("mine", "true")
    agent = home.ready_agent("--register", "extra=/bin/true now")
    names = [entry["name"] for entry in home.json("agent", "list")]
    assert names == ["meter", "extra", "mine"]
    home.run("agent", "stop")
    assert agent.wait() == 0
    assert [entry["name"] for entry in home.json("agent", "list")] == ["mine"]


def test_a_persons_program_takes_the_place_of_the_configurations(home: AgentHome) -> None:
    home.configure(more='[[program]]\nname = "meter"\ncommand = ["false"]\n', programs=True)
    agent = home.ready_agent()
    home.run("agent", "register", "meter", "--", "true")
    (meter,) = home.json("agent", "list")
    assert (meter["owner"], Path(meter["command"][0]).name) == ("person", "true")
    assert agent.stop() == 0
    agent = home.ready_agent()
    (meter,) = home.json("agent", "list")
    assert meter["owner"] == "person"
    assert said(agent, "meter is what a person has registered") == 1


def test_without_a_configured_program_the_built_in_one_is_there(home: AgentHome) -> None:
    home.configure(programs=True)
    home.ready_agent()
    (entry,) = home.json("agent", "list")
    assert entry["name"] == "agent-id"
    assert entry["on"] == ["migrated", "cloned", "reverted"]
    home.run("agent", "deregister", "agent-id")
    assert home.json("agent", "list") == []


def test_the_second_agent_refuses_and_says_who_holds_the_state(home: AgentHome) -> None:
    first = home.ready_agent()
    error = home.run("agent", "run", expect=73)
    assert f"process {first.process.pid}" in error
    assert "agent stop" in error
    assert home.json("agent", "status")["pid"] == first.process.pid
    first.kill()
    home.run("agent", "status", expect=3)
    second = home.ready_agent()
    assert second.stop() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_that_the_next_agent_takes_up(
    home: AgentHome, fifo: Fifo, signum: signal.Signals
) -> None:
    line = f"echo $$ try $TRIGGER_TRY > {fifo.path}; [ $TRIGGER_TRY = 2 ] || sleep 600"
    home.register("slow", line)
    home.run("agent", "trigger")
    agent = home.ready_agent()
    pid = int(fifo.line().split()[0])
    agent.process.send_signal(signum)
    assert agent.wait() == 0
    assert not lives(pid)
    agent = home.ready_agent()
    assert fifo.line().endswith("try 2")
    home.wait_done(1)
    runs = home.history()[0]["runs"]
    assert [run["outcome"] for run in runs] == ["interrupted", "ok"]


def test_stop_without_an_agent_is_no_error_and_status_says_so(home: AgentHome) -> None:
    home.run("agent", "stop")
    home.run("agent", "status", expect=69)
    home.register("any", "true")
    assert home.json("agent", "status", expect=3)["running"] is False


def test_a_trigger_by_hand_tells_what_really_happened_if_something_did(
    home: AgentHome, receiver: Receiver
) -> None:
    home.configure(receiver)
    home.run("agent", "run", "--once")
    home.migrate(1)
    found = home.json("agent", "trigger")
    assert found == {"recorded": True, "key": trigger_key(identity(stay(1)))}
    home.run("agent", "run", "--once")
    (event,) = receiver.events
    assert event["data"]["trigger"]["reason"] == "migrated"
    assert event["data"]["trigger"]["source"] == "hand"


def test_a_trigger_by_hand_with_a_key_is_recorded_once(home: AgentHome) -> None:
    for recorded in (True, False):
        found = home.json("agent", "trigger", "--key", "ticket-42", "--reason", "new board")
        assert found == {"recorded": recorded, "key": "ticket-42"}
    (entry,) = home.history()
    assert entry["sentence"] == "new board"
    assert entry["reason"] == "manual"


def test_the_watch_waits_with_the_etag_and_looks_when_it_is_told_to(home: AgentHome) -> None:
    home.ready_agent("--watch")
    home.wait_known("stay-1")
    home.wait_asked(2)
    look(home)
    home.wait_asked(4)
    home.migrate(1)
    look(home)
    home.wait_known("stay-2")
    with home.server.lock:
        asked = [headers.get("If-None-Match") for _, _, headers in home.server.requests]
    # read, waited (304 at once); told to look: read, waited; told to look: read
    assert [tag is not None for tag in asked[:5]] == [False, True, False, True, False]


def test_a_reading_that_is_older_than_what_is_known_is_no_news(
    home: AgentHome, receiver: Receiver
) -> None:
    """A read of the old host is on its way while something else notes the new one."""
    home.configure(receiver)
    home.ready_agent("--watch")
    home.wait_known("stay-1")
    asked, go_on = threading.Event(), threading.Event()

    def old_answer(handler: Handler) -> None:
        body = json.dumps(_document(0)).encode()
        asked.set()
        go_on.wait(60)
        handler.reply(body)

    home.migrate(1)
    home.wait_asked(2)
    with home.server.lock:
        home.server.script = [old_answer]
    look(home)
    assert asked.wait(60)
    with State(home.state_dir) as state:
        known = state.known()
        assert known is not None
        assert state.observed(*observe(known, identity(stay(1)), utc_now(), "hand"))
    go_on.set()
    (event,) = receiver.wait_for_events(1)
    assert event["data"]["new"]["residency"]["id"] == "stay-2"
    home.wait_asked(4)  # it has looked again
    assert [one["sentence"] for one in home.history()] == [event["data"]["trigger"]["sentence"]]


def test_the_service_manager_is_told(home: AgentHome) -> None:
    home.environment |= {"WATCHDOG_USEC": "200000"}
    agent = home.agent()
    agent.wait_told("READY=1")
    for _ in range(3):
        agent.wait_told("WATCHDOG=1")
    agent.process.terminate()
    agent.wait_told("STOPPING=1")
    assert agent.wait() == 0


def look(home: AgentHome) -> None:
    """Let the agent look at once; its own interval is an hour here."""
    ask(home.state_dir, "wake")


def _document(number: int) -> dict[str, object]:
    return identity(stay(number)).as_dict()


def test_the_commands_print_for_people(home: AgentHome, receiver: Receiver) -> None:
    home.configure(receiver)
    home.register("mark", "echo done; exit 3", "--tries", "1", "--on", "migrated,aborted")
    receiver.behaviour = Behaviour("failing", status=500)
    home.run("agent", "trigger", "--reason", "new board")
    home.run("agent", "run", "--once", expect=75)
    assert "on migrated, aborted; 300 s, 1 tries; by a person" in home.run("agent", "list")
    history = home.run("agent", "history")
    assert "migrated (done): new board" in history
    assert "mark, try 1: failed (exit code 3)" in history
    assert f"{receiver.url}: waiting after 1 tries" in history
    assert "it answers with status 500" in home.run("agent", "outbox")
    home.ready_agent()
    assert "1 events wait" in home.run("agent", "status")
    (entry,) = home.json("agent", "history")
    assert entry == home.history()[0]
    assert entry["runs"][0]["output"] == "done\n"
