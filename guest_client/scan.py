"""One guarded scan: read, run, read, judge; publish or discard; and again if asked.

    verdict       output                           exit code
    ------------  -------------------------------  ---------------------------------------------
    consistent    published, whole, in one step    the scanner's own (also one that is not 0)
    consistent,   discarded: a program that was    128 and the signal's number
    but killed    killed has not written all
    inconsistent  discarded; the scan is repeated  75, when all repeats were crossed, too
                  up to ``repeat`` times
    unverified    discarded, never repeated: the   69; 77 when the enabler refuses us
                  next read would fare no better
    (none)        a migration was in progress for  75: nothing was run, try later
                  longer than we may wait

Where a scan ends otherwise, the exit code is the error's (``errors.py``). Whatever happens, an
output that was there before stays as it was unless the new one is published, and the report is
written. ``keep`` gets what was discarded, if the scanner ended by itself.

Every inconsistent verdict is worth a repeat: the next attempt has both its reads after the change.
The scanner's standard input is inherited, and not rewound for a repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from guest_client.channel import Channel, Read
from guest_client.errors import GuestClientError, Interrupted, OutputError
from guest_client.guard import Guard, Outcome, Verdict
from guest_client.output import Destination, FileDestination, Spool
from guest_client.process import find_program, run
from guest_client.reactions import Reactions
from guest_client.report import Attempt, Report
from guest_client.signals import SignalCatcher
from guest_client.text import printable
from guest_client.times import rfc3339, utc_now

DEFAULT_REPEATS = 3
MIGRATION_POLL = 0.5
"""Seconds between two looks at a migration that we wait for."""
STILL_MIGRATING = "migrating"
"""The reason of the verdict when a migration outlasts the wait for its end."""

_INCONSISTENT = 75


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What a scan is to do. Times are in seconds."""

    command: tuple[str, ...]
    output: Destination
    deadline: float
    report: Destination | None = None
    keep: Destination | None = None
    repeat: int = 0
    wait_if_migrating: float | None = None


