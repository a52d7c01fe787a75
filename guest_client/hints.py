"""What makes a guest look at once: hints that its machine may be another. They carry no truth.

- :class:`Announcement`: QEMU asks the virtio network card of a guest that has just arrived to
  announce itself (``VIRTIO_NET_S_ANNOUNCE``, virtio 1.2, 5.1.6.5.4). The guest's kernel does so by
  a gratuitous ARP, and tells it to whoever listens to ``RTNLGRP_LINK``: an ``RTM_NEWLINK`` with
  ``IFLA_EVENT`` = ``IFLA_EVENT_NOTIFY_PEERS`` (linux/if_link.h). No privilege is needed, and
  nothing is polled.
- :class:`ClockStep`: somebody set the time of day, as is done after a pause or a restore, or the
  system was resumed (timerfd_create(2), ``TFD_TIMER_CANCEL_ON_SET``). A live migration by itself
  steps no clock.
- :class:`Waker`: another thread has a reason of its own.

Each is something to poll(2) for, and says with ``take`` whether what came was a hint. Where the
kernel offers one of the first two not, it is silent for ever.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

_RTMGRP_LINK = 1
_RTM_NEWLINK = 16
_IFLA_EVENT = 44
_NOTIFY_PEERS = struct.pack("=I", 4)  # IFLA_EVENT_NOTIFY_PEERS
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_IFINFOMSG = 16
_ATTRIBUTE = struct.Struct("=HH")  # rtattr
_TYPE_MASK = 0x3FFF

QUIET = 0.8
"""Seconds after an announcement in which further ones are the same: QEMU sends five in 0.55 s."""


class Waker:
    """Lets one thread wake another."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Not sooner: another thread may wake us while we end.
        weakref.finalize(self, _close, self._reading, self._writing)

    def fileno(self) -> int:
        """What to poll."""
        return self._reading

    def wake(self) -> None:
        """Wake it: now, or when it next looks."""
        with suppress(BlockingIOError):  # it is full of wishes to be woken
            os.write(self._writing, b".")

    def take(self) -> bool:
        """Whether somebody woke us since the last time."""
        woken = False
        with suppress(BlockingIOError):
            while os.read(self._reading, 4096):
                woken = True
        return woken


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class Announcement:
    """Hears when the guest announces itself to a network that is new to it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._socket: socket.socket | None = None
        with suppress(OSError):
            made = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            try:
                made.bind((0, _RTMGRP_LINK))
            except OSError:
                made.close()
                raise
            self._socket = made

    def fileno(self) -> int:
        """What to poll; -1 is nothing."""
        return -1 if self._socket is None else self._socket.fileno()

    def take(self) -> bool:
        """Whether an announcement came since the last time, and not close upon another."""
        heard = False
        while self._socket is not None:
            try:
                heard |= announces(self._socket.recv(1 << 16))
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more came than there was room for, perhaps an announcement
                heard = True
                break
        now = self._clock()
        if not heard or (self._last is not None and now - self._last < QUIET):
            return False
        self._last = now
        return True

    def close(self) -> None:
        """Give up what it holds."""
        if self._socket is not None:
            self._socket.close()


class ClockStep:
    """Notices that the time of day was set, or that the system was resumed."""

    def __init__(self) -> None:
        self._fd = -1
        with suppress(OSError, AttributeError):
            self._arm()

    def _arm(self) -> None:
        import ctypes  # os.timerfd_create is there from Python 3.13 on

        libc = ctypes.CDLL(None, use_errno=True)
        if self._fd < 0:
            self._fd = libc.timerfd_create(time.CLOCK_REALTIME, os.O_CLOEXEC | os.O_NONBLOCK)
        absolute, cancel_on_set = 1, 2
        # struct itimerspec: no interval, and a time that never comes.
        never = (ctypes.c_long * 4)(0, 0, 1 << 31, 0)
        if self._fd < 0 or libc.timerfd_settime(self._fd, absolute | cancel_on_set, never, None):
            self.close()

    def fileno(self) -> int:
        """What to poll; -1 is nothing."""
        return self._fd

    def take(self) -> bool:
        """Whether the clock was set since the last time."""
        if self._fd < 0:
            return False
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return False
        except OSError:  # ECANCELED
            self._arm()
            return True
        self._arm()
        return False

    def close(self) -> None:
        """Give up what it holds."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def announces(messages: bytes) -> bool:
    """Whether there is an announcement among these netlink messages. Pure."""
    while len(messages) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(messages)
        if length < _HEADER.size:
            return False
        if kind == _RTM_NEWLINK and _is_announcement(messages[_HEADER.size + _IFINFOMSG : length]):
            return True
        messages = messages[(length + 3) & ~3 :]
    return False


def _is_announcement(attributes: bytes) -> bool:
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if length < _ATTRIBUTE.size:
            return False
        if kind & _TYPE_MASK == _IFLA_EVENT:
            value = attributes[_ATTRIBUTE.size : length]
            return value == _NOTIFY_PEERS
        attributes = attributes[(length + 3) & ~3 :]
    return False
