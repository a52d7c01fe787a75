"""Ending on request: SIGINT, SIGTERM and SIGHUP, caught so that nothing is left half done.

Outside of :meth:`SignalCatcher.held` a signal raises :class:`~guest_client.errors.Interrupted`
where the program stands, as Ctrl-C does. Inside, it is only noted, and :meth:`SignalCatcher.check`
raises it later. The first one raised is the last one raised: cleaning up is not interrupted again.

A signal that was ignored when the client was started (``nohup``, a shell's background job) stays
ignored. Only the main thread may use this, as with Python's signals in general.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from guest_client.errors import Interrupted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalCatcher:
    """Catches the signals that ask a program to end, while its ``with`` block lasts."""

    def __init__(self) -> None:
        self.caught: list[int] = []
        """The signals that came, in order."""
        self._held = False
        self._raised = False
        self._previous: dict[int, Any] = {}
        self._reading, self._writing = -1, -1
        self._previous_wakeup = -1

    def __enter__(self) -> SignalCatcher:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._previous_wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        # Without a handler of its own, a child's end would not wake us.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _nothing)
        for signum in ENDING:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._reading)
        os.close(self._writing)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.caught.append(signum)
        if not self._held and not self._raised:
            self._raised = True
            raise Interrupted(signum)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Note signals inside, and raise nothing; :meth:`check` afterwards does."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def check(self) -> None:
        """Raise the first signal that came and was held."""
        if self.caught and not self._raised:
            self._raised = True
            raise Interrupted(self.caught[0])

    def wait(self, pid: int, timeout: float | None) -> bool:
        """Wait until a child ends (true), a signal comes or the time is up; to be used held.

        The child's exit code is not taken.
        """
        if _ended(pid):
            return True
        select.select([self._reading], [], [], timeout)
        with suppress(BlockingIOError):
            os.read(self._reading, 4096)
        return _ended(pid)


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _nothing(signum: int, frame: FrameType | None) -> None:
    """Be a handler, no more."""


def find_signal(name: str) -> signal.Signals:
    """Read a signal by name (``HUP``, ``SIGHUP``) or number; raises ``ValueError``."""
    if name.isascii() and name.isdigit():
        return signal.Signals(int(name))
    plain = name.upper()
    try:
        return signal.Signals[plain if plain.startswith("SIG") else f"SIG{plain}"]
    except KeyError:
        raise ValueError(f"{name!r} is no signal; SIGHUP is the usual one") from None