class GuardedScan:
    """Carries out a :class:`ScanRequest`; ``say`` takes each line meant for a person."""

    def __init__(
        self,
        request: ScanRequest,
        channel: Channel,
        catcher: SignalCatcher,
        reactions: Reactions,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._request = request
        self._channel = channel
        self._catcher = catcher
        self._reactions = reactions
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self.report = Report(
            command=request.command,
            enabler=str(channel.endpoint),
            destination=request.output.name,
            started=rfc3339(utc_now()),
        )

    def run(self) -> int:
        """Scan, and give the exit code. Errors are said and reported, not raised."""
        try:
            code = self._attempts()
        except Interrupted as interruption:
            code = interruption.exit_code
            self.report.interrupted_by = interruption.signal.name
            self._say(f"{interruption}; the output was discarded")
        except GuestClientError as error:
            code = error.exit_code
            self.report.error = str(error)
            self._say(str(error))
        return self._finish(code)

    def _finish(self, code: int) -> int:
        self.report.exit_code = code
        self.report.finished = rfc3339(utc_now())
        self.report.reactions = list(self._reactions.done.values())
        if self._request.report is None:
            return code
        try:
            with self._unbroken(self._request.report):
                self.report.write(self._request.report)
        except OutputError as error:
            self._say(f"the report is missing: {error}")
            return code or error.exit_code
        return code

    def _unbroken(self, target: Destination) -> AbstractContextManager[None]:
        """Keep signals from breaking what takes no time; a stream's reader may take for ever."""
        return self._catcher.held() if isinstance(target, FileDestination) else nullcontext()

    def _attempts(self) -> int:
        find_program(self._request.command[0])
        self._reactions.prepare()
        for number in range(1, self._request.repeat + 2):
            attempt = Attempt(number)
            self.report.attempts.append(attempt)
            spool = self._request.output.spool()
            try:
                code = self._attempt(attempt, spool)
            finally:
                spool.discard()
            if code is not None:
                return code
        return _INCONSISTENT

    def _attempt(self, attempt: Attempt, spool: Spool) -> int | None:
        """Make one attempt; gives the exit code, or ``None`` when it was crossed."""
        guard = Guard()
        attempt.before = self._read_before(attempt)
        if attempt.verdict is not None:
            self._say(attempt.verdict.sentence)
            return _INCONSISTENT
        attempt.verdict = guard.before(attempt.before.reading)
        if attempt.verdict is not None:
            self._say(f"{attempt.verdict.sentence}; the scan was not started")
            return _code_of(attempt.before)

        attempt.scanner = run(self._request.command, self._catcher, stdout=spool.stream)
        self._catcher.check()
        attempt.after = self._channel.read(self._request.deadline)
        attempt.verdict = guard.after(attempt.after.reading)
        attempt.output = spool.digest()

        match attempt.verdict.outcome:
            case Outcome.CONSISTENT:
                return self._stands(attempt, spool)
            case Outcome.INCONSISTENT:
                self._crossed(attempt.verdict, attempt, spool)
                return None
            case Outcome.UNVERIFIED:
                self._say(f"{attempt.verdict.sentence}; {self._discard(spool)}")
                return _code_of(attempt.after)

    def _read_before(self, attempt: Attempt) -> Read:
        """Read the identity, and again until no migration is in progress, if we are to wait."""
        patience = self._request.wait_if_migrating
        begun = self._clock()
        said = False
        while True:
            read = self._channel.read(self._request.deadline)
            attempt.waited = self._clock() - begun if said else 0.0
            if patience is None or read.identity is None or not read.identity.migrating:
                return read
            left = patience - (self._clock() - begun)
            if left <= 0:
                sentence = (
                    f"a migration is still in progress after {patience:g} s of waiting"
                    " (--wait-if-migrating); the scan was not started, run it later"
                )
                attempt.verdict = Verdict(Outcome.UNVERIFIED, STILL_MIGRATING, (), sentence, True)
                return read
            if not said:
                self._say(f"a migration is in progress; waiting up to {patience:g} s for its end")
                said = True
            self._sleep(min(MIGRATION_POLL, left))

    def _stands(self, attempt: Attempt, spool: Spool) -> int:
        assert attempt.verdict is not None
        assert attempt.scanner is not None
        if attempt.scanner.signal is not None:
            self._say(
                f"{printable(self._request.command[0])} was killed by {attempt.scanner.signal};"
                f" {self._discard(spool)}"
            )
            return attempt.scanner.shell_code
        spool.prove_room()
        with self._unbroken(self._request.output):
            self._request.output.publish(spool)
            self.report.published = True
        if attempt.verdict.migrating:
            self._say(attempt.verdict.sentence)
        return attempt.scanner.shell_code

    def _crossed(self, verdict: Verdict, attempt: Attempt, spool: Spool) -> None:
        assert attempt.before is not None
        assert attempt.after is not None
        # First of all, for this is what may not be lost.
        self._reactions.react(verdict, attempt.before.trusted(), attempt.after.trusted())
        discarded = self._discard(spool)
        left = self._request.repeat + 1 - attempt.number
        if left:
            then = f"repeating ({attempt.number} of {self._request.repeat})"
        elif self._request.repeat:
            then = f"giving up after {attempt.number} attempts"
        else:
            then = "run it again, or use --repeat-if-migrated"
        self._say(f"{verdict.sentence}; {discarded}; {then}")

    def _discard(self, spool: Spool) -> str:
        if self._request.keep is None:
            return "the output was discarded"
        self._request.keep.publish(spool)
        self.report.kept = self._request.keep.name
        return f"the output was kept in {printable(self._request.keep.name)}"


def _code_of(read: Read) -> int:
    return read.error.exit_code if read.error is not None else _INCONSISTENT
