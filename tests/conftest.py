"""For all tests."""

from __future__ import annotations

import signal

import hypothesis

# A slow machine is no failure, and no test here is about time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure() -> None:
    """Let tests, and what they start, be interrupted.

    A shell starts its background jobs deaf to Ctrl-C, and nohup(1) those that it runs to SIGHUP; so
    would be every program that a test starts there and wants to signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
