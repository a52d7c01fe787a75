"""The outbox in the state: which event goes where, in which order, and what stands in the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guest_client.agent import rows
from guest_client.agent.database import Database, Execute
from guest_client.agent.model import Delivery, Road


class Post:
    """The events on their way."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def put(
        self, execute: Execute, event_id: str, trigger: int, body: bytes, urls: Sequence[str]
    ) -> None:
        """Put an event into the queue of each URL, as part of a transaction."""
        for url in urls:
            execute(
                "INSERT INTO outbox (event_id, url, trigger, body, state, tries,"
                " created_at) VALUES (?, ?, ?, ?, 'waiting', 0, ?)"
                " ON CONFLICT (event_id, url) DO NOTHING",
                (event_id, url, trigger, body, self._db.stamp()),
            )

    def next(self, url: str) -> Delivery | None:
        """Give the oldest undelivered event for a URL."""
        found = self._db.read(
            "SELECT * FROM outbox WHERE url = ? AND state = 'waiting' ORDER BY seq LIMIT 1", url
        )
        return rows.delivery(found[0]) if found else None

    def delivered(self, delivery: Delivery) -> None:
        """Write down that an event has arrived."""
        with self._db.transaction("delivered") as execute:
            execute(
                "UPDATE outbox SET state = 'delivered', tries = tries + 1, ended_at = ?"
                " WHERE seq = ?",
                (self._db.stamp(), delivery.seq),
            )
            execute("DELETE FROM roads WHERE url = ?", (delivery.url,))

    def failed(self, delivery: Delivery, road: Road) -> None:
        """Write down that a try failed, and how things stand with the destination now."""
        with self._db.transaction("undelivered") as execute:
            execute("UPDATE outbox SET tries = tries + 1 WHERE seq = ?", (delivery.seq,))
            execute(
                "INSERT OR REPLACE INTO roads VALUES (?, ?, ?, ?, ?)",
                (road.url, road.failures, road.not_before, road.gone, road.problem),
            )

    def road(self, url: str) -> Road:
        """Say how things stand with a destination."""
        return next((road for road in self.roads() if road.url == url), Road(url))

    def roads(self) -> list[Road]:
        """Say how things stand with every destination that has something waiting, or trouble."""
        return [rows.road(row) for row in self._db.read(rows.ROADS)]

    def events(self, seq: int | None = None) -> list[dict[str, Any]]:
        """Give the events in the outbox, of one trigger or all that wait, as people see them."""
        if seq is None:
            found = self._db.read("SELECT * FROM outbox WHERE state = 'waiting' ORDER BY seq")
        else:
            found = self._db.read("SELECT * FROM outbox WHERE trigger = ? ORDER BY seq", seq)
        return [rows.posted(row) for row in found]

    def retry(self) -> int:
        """Make every waiting event due now; gives their number."""
        with self._db.transaction("retry deliveries") as execute:
            execute("DELETE FROM roads")
            (waiting,) = execute("SELECT count(*) FROM outbox WHERE state = 'waiting'").fetchone()
        return int(waiting)

    def discard(self, event_id: str) -> int:
        """Take an event out of the outbox undelivered; gives from how many destinations' queues."""
        with self._db.transaction("discard an event") as execute:
            return execute(
                "UPDATE outbox SET state = 'discarded', ended_at = ?"
                " WHERE event_id = ? AND state = 'waiting'",
                (self._db.stamp(), event_id),
            ).rowcount
