"""Rows of the state's tables, made into values."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from guest_client.agent.model import (
    Delivery,
    Job,
    JobState,
    Known,
    NewTrigger,
    Outcome,
    Owner,
    Registration,
    Result,
    Road,
    Run,
    Trigger,
    TriggerState,
)
from guest_client.agent.phases import Phase
from guest_client.agent.settings import Program
from guest_client.identity import parse_identity

ROADS = """
SELECT url, coalesce(waiting, 0) AS waiting, coalesce(failures, 0) AS failures,
       coalesce(not_before, 0.0) AS not_before, coalesce(gone, 0) AS gone, problem
FROM (SELECT url FROM roads UNION SELECT url FROM outbox WHERE state = 'waiting')
LEFT JOIN roads USING (url)
LEFT JOIN (SELECT url, count(*) AS waiting FROM outbox WHERE state = 'waiting' GROUP BY url)
     USING (url)
ORDER BY url
"""


def registration(row: sqlite3.Row) -> Registration:
    """Read a row of ``registrations``."""
    program = Program(
        name=row["name"],
        command=tuple(json.loads(row["command"])),
        phases=tuple(Phase(phase) for phase in json.loads(row["phases"])),
        timeout=row["timeout"],
        tries=row["tries"],
        user=row["user"],
    )
    return Registration(program, Owner(row["owner"]), row["registered_at"])


def known(row: sqlite3.Row) -> Known:
    """Read the row of ``known``."""
    identity = parse_identity(row["document"])
    return Known(identity, bool(row["migrating"]), row["attempts"], row["noted_at"])


def trigger(row: sqlite3.Row) -> Trigger:
    """Read a row of ``triggers``."""
    what = NewTrigger(
        key=row["key"],
        phase=Phase(row["phase"]),
        reason=row["reason"],
        changes=tuple(json.loads(row["changes"])),
        sentence=row["sentence"],
        detected_at=row["detected_at"],
        source=row["source"],
        before=None if row["before"] is None else json.loads(row["before"]),
        after=None if row["after"] is None else json.loads(row["after"]),
    )
    return Trigger(
        seq=row["seq"],
        state=TriggerState(row["state"]),
        what=what,
        recorded_at=row["recorded_at"],
        old_agent_id=row["old_agent_id"],
        new_agent_id=row["new_agent_id"],
        planned_at=row["planned_at"],
        completed_at=row["completed_at"],
        event_id=row["event_id"],
    )


def job(row: sqlite3.Row) -> Job:
    """Read a row of ``jobs``."""
    return Job(
        trigger=row["trigger"],
        position=row["position"],
        name=row["name"],
        state=JobState(row["state"]),
        tries=row["tries"],
        tries_allowed=row["tries_allowed"],
        not_before=row["not_before"],
    )


def program_of_job(row: sqlite3.Row) -> Program:
    """Read from a row of ``jobs`` what it runs."""
    return Program(
        name=row["name"],
        command=tuple(json.loads(row["command"])),
        timeout=row["timeout"],
        tries=row["tries_allowed"],
        user=row["user"],
    )


def run(row: sqlite3.Row) -> Run:
    """Read a row of ``runs``."""
    return Run(
        id=row["id"],
        trigger=row["trigger"],
        name=row["name"],
        number=row["number"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        result=Result(
            Outcome(row["outcome"]), row["exit_code"], row["signal"], row["problem"], row["output"]
        ),
    )


def delivery(row: sqlite3.Row) -> Delivery:
    """Read a row of ``outbox``."""
    return Delivery(row["seq"], row["event_id"], row["url"], row["body"], row["tries"])


def road(row: sqlite3.Row) -> Road:
    """Read a row of :data:`ROADS`."""
    return Road(
        url=row["url"],
        waiting=row["waiting"],
        failures=row["failures"],
        not_before=row["not_before"],
        gone=bool(row["gone"]),
        problem=row["problem"],
    )


def posted(row: sqlite3.Row) -> dict[str, Any]:
    """Read a row of ``outbox`` as people see it."""
    members = ("event_id", "url", "state", "tries", "created_at", "ended_at")
    return {member: row[member] for member in members}
