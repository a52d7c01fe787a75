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

from dataclasses import dataclass

from guest_client.attest import Challenge, second_challenge
from guest_client.errors import OutputWriteError
from guest_client.guard import Guard, Verdict
from guest_client.output import Destination, Spool
from guest_client.process import find_program, run
from guest_client.report import Attempt, ScanReport
from guest_client.session import INCONSISTENT, Session, code_without
from guest_client.text import printable
from guest_client.times import rfc3339, utc_now


@dataclass(frozen=True)
class ScanRequest:
    """What a scan is to do."""

    command: tuple[str, ...]
    output: Destination
    keep: Destination | None = None


class GuardedScan:
    """Carries out a :class:`ScanRequest`."""

    def __init__(self, request: ScanRequest, session: Session) -> None:
        self._request = request
        self._session = session
        self._say = session.say
        self.report = ScanReport(
            command=request.command,
            enabler=session.enabler,
            destination=request.output.name,
            started=rfc3339(utc_now()),
            attested=session.terms.attest,
        )

    def run(self) -> int:
        """Scan, and give the exit code. Errors are said and reported, not raised."""
        return self._session.conclude(self._attempts, self.report)

    def _attempts(self) -> int:
        find_program(self._request.command[0])
        self._session.reactions.prepare()
        for number in range(1, self._session.terms.repeat + 2):
            attempt = Attempt(number)
            self.report.attempts.append(attempt)
            spool = self._request.output.spool()
            try:
                code = self._attempt(attempt, spool)
            finally:
                spool.discard()
            if code is not None:
                return code
        return INCONSISTENT

    def _attempt(self, attempt: Attempt, spool: Spool) -> int | None:
        """Make one attempt; gives the exit code, or ``None`` when it was crossed."""
        guard = Guard()
        settled = self._session.settle()
        attempt.before, attempt.waited, attempt.verdict = (
            settled.read,
            settled.waited,
            settled.still,
        )
        if attempt.verdict is not None:
            self._say(attempt.verdict.sentence)
            return INCONSISTENT
        attempt.verdict = guard.before(attempt.before.reading)
        if attempt.verdict is not None:
            self._say(f"{attempt.verdict.sentence}; the scan was not started")
            return code_without(attempt.before)

        catcher = self._session.catcher
        attempt.scanner = run(self._request.command, catcher, stdout=spool.stream)
        catcher.check()
        attempt.output = spool.digest()
        attempt.after = self._session.read(self._seal(attempt))
        attempt.verdict = guard.after(attempt.after.reading)
        if spool.digest() != attempt.output:
            raise OutputWriteError(
                "the output was changed after the scanner had ended; it was discarded: see that"
                " the scanner waits for what it starts"
            )

        if attempt.verdict.consistent:
            return self._stands(attempt, spool)
        if attempt.verdict.inconsistent:
            self._crossed(attempt.verdict, attempt, spool)
            return None
        self._say(f"{attempt.verdict.sentence}; {self._discard(spool)}")
        return code_without(attempt.after)

    def _seal(self, attempt: Attempt) -> Challenge | None:
        """Give what the second attestation is to be bound to, if there is to be one."""
        if attempt.before is None or attempt.before.attestation is None:
            return None
        return second_challenge(attempt.before.attestation, self.report.sealed(attempt))

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
        with self._session.unbroken(self._request.output):
            self._request.output.publish(spool)
            self.report.published = True
        if attempt.verdict.migrating:
            self._say(attempt.verdict.sentence)
        return attempt.scanner.shell_code

    def _crossed(self, verdict: Verdict, attempt: Attempt, spool: Spool) -> None:
        assert attempt.before is not None
        assert attempt.after is not None
        # First of all, for this is what may not be lost.
        self._session.reactions.react(verdict, attempt.before.trusted(), attempt.after.trusted())
        discarded = self._discard(spool)
        repeats = self._session.terms.repeat
        left = repeats + 1 - attempt.number
        if left:
            then = f"repeating ({attempt.number} of {repeats})"
        elif repeats:
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
