"""Waiting for a change: held until the state is another, answered at once then, bounded."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import libvirt
import pytest

from enabler.api import waiting
from enabler.errors import TooManyWaits
from tests.api.running import DEFAULT_VM, Enabler, eventually

PATH = f"/v1/vms/{DEFAULT_VM}/identity"
LONG = "wait=60"


@pytest.mark.parametrize(
    ("prefer", "wait", "expected"),
    [
        (None, None, 0),
        ("wait=5", None, 5),
        ("respond-async, WAIT = 5", None, 5),
        ('wait="5"; foo', None, 5),
        ("wait=5", 7, 7),
        (None, 7, 7),
        ("wait=9999", None, waiting.LONGEST),
        ("wait=-1", None, 0),
        ("wait=soon", None, 0),
        ("await=5", None, 0),
        ("wait=5x", None, 0),
    ],
)
def test_for_how_long(prefer: str | None, wait: int | None, expected: int) -> None:
    assert waiting.seconds(prefer, wait) == expected


def test_places_are_bounded_and_given_back() -> None:
    waits = waiting.Waits(per_caller=1, in_all=2)
    with waits.place("a"):
        with pytest.raises(TooManyWaits), waits.place("a"):
            pass
        with waits.place("b"), pytest.raises(TooManyWaits), waits.place("c"):
            pass
    with waits.place("a"):
        pass


def waiting_for(enabler: Enabler, etag: str, pool: ThreadPoolExecutor) -> Future[httpx.Response]:
    def ask() -> httpx.Response:
        transport = httpx.HTTPTransport(uds=str(enabler.socket))
        with httpx.Client(transport=transport, base_url="http://enabler", timeout=70) as client:
            return client.get(PATH, headers={"If-None-Match": etag, "Prefer": LONG})

    return pool.submit(ask)


def test_a_change_ends_the_wait(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    etag = enabler.get(PATH).headers["etag"]
    with ThreadPoolExecutor() as pool:
        answer = waiting_for(enabler, etag, pool)
        domain = hypervisor.lookupByUUIDString(DEFAULT_VM)
        domain.suspend()  # no change of the document
        domain.resume()
        assert not answer.done()
        domain.destroy()
        domain.create()
        changed = answer.result(20)
    # Either the moment in between is told, when the VM was on no host, or the new stay.
    assert changed.status_code in (200, 404)
    assert changed.headers.get("etag") != etag


def test_a_vm_that_is_gone_is_told_at_once(
    enabler: Enabler, hypervisor: libvirt.virConnect
) -> None:
    etag = enabler.get(PATH).headers["etag"]
    with ThreadPoolExecutor() as pool:
        answer = waiting_for(enabler, etag, pool)
        hypervisor.lookupByUUIDString(DEFAULT_VM).destroy()
        assert answer.result(20).status_code == 404


def test_no_change_is_304_in_the_end(enabler: Enabler) -> None:
    etag = enabler.get(PATH).headers["etag"]
    answer = enabler.get(f"{PATH}?wait=1", **{"If-None-Match": etag})
    assert answer.status_code == 304
    assert answer.headers["preference-applied"] == "wait=1"


def test_who_knows_another_state_does_not_wait(enabler: Enabler) -> None:
    answer = enabler.get(PATH, **{"If-None-Match": '"other"', "Prefer": LONG})
    assert answer.status_code == 200
    assert "preference-applied" not in answer.headers


def test_a_wait_that_is_no_number(enabler: Enabler) -> None:
    answer = enabler.get(f"{PATH}?wait=soon")
    assert answer.status_code == 400
    assert answer.json()["type"] == "/problems/bad-request"


def test_one_caller_too_many_is_refused_and_hanging_up_gives_the_place_back(
    enabler: Enabler,
) -> None:
    etag = enabler.get(PATH).headers["etag"]

    async def hold() -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(uds=str(enabler.socket))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://enabler", timeout=70
        ) as client:
            return await client.get(PATH, headers={"If-None-Match": etag, "Prefer": LONG})

    async def crowd() -> None:
        held = [asyncio.create_task(hold()) for _ in range(waiting.PER_CALLER + 1)]
        done, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        [refused] = [task.result() for task in done]
        assert refused.status_code == 429
        assert refused.json()["type"] == "/problems/too-many-waits"
        assert "retry-after" in refused.headers
        for task in held:
            task.cancel()

    asyncio.run(crowd())
    # All have hung up: there is room again.
    eventually(lambda: enabler.get(f"{PATH}?wait=1", **{"If-None-Match": etag}).status_code == 304)


def test_the_service_ends_while_requests_wait(
    hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    running = Enabler(tmp_path)
    with ThreadPoolExecutor() as pool:
        with running.running():
            etag = running.get(PATH).headers["etag"]
            answer = waiting_for(running, etag, pool)
            assert running.get("/healthz").status_code == 200
        with pytest.raises(httpx.HTTPError):
            answer.result(20).raise_for_status()
