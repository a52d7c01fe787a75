"""The feed: order, IDs, what is too old, and its end."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

from enabler.changes import EventKind
from enabler.documents import EventDocument
from enabler.feed import Feed


def tell(feed: Feed, *details: str) -> None:
    for detail in details:
        feed.tell(EventDocument(kind=EventKind.LIBVIRT_LOST, at=datetime.now(UTC), detail=detail))


def after(feed: Feed, number: int) -> list[str] | None:
    found = feed.after(number)
    return None if found is None else [json.loads(each.data)["detail"] for each in found]


def test_what_follows_an_event_while_it_is_kept() -> None:
    feed = Feed(kept=3)
    assert after(feed, 0) == []
    tell(feed, "a", "b", "c")
    assert after(feed, 0) == ["a", "b", "c"]
    tell(feed, "d")
    assert after(feed, 0) is None
    assert after(feed, 1) == ["b", "c", "d"]
    assert after(feed, 4) == []


def test_an_id_is_of_this_run_or_unknown() -> None:
    feed = Feed(run="0000")
    tell(feed, "a", "b")
    assert feed.number(feed.event_id(2)) == 2
    for unknown in ("0000-3", "ffff-1", "0000-x", "0000-", "", "1", "0000--1", "0000-" + "9" * 40):
        assert feed.number(unknown) is None


def test_who_waits_is_woken_by_news_and_by_the_end() -> None:
    async def scenario() -> None:
        feed = Feed()
        readers = [asyncio.create_task(feed.wait(60)) for _ in range(3)]
        await asyncio.sleep(0)
        tell(feed, "a")
        await asyncio.gather(*readers)
        reader = asyncio.create_task(feed.wait(60))
        await asyncio.sleep(0)
        feed.close()
        await reader
        await feed.wait(60)

    asyncio.run(scenario())


def test_a_document_is_made_when_it_is_first_wanted() -> None:
    feed, made = Feed(), []

    def make() -> EventDocument:
        made.append(1)
        return EventDocument(kind=EventKind.LIBVIRT_LOST, at=datetime.now(UTC), detail="a")

    feed.tell_of(EventKind.LIBVIRT_LOST, make)
    assert made == []
    assert after(feed, 0) == after(feed, 0) == ["a"]
    assert made == [1]
