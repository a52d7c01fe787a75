"""What the commands print: documents for ``--json``, and the same as text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guest_client.agent import agent_id as ids
from guest_client.agent.model import Registration, Road, Run, Trigger
from guest_client.agent.state import State
from guest_client.guard import describe_machine
from guest_client.text import printable


def registration(found: Registration) -> dict[str, Any]:
    """Give a registered program."""
    program = found.program
    return {
        "name": program.name,
        "command": list(program.command),
        "on": [str(phase) for phase in program.phases],
        "timeout": program.timeout,
        "tries": program.tries,
        "user": program.user,
        "owner": str(found.owner),
        "registered_at": found.registered_at,
    }


def registrations_text(found: Sequence[Registration]) -> str:
    """Print registered programs, in the order in which they are run."""
    if not found:
        return "no program is registered"
    lines = []
    for entry in found:
        program = entry.program
        user = f", as {program.user}" if program.user else ""
        lines.append(
            f"{program.name}: {printable(shlex.join(program.command))}\n"
            f"    on {', '.join(program.phases)}; {program.timeout:g} s, {program.tries} tries"
            f"{user}; by {'a person' if entry.owner == 'person' else 'the running agent'}"
        )
    return "\n".join(lines)


def agent_id(found: ids.AgentId) -> dict[str, Any]:
    """Give an agent ID."""
    return {
        "id": found.id,
        "previous": found.previous,
        "trigger": found.trigger,
        "generated_at": found.generated_at,
    }


def run(found: Run) -> dict[str, Any]:
    """Give one run of a program."""
    return {
        "name": found.name,
        "try": found.number,
        "started_at": found.started_at,
        "ended_at": found.ended_at,
        "outcome": str(found.result.outcome),
        "exit_code": found.result.exit_code,
        "signal": found.result.signal,
        "problem": found.result.problem,
        "output": found.result.output,
    }


def entry(state: State, found: Trigger) -> dict[str, Any]:
    """Give a trigger and what became of it."""
    what = found.what
    return {
        "key": what.key,
        "state": str(found.state),
        "phase": str(what.phase),
        "reason": what.reason,
        "sentence": what.sentence,
        "source": what.source,
        "detected_at": what.detected_at,
        "recorded_at": found.recorded_at,
        "planned_at": found.planned_at,
        "completed_at": found.completed_at,
        "agent_id": {"old": found.old_agent_id, "new": found.new_agent_id},
        "programs": [
            {"name": job.name, "state": str(job.state), "tries": job.tries}
            for job in state.jobs(found.seq)
        ],
        "runs": [run(one) for one in state.runs(found.seq)],
        "event_id": found.event_id,
        "deliveries": state.post.events(found.seq),
    }


def history_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """Print triggers, the latest last."""
    if not entries:
        return "nothing has happened yet"
    lines = []
    for one in entries:
        lines.append(
            f"{one['detected_at']}  {one['phase']} ({one['state']}): {printable(one['sentence'])}"
        )
        old, new = one["agent_id"]["old"], one["agent_id"]["new"]
        if one["completed_at"] and old != new:
            lines.append(f"    agent ID {old or 'not known'}, then {new or 'not known'}")
        for each in one["runs"]:
            problem = f" ({printable(each['problem'])})" if each["problem"] else ""
            lines.append(
                f"    {each['started_at']}  {each['name']}, try {each['try']}:"
                f" {each['outcome']}{problem}"
            )
        lines += [
            f"    {each['ended_at'] or each['created_at']}  {each['url']}: {each['state']}"
            f" after {each['tries']} tries"
            for each in one["deliveries"]
        ]
    return "\n".join(lines)


def status(
    state_dir: Path, running: bool, answer: Mapping[str, Any], state: State, id_file: Path
) -> dict[str, Any]:
    """Give how things stand, with what a running agent answered."""
    known = state.known()
    configured = answer.get("destinations")
    return {
        "running": running,
        "pid": answer.get("pid"),
        "version": answer.get("version"),
        "started_at": answer.get("started_at"),
        "state_dir": str(state_dir),
        "watch": answer.get("watch"),
        "agent_id": ids.read_id(id_file),
        "machine": None if known is None else describe_machine(known.identity),
        "component_id": None if known is None else known.identity.component_id,
        "residency_id": None if known is None else known.identity.residency.id,
        "migrating": None if known is None else known.migrating,
        "registered": [r.program.name for r in state.registry.all()],
        "unfinished_triggers": len(state.unfinished()),
        "destinations": [
            {
                "url": road.url,
                "waiting": road.waiting,
                "failures": road.failures,
                "gone": road.gone,
                "problem": road.problem,
                "configured": None if configured is None else road.url in configured,
            }
            for road in _all_roads(state, configured or ())
        ],
    }


def _all_roads(state: State, configured: Sequence[str]) -> list[Road]:
    roads = state.post.roads()
    troubled = {road.url for road in roads}
    return [*roads, *(Road(url) for url in configured if url not in troubled)]


def status_text(found: Mapping[str, Any]) -> str:
    """Print how things stand."""
    watch = found["watch"] or {}
    if found["running"]:
        agent = f"runs, process {found['pid']}, since {found['started_at']}"
    else:
        agent = "does not run"
    if not watch.get("on"):
        seen = "off"
    elif watch.get("error"):
        seen = f"no trusted answer: {watch['error']}"
    else:
        seen = f"on; last change read at {watch.get('read_at') or 'no time yet'}"
    machine = found["machine"] or "not known"
    if found["migrating"]:
        machine += " (a migration away is in progress)"
    rows = [
        ("agent", agent),
        ("state", found["state_dir"]),
        ("watch", seen),
        ("agent ID", found["agent_id"] or "none yet"),
        ("machine", machine),
        ("registered", ", ".join(found["registered"]) or "nothing"),
        ("unfinished", f"{found['unfinished_triggers']} triggers"),
        *(("destination", _destination_text(each)) for each in found["destinations"]),
    ]
    return "\n".join(f"{name:<12} {printable(str(value))}" for name, value in rows)


def outbox_text(waiting: Sequence[Mapping[str, Any]], roads: Sequence[Road]) -> str:
    """Print what waits to be delivered, and why."""
    if not waiting:
        return "nothing waits"
    why = {road.url: road.problem for road in roads}
    return "\n".join(
        f"{each['created_at']}  {each['event_id']}  {each['url']}: {each['tries']} tries"
        + (f"; {printable(str(why[each['url']]))}" if why.get(each["url"]) else "")
        for each in waiting
    )


def _destination_text(each: Mapping[str, Any]) -> str:
    words = [f"{each['url']}: {each['waiting']} events wait"]
    if each["gone"]:
        words.append("it wants no more (410); `agent outbox --retry` goes on")
    elif each["problem"]:
        words.append(f"{each['problem']} ({each['failures']} tries)")
    if each["configured"] is False:
        words.append("no longer in the configuration, so that nothing is sent")
    return "; ".join(words)
