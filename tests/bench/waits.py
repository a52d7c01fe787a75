"""5,000 requests that wait on one enabler: what they cost, how soon a change wakes them all, and
whether any is lost while VMs come and go.

Each VM may have 8 requests that wait, so there are 625 VMs. The requests come over the admin
socket, where they are counted by VM as well.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure, at_most, say
from tests.bench.waits_host import vm_uuid

VMS = 625
PER_VM = 8
WAITS = VMS * PER_VM
STORM = 200
"""Stays that end and begin anew while all wait."""

_ETAG = re.compile(rb"^etag: (.*?)\r$", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)


@dataclass
class _Waiter:
    """One connection: it learns the state, then waits for the next, for ever."""

    socket: Path
    vm: str
    etag: str = ""
    stay: str = ""
    learnt: list[tuple[str, float]] = field(default_factory=list)
    """Each stay that it learnt of, and when."""
    answers: int = 0
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    woken_at: float = 0.0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Open unless it is to be measured how soon all are woken, and not how soon all wait again."""

    async def live(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            while True:
                known = f"If-None-Match: {self.etag}\r\nPrefer: wait=280\r\n" if self.etag else ""
                request = f"GET /v1/vms/{self.vm}/identity HTTP/1.1\r\nHost: x\r\n{known}\r\n"
                writer.write(request.encode())
                if self.etag:
                    self.waiting.set()
                head = await reader.readuntil(b"\r\n\r\n")
                self.woken_at = time.monotonic()
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.answers += 1
                self.waiting.clear()
                tag = _ETAG.search(head)
                if b" 200 " not in head[:16] or tag is None:
                    self.etag = ""  # the VM is between two stays: look again
                    await asyncio.sleep(0.02)
                    continue
                self.etag = tag[1].decode()
                stay = json.loads(body)["residency"]["id"]
                await self.gate.wait()
                if stay != self.stay:
                    self.stay = stay
                    self.learnt.append((stay, self.woken_at))
        finally:
            writer.close()


def run() -> list[Figure]:
    """Measure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < WAITS + 500:
        raise RuntimeError(f"needs {WAITS + 500} open files; raise the limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, WAITS + 500), hard))
    with tempfile.TemporaryDirectory() as folder:
        host = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.waits_host", folder, str(VMS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            return asyncio.run(_measure(host, Path(folder, "admin.sock")))
        finally:
            assert host.stdin is not None
            host.stdin.close()
            try:
                host.wait(30)
            except subprocess.TimeoutExpired:
                host.kill()
                host.wait()


async def _measure(host: subprocess.Popen[str], socket: Path) -> list[Figure]:
    gate = asyncio.Event()
    gate.set()
    waiters = [_Waiter(socket, vm_uuid(number % VMS), gate=gate) for number in range(WAITS)]
    await _ready(socket)
    # One answer each first, so that what an answer costs once is not counted as a wait's.
    for waiter in waiters[:VMS]:
        await _state(socket, waiter.vm)
    before = _resident(host.pid)
    tasks = []
    for begin in range(0, WAITS, 200):
        tasks += [asyncio.create_task(each.live()) for each in waiters[begin : begin + 200]]
        await asyncio.gather(*(each.waiting.wait() for each in waiters[begin : begin + 200]))
    await _settle(waiters)
    each = (_resident(host.pid) - before) / WAITS
    say(f"{WAITS} wait: {each:.1f} KiB each; the enabler had {before / 1024:.0f} MiB without")

    answered = [waiter.answers for waiter in waiters]
    gate.clear()
    changed = (await _order(host, "capacity"))["at"]
    await _until(lambda: all(w.answers > n for w, n in zip(waiters, answered, strict=True)))
    gate.set()
    woken = sorted(waiter.woken_at - changed for waiter in waiters)
    say(f"woken: median {statistics.median(woken):.2f} s, last {woken[-1]:.2f} s")
    await _settle(waiters)

    before_storm = _resident(host.pid)
    began = (await _order(host, f"storm {STORM}"))["began"]
    await _settle(waiters)
    present = {vm: await _state(socket, vm) for vm in {waiter.vm for waiter in waiters}}
    await _until(lambda: all(waiter.stay == present[waiter.vm] for waiter in waiters))
    storm = sorted(_delays(waiters, began))
    grown = (_resident(host.pid) - before_storm) / WAITS
    lost = sum(task.done() for task in tasks)
    p99 = storm[int(len(storm) * 0.99)]
    say(
        f"storm of {len(began)} changes: {len(storm)} wake-ups, median "
        f"{statistics.median(storm) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, last "
        f"{storm[-1] * 1000:.0f} ms; memory {grown:+.1f} KiB per wait; {lost} lost"
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    name = f"{WAITS:,} waiting requests"
    return [
        Figure("waits", f"{name}: memory of each", each * 1.024, "kB", aim=at_most(20)),
        Figure("waits", f"{name}: the last is woken after", woken[-1], "s", aim=at_most(1)),
        Figure(
            "waits", f"{name}, VMs come and go: woken after, median", statistics.median(storm), "s"
        ),
        Figure("waits", f"{name}, VMs come and go: woken after, p99", p99, "s"),
        Figure("waits", f"{name}, VMs come and go: lost", lost, "", aim=at_most(0)),
    ]


def _delays(waiters: list[_Waiter], began: list[tuple[str, float]]) -> list[float]:
    """From a stay's begin to when each waiter of that VM knew of it.

    A VM that began several stays in quick succession is told of the last: each waiter's news is
    taken for the latest stay that had begun by then.
    """
    starts: dict[str, list[float]] = {}
    for vm, at in began:
        starts.setdefault(vm, []).append(at)
    found = []
    for waiter in waiters:
        for _, at in waiter.learnt[1:]:
            earlier = [start for start in starts.get(waiter.vm, []) if start <= at]
            if earlier:
                found.append(at - earlier[-1])
    return found


async def _ready(socket: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            if (await _get(socket, "/readyz"))[0].split()[1] == b"200":
                return
        except OSError:
            pass
        assert time.monotonic() < end, "the enabler does not become ready"
        await asyncio.sleep(0.2)


async def _state(socket: Path, vm: str) -> str:
    _, body = await _get(socket, f"/v1/vms/{vm}/identity")
    found: dict[str, Any] = json.loads(body)
    stay: str = found["residency"]["id"]
    return stay


async def _get(socket: Path, path: str) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head, body


async def _order(host: subprocess.Popen[str], order: str) -> dict[str, Any]:
    assert host.stdin is not None
    assert host.stdout is not None
    host.stdin.write(order + "\n")
    host.stdin.flush()
    answer: dict[str, Any] = json.loads(await asyncio.to_thread(host.stdout.readline))
    return answer


async def _settle(waiters: list[_Waiter]) -> None:
    """Wait until all wait, and the enabler has been quiet for a moment."""
    count = -1
    while count != (count := sum(waiter.answers for waiter in waiters)):
        await _until(lambda: all(waiter.waiting.is_set() for waiter in waiters))
        await asyncio.sleep(2)


async def _until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in a minute"
        await asyncio.sleep(0.05)


def _resident(pid: int) -> int:
    """Resident memory, KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    from tests.bench.figures import table

    print(table(run()))
