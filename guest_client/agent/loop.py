"""The loop: make the programs known; wait for a trigger; run each program; tell; wait again; end.

What wakes it: a scan's trigger in the folder (inotify), the watch, a command (``control.py``), the
time of a retry, and once a minute, should any of these have been missed. It never polls busily.

At the start nothing is acted on before the enabler has been asked once, or the deadline for that
has passed: a clone must know that it is one before it takes its original's triggers for its own.

On SIGTERM, SIGINT, SIGHUP or ``agent stop``: a program that runs is ended and will be run again by
the next agent; what this agent registered is deregistered; what is not finished or not delivered
stays for the next one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guest_client.agent.control import ControlServer
from guest_client.agent.deliver import Courier
from guest_client.agent.inotify import FolderWatch
from guest_client.agent.lookout import Lookout
from guest_client.agent.outbox import Sender
from guest_client.agent.settings import Destination, Program
from guest_client.agent.spool import Spool
from guest_client.agent.state import State
from guest_client.agent.systemd import TARGET_PROGRAM, Notifier, is_booted
from guest_client.agent.work import Work
from guest_client.endpoint import Endpoint
from guest_client.errors import StateError
from guest_client.times import rfc3339, utc_now
from guest_client.version import client_version

LOOK_EVERY = 60.0
LOOK_EVERY_UNTOLD = 2.0
"""Seconds between two looks at the scans' folder: where the kernel tells, and where it does not."""
LEFT_OVER = 75
"""Exit code of ``--once`` when an event could not be delivered (EX_TEMPFAIL)."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Orders:
    """What an agent is to do. ``interval`` and ``deadline`` are in seconds."""

    state_dir: Path
    enabler: Endpoint
    deadline: float
    interval: float
    programs: tuple[Program, ...]
    destinations: tuple[Destination, ...]
    agent_id_file: Path
    watch: bool = False
    once: bool = False


class Agent:
    """One agent's life, to be made inside a running loop. The state and its lock are the caller's.

    Making one reads the destinations' files: raises :class:`ConfigurationError`.
    """

    def __init__(self, orders: Orders, state: State, say: Callable[[str], None]) -> None:
        self._orders = orders
        self._state = state
        self._say = say
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._spool = Spool(orders.state_dir, say, utc_now)
        self._notifier = Notifier()
        self._started_at = rfc3339(utc_now())
        self._senders = [Sender(destination) for destination in orders.destinations]
        self._couriers = [Courier(state, sender, say) for sender in self._senders]
        self._work = Work(
            state,
            orders.agent_id_file,
            [sender.url for sender in self._senders],
            self._stop,
            say,
            completed=self._wake_couriers,
        )
        self._lookout = Lookout(
            state,
            orders.enabler,
            orders.deadline,
            orders.interval,
            say,
            self._wake.set,
            watching=orders.watch,
        )

    async def run(self) -> int:
        """Live; gives the exit code. Raises :class:`StateError`."""
        async with AsyncExitStack() as stack:
            for sender in self._senders:
                await stack.enter_async_context(sender)
            self._state.check()
            self._spool.prepare()
            self._catch_signals(stack)
            control = ControlServer(
                self._orders.state_dir,
                {"status": self._status, "wake": self._look, "stop": self._end},
            )
            await control.open()
            stack.push_async_callback(control.close)
            told = self._watch_folder(stack)
            self._make_known()
            try:
                self._notifier.tell(READY="1", STATUS="waiting for a trigger")
                return await self._live(LOOK_EVERY if told else LOOK_EVERY_UNTOLD)
            finally:
                self._notifier.tell(STOPPING="1")
                self._deregister()

    async def _live(self, look_every: float) -> int:
        if self._state.known() is None and not self._orders.once:
            self._lookout.oriented.set()  # there is nothing that we could be a clone of
        main = asyncio.create_task(self._once() if self._orders.once else self._loop(look_every))
        helpers: list[Coroutine[Any, Any, None]] = [self._lookout.listen()]
        if not self._orders.once:
            helpers += [courier.carry_on() for courier in self._couriers]
        if self._notifier.watchdog is not None:
            helpers.append(self._give_signs_of_life(self._notifier.watchdog / 2))
        tasks = [main, *(asyncio.create_task(helper) for helper in helpers)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        return main.result()

    async def _loop(self, look_every: float) -> int:
        await self._happens(self._lookout.oriented)
        while not self._stop.is_set():
            self._wake.clear()
            self._spool.take_in(self._state)
            rest = await self._work.until_rest()
            self._notifier.tell(STATUS=self._in_a_line())
            left = look_every
            if rest.until is not None:
                left = min(left, max(0.0, rest.until - time.time()))
            await self._happens(self._wake, left)
        return 0

    async def _once(self) -> int:
        await self._happens(self._lookout.oriented)
        self._spool.take_in(self._state)
        while (until := (await self._work.until_rest()).until) is not None:
            await self._happens(self._wake, max(0.0, until - time.time()))
            self._wake.clear()
        if not self._stop.is_set():
            for courier in self._couriers:
                await courier.carry(at_once=True)
        return LEFT_OVER if any(road.waiting for road in self._state.post.roads()) else 0

    async def _happens(self, event: asyncio.Event, limit: float | None = None) -> None:
        """Wait until something happens, or the time is up, or we are told to stop."""
        waits = [asyncio.ensure_future(e.wait()) for e in (event, self._stop)]
        try:
            await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _make_known(self) -> None:
        last = (TARGET_PROGRAM,) if is_booted() else ()
        for name in self._state.registry.begin(self._orders.programs, last):
            self._say(f"{name} is what a person has registered, not what the configuration says")
        self._state.forget_old()
        known = [
            f"{r.program.name} ({', '.join(r.program.phases)})" for r in self._state.registry.all()
        ]
        self._say(f"the registered programs: {'; '.join(known) or 'none'}")

    def _deregister(self) -> None:
        # When it is the state that failed, that is the error to tell; the next agent begins anew.
        with suppress(StateError):
            self._state.registry.end()

    def _watch_folder(self, stack: AsyncExitStack) -> bool:
        """Be woken when a scan leaves a trigger; false if the kernel doesn't tell."""
        folder = FolderWatch(self._spool.folder)
        stack.callback(folder.close)
        if folder.fd is None:
            return False

        def come() -> None:
            folder.take()
            self._wake.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(folder.fd, come)
        stack.callback(loop.remove_reader, folder.fd)
        return True

    def _catch_signals(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        for signum in ENDING:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                loop.add_signal_handler(signum, self._stop.set)
                stack.callback(loop.remove_signal_handler, signum)

    async def _give_signs_of_life(self, interval: float) -> None:
        while True:
            self._notifier.tell(WATCHDOG="1")
            await asyncio.sleep(interval)

    def _wake_couriers(self) -> None:
        for courier in self._couriers:
            courier.wake.set()

    def _in_a_line(self) -> str:
        unfinished = len(self._state.unfinished())
        waiting = sum(road.waiting for road in self._state.post.roads())
        return f"{unfinished} triggers unfinished, {waiting} events not delivered"

    def _look(self) -> dict[str, Any]:
        self._wake.set()
        self._lookout.look()
        self._wake_couriers()
        return {"done": True}

    def _end(self) -> dict[str, Any]:
        self._stop.set()
        return {"done": True}

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "version": client_version(),
            "started_at": self._started_at,
            "watch": self._lookout.status(),
            "destinations": [sender.url for sender in self._senders],
        }
