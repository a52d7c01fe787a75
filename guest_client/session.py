"""What every guarded scan shares: reading, waiting for a migration's end, ending with a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from guest_client.attest import Challenge, first_challenge
from guest_client.channel import Channel, Read
from guest_client.errors import GuestClientError, Interrupted, OutputError
from guest_client.guard import Outcome, Verdict
from guest_client.output import Destination, FileDestination
from guest_client.reactions import Reactions
from guest_client.report import Report
from guest_client.signals import SignalCatcher
from guest_client.times import rfc3339, utc_now

MIGRATION_POLL = 0.5
"""Seconds between two looks at a migration that we wait for."""
STILL_MIGRATING = "migrating"
"""The reason of the verdict when a migration outlasts the wait for its end."""
INCONSISTENT = 75
"""RC_INCONSISTENT_OUTPUT, EX_TEMPFAIL."""


@dataclass(frozen=True)
class Terms:
    """How a scan is guarded. Times are in seconds."""

    deadline: float
    report: Destination | None = None
    repeat: int = 0
    wait_if_migrating: float | None = None
    attest: bool = False
    """Whether reads bring attestations."""
    nonce: str | None = None
    """The auditor's, for the attestation before the scan."""


@dataclass(frozen=True)
class Settled:
    """A read, and how long we waited for a migration's end before it.

    ``still`` is the verdict when the migration outlasted our patience: nothing is to be started.
    """

    read: Read
    waited: float
    still: Verdict | None


class Session:
    """One scan's dealings with the enabler, with signals, and with the person who started it.

    ``say`` takes each line meant for a person; ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        terms: Terms,
        channel: Channel,
        catcher: SignalCatcher,
        reactions: Reactions,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.terms = terms
        self.catcher = catcher
        self.reactions = reactions
        self.say = say
        self.enabler = str(channel.endpoint)
        self._channel = channel
        self._clock = clock
        self._sleep = sleep

    def read(self, challenge: Challenge | None = None) -> Read:
        """Read the identity once; with a challenge, out of an attestation."""
        return self._channel.read(self.terms.deadline, challenge)

    def settle(self) -> Settled:
        """Read the identity, and again until no migration is in progress, if we are to wait."""
        patience = self.terms.wait_if_migrating
        begun = self._clock()
        said = False
        while True:
            read = self.read(first_challenge(self.terms.nonce) if self.terms.attest else None)
            waited = self._clock() - begun if said else 0.0
            if patience is None or read.identity is None or not read.identity.migrating:
                return Settled(read, waited, None)
            left = patience - (self._clock() - begun)
            if left <= 0:
                sentence = (
                    f"a migration is still in progress after {patience:g} s of waiting"
                    " (--wait-if-migrating); the scan was not started, run it later"
                )
                still = Verdict(Outcome.UNVERIFIED, STILL_MIGRATING, (), sentence, True)
                return Settled(read, waited, still)
            if not said:
                self.say(f"a migration is in progress; waiting up to {patience:g} s for its end")
                said = True
            self._sleep(min(MIGRATION_POLL, left))

    def unbroken(self, target: Destination) -> AbstractContextManager[None]:
        """Keep signals from breaking what takes no time; a stream's reader may take for ever."""
        return self.catcher.held() if isinstance(target, FileDestination) else nullcontext()

    def conclude(self, work: Callable[[], int], report: Report) -> int:
        """Do the work, write the report whatever comes of it, and give the exit code.

        Errors are said and reported, not raised.
        """
        try:
            code = work()
        except Interrupted as interruption:
            code = interruption.exit_code
            report.interrupted_by = interruption.signal.name
            self.say(f"{interruption}; the output was discarded")
        except GuestClientError as error:
            code = error.exit_code
            report.error = str(error)
            self.say(str(error))
        report.exit_code = code
        report.finished = rfc3339(utc_now())
        report.reactions = list(self.reactions.done.values())
        if self.terms.report is None:
            return code
        try:
            with self.unbroken(self.terms.report):
                report.write(self.terms.report)
        except OutputError as error:
            self.say(f"the report is missing: {error}")
            return code or error.exit_code
        return code


def code_without(read: Read) -> int:
    """Give the exit code for a read that brought no trusted answer."""
    return read.error.exit_code if read.error is not None else INCONSISTENT
