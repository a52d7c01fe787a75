"""How the guest reads its identity: one question, asked until it is answered or the time is up.

What each answer means
----------------------
    answer                                            meaning
    ------------------------------------------------  --------------------------------------------
    200 with an identity document                     trusted
    no connection, a lost one, no answer in time      asked again, on a new connection
    429, 5xx (the VM is just being switched over,     asked again, not sooner than ``Retry-After``
    the hypervisor can't be asked, ...)
    401, 403 with a problem document (RFC 9457)       refused: we are no VM of that host, or our
                                                      token is not ours. Final
    a certificate that does not prove an enabler      not an enabler. Final
    a redirect, another status, no JSON, no length,   not an enabler's answer: asking again would
    too long, not the contract's schema; also a bare  make it no truer. Final
    403, as a proxy or a packet filter gives

A read lasts as long as its deadline at most, whatever the other side does; but for looking up a
host that is given by name. Between tries it waits, each time about twice as long, up to
:data:`LONGEST_WAIT`, with jitter so that the guests of a whole host don't knock in step.

The default deadline, 30 s, is long against a switch-over (0.1 s to a few seconds) and against the
restart of an enabler or of libvirtd, and short against most scans.

The connection is kept for the next read. One that the old host held breaks on the new host; when a
kept connection fails, the same question is asked at once on a new one, without waiting.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from guest_client.endpoint import DEFAULT_ENABLER, Endpoint, parse_endpoint
from guest_client.errors import NoAnswer, Refused, UntrustedAnswer, Unverified
from guest_client.guard import Missing, Reading
from guest_client.identity import Identity, parse_identity
from guest_client.text import printable, size_in_words
from guest_client.times import WallClock, rfc3339, utc_now
from guest_client.transport import LOST, TIMEOUT, Answer, DeadlineTransport, Hopeless, Interrupter

if TYPE_CHECKING:
    from guest_client.attest import Challenge

DEFAULT_DEADLINE = 30.0
"""Seconds that one read may last, retries included."""
LARGEST_ANSWER = 64 * 1024
"""Bytes; an identity document has about one thousand."""
LARGEST_HISTORY = 256 * 1024
FIRST_WAIT = 0.1
LONGEST_WAIT = 2.0
"""Seconds between two tries, before jitter."""
LONGEST_RETRY_AFTER = 5.0
"""Seconds; an answer that asks us to stay away longer is asked again all the same."""
SHORTEST_TRY = 0.05
"""Seconds; with less time left than this, a further try would say nothing new."""
HOLD_MARGIN = 5.0
"""Seconds that an answer may take beyond the wait that was asked for."""
PATIENCE = 2.0
LONGEST_PATIENCE = 8.0
"""Seconds for one reply within a try, twice as long after each timeout: a blackout costs one short
try, and a host that is merely slow is answered in the end."""

_Taken = TypeVar("_Taken")
_Taken_co = TypeVar("_Taken_co", covariant=True)


@dataclass(frozen=True)
class FailedTry:
    """A try that brought no answer, at a time of day (RFC 3339)."""

    at: str
    what: str


@dataclass(frozen=True)
class Read:
    """One read of the identity and what became of it, for verdicts and reports."""

    started: str
    finished: str
    identity: Identity | None
    error: Unverified | None
    failures: tuple[FailedTry, ...]
    attestation: str | None = None
    """The attestation that the identity was read from, if one was asked for."""
    via: str | None = None
    """Where the enabler was reached; None if it was not."""
    etag: str | None = None
    """The ETag of the answer, for :meth:`Channel.hold`."""

    @property
    def reading(self) -> Reading:
        """What a guard takes."""
        if self.identity is not None:
            return self.identity
        return Missing(self.error.reason, str(self.error)) if self.error else Missing()

    def trusted(self) -> Identity:
        """Give the identity, or raise the error that there is instead."""
        if self.identity is not None:
            return self.identity
        raise self.error or NoAnswer("no trusted answer from an enabler")

    def as_dict(self) -> dict[str, Any]:
        """Give the read as reports write it, with the whole document."""
        return {
            "started": self.started,
            "finished": self.finished,
            "via": self.via,
            "identity": None if self.identity is None else self.identity.as_dict(),
            "attestation": self.attestation,
            "error": None if self.error is None else reason_and_message(self.error),
            "failed_tries": [{"at": failure.at, "what": failure.what} for failure in self.failures],
        }


def reason_and_message(error: Unverified) -> dict[str, str]:
    """Give an error as reports write it."""
    return {"reason": error.reason, "message": str(error)}


class Held(Enum):
    """How a wait for a change ended without one."""

    UNCHANGED = "unchanged"
    REFUSED = "refused"
    """The enabler can't let us wait, or can't say anything just now."""
    BROKEN = "broken"
    """The connection was lost, or something interrupted the wait."""


class _TryAgain(Exception):
    def __init__(self, what: str, *, not_before: float = 0.0, timed_out: bool = False) -> None:
        super().__init__(what)
        self.not_before = not_before
        self.timed_out = timed_out


@dataclass(frozen=True)
class _Question(Generic[_Taken_co]):
    """A request, and how its answer is read."""

    path: str
    kind: str
    """The media type of its answer."""
    take: Callable[[bytes], _Taken_co]
    body: bytes | None = None
    """What is posted; None: it is a GET."""
    largest: int = LARGEST_ANSWER

    def headers(self) -> dict[str, str]:
        """Give the request's own headers."""
        accept = {"Accept": f"{self.kind}, {_PROBLEM}"}
        return accept if self.body is None else accept | {"Content-Type": _JSON}


class Channel:
    """The way to one enabler. Not for use by two threads at once.

    ``clock`` (monotonic seconds), ``sleep``, ``jitter`` (0 to 1) and ``now`` are the real ones
    unless given. ``on_failure`` is called with each failed try, as it happens.
    """

    def __init__(
        self,
        enabler: Endpoint | str = DEFAULT_ENABLER,
        *,
        on_failure: Callable[[FailedTry], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        now: WallClock = utc_now,
        interrupters: Sequence[Interrupter] = (),
    ) -> None:
        """``interrupters`` break off what waits for an answer; a read then asks again."""
        self.endpoint = parse_endpoint(enabler) if isinstance(enabler, str) else enabler
        self._on_failure = on_failure
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._now = now
        self._transport = DeadlineTransport(self.endpoint, clock, interrupters)
        self._etag: str | None = None

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if one is kept."""
        self._transport.close()

    def read(self, deadline: float = DEFAULT_DEADLINE, challenge: Challenge | None = None) -> Read:
        """Read the identity within ``deadline`` seconds. What goes wrong is told in the result.

        With a ``challenge`` it is read out of an attestation, bound to that.
        """
        started = rfc3339(self._now())
        if challenge is None:
            identity, error, failures = self._put(_BARE, deadline)
            finished = rfc3339(self._now())
            etag = None if identity is None else self._etag
            return Read(started, finished, identity, error, failures, via=self._via, etag=etag)
        from guest_client import attest

        question = _Question(
            attest.PATH,
            attest.MEDIA_TYPE,
            lambda raw: attest.take(raw, challenge),
            challenge.body(),
        )
        found, error, failures = self._put(question, deadline)
        finished = rfc3339(self._now())
        if found is None:
            return Read(started, finished, None, error, failures, via=self._via)
        return Read(started, finished, found.identity, None, failures, found.token, self._via)

    @property
    def _via(self) -> str | None:
        return None if self._transport.used is None else str(self._transport.used)

    @property
    def _where(self) -> str:
        """Whose answer it is: of the addresses that ``auto`` stands for, the one in use."""
        return self._via or str(self.endpoint)

    def history(self, deadline: float = DEFAULT_DEADLINE) -> object:
        """Read where this VM has been, as the contract has it, unverified.

        Raises :class:`Unverified`, if there is no answer that can be trusted to be an enabler's.
        """
        question = _Question(_HISTORY, _JSON, _any_json, largest=LARGEST_HISTORY)
        found, error, _ = self._put(question, deadline)
        if error is not None:
            raise error
        return found

    def _put(
        self, question: _Question[_Taken], deadline: float
    ) -> tuple[_Taken | None, Unverified | None, tuple[FailedTry, ...]]:
        """Ask until there is an answer; gives it, or the error there is instead."""
        end = self._clock() + deadline
        failures: list[FailedTry] = []
        timeouts = 0
        wait = FIRST_WAIT
        while True:
            dials = self._transport.dials
            patience = min(PATIENCE * 2**timeouts, LONGEST_PATIENCE)
            try:
                taken = self._ask(question, end, patience)
            except Unverified as error:
                return None, error, tuple(failures)
            except _TryAgain as failure:
                self._transport.forget_connection()
                failures.append(FailedTry(rfc3339(self._now()), str(failure)))
                if self._on_failure is not None:
                    self._on_failure(failures[-1])
                reused = self._transport.dials == dials
                timeouts += failure.timed_out
                not_before = failure.not_before
            else:
                return taken, None, tuple(failures)
            left = end - self._clock()
            if left > SHORTEST_TRY and not (reused and not not_before):
                pause = max(wait * (0.5 + self._jitter() / 2), min(not_before, LONGEST_RETRY_AFTER))
                # Near the end, smaller steps: the last try should not be missed by a long wait.
                self._sleep(min(pause, max(left / 2, SHORTEST_TRY)))
                wait = min(wait * 2, LONGEST_WAIT)
                left = end - self._clock()
            if left <= SHORTEST_TRY:
                return None, self._no_answer(deadline, failures), tuple(failures)

    def _no_answer(self, deadline: float, failures: list[FailedTry]) -> NoAnswer:
        tries = "1 try" if len(failures) == 1 else f"{len(failures)} tries"
        return NoAnswer(
            f"no enabler answered at {self.endpoint} within {deadline:g} s"
            f" ({tries}, the last: {failures[-1].what}); `guest-client doctor` looks for the cause"
        )

    def _ask(self, question: _Question[_Taken], end: float, patience: float) -> _Taken:
        """Ask once; raises :class:`_TryAgain`, or an error that is final."""
        self._transport.deadline = min(end, self._clock() + 2 * patience)
        try:
            with self._transport.request(
                question.path, question.headers(), _timeouts(patience), question.body
            ) as answer:
                taken = question.take(self._understand(answer, question))
                self._etag = answer.headers.get("etag")
                return taken
        except Hopeless as failure:
            raise failure.error from failure
        except LOST as error:
            timed_out = isinstance(error, TIMEOUT)
            raise _TryAgain(str(error) or type(error).__name__, timed_out=timed_out) from error

    def hold(self, etag: str, seconds: float) -> Held | Read:
        """Wait up to ``seconds`` for the enabler to tell something else than it told with ``etag``.

        Gives what it tells then, or how the wait ended without that; an enabler that lets nobody
        wait says at once that it is unchanged. Nothing is tried again: after a refusal or a broken
        connection the identity is to be read.
        """
        started = rfc3339(self._now())
        wait = max(1, int(seconds))
        timeouts = _timeouts(PATIENCE) | {"read": wait + HOLD_MARGIN}
        self._transport.deadline = self._clock() + wait + HOLD_MARGIN
        wish = _BARE.headers() | {"If-None-Match": etag, "Prefer": f"wait={wait}"}
        try:
            with self._transport.request(_BARE.path, wish, timeouts) as answer:
                if answer.status == 304:
                    return Held.UNCHANGED
                if answer.status != 200:
                    return Held.REFUSED
                identity = _BARE.take(self._understand(answer, _BARE))
                found = answer.headers.get("etag")
            read = Read(started, rfc3339(self._now()), identity, None, ())
            return replace(read, via=self._via, etag=found)
        except (Unverified, Hopeless):
            return Held.REFUSED
        except LOST:
            self._transport.forget_connection()
            return Held.BROKEN

    def _understand(self, answer: Answer, question: _Question[Any]) -> bytes:
        status = answer.status
        if 300 <= status < 400:
            target = printable(answer.headers.get("location", "nowhere"), 100)
            raise UntrustedAnswer(f"{self._where} sends us on to {target}, which {_NO_ENABLER}")
        if status == 429 or status >= 500:
            after = _seconds(answer.headers.get("retry-after", ""))
            raise _TryAgain(f"{status} {self._problem(answer)}".rstrip(), not_before=after)
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if status in (401, 403) and kind == _PROBLEM:
            raise Refused(
                f"the enabler at {self._where} refuses to tell us who we are"
                f" ({status} {self._problem(answer)}); it answers only the VMs of its own host:"
                " check on the host with `enabler vms` and `enabler doctor`"
            )
        if status == 404 and question.path != "/v1/identity":
            raise UntrustedAnswer(
                f"the enabler at {self._where} has no {question.path}: it is older than this"
                " client; update it"
            )
        if status != 200:
            raise UntrustedAnswer(
                f"{self._where} answers with status {status}, which {_NO_ENABLER}"
            )
        if kind != question.kind:
            shown, wanted = (
                printable(kind, 60) or "no type",
                "JSON" if question.kind == _JSON else "an attestation",
            )
            raise UntrustedAnswer(
                f"{self._where} answers with {shown}, not {wanted}, which {_NO_ENABLER}"
            )
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise UntrustedAnswer(
                f"{self._where} answers in a coding we did not ask for, which {_NO_ENABLER}"
            )
        if "content-length" not in answer.headers and "transfer-encoding" not in answer.headers:
            raise UntrustedAnswer(
                f"{self._where} answers without a length, so that a cut answer would go unseen,"
                f" which {_NO_ENABLER}"
            )
        return self._body(answer, question.largest)

    def _body(self, answer: Answer, largest: int = LARGEST_ANSWER) -> bytes:
        body = bytearray()
        for piece in answer.body:
            body += piece
            if len(body) > largest:
                limit = size_in_words(largest)
                raise UntrustedAnswer(
                    f"{self._where} answers with more than {limit}, which {_NO_ENABLER}"
                )
        return bytes(body)

    def _problem(self, answer: Answer) -> str:
        """Say in a few words what a problem document (RFC 9457) says; nothing if it is none."""
        try:
            problem = json.loads(self._body(answer))
        except (ValueError, RecursionError, UntrustedAnswer):
            return ""
        if not isinstance(problem, dict):
            return ""
        kind = problem.get("type")
        name = kind.rpartition("/")[2] if isinstance(kind, str) else ""
        said = problem.get("detail") or problem.get("title")
        words = [word for word in (name, said) if isinstance(word, str) and word]
        return printable(": ".join(words))


def _any_json(raw: bytes) -> object:
    try:
        document: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UntrustedAnswer(f"what was answered is not JSON, which {_NO_ENABLER}") from error
    return document


_HISTORY = "/v1/identity/history"
_JSON = "application/json"
_PROBLEM = "application/problem+json"
_NO_ENABLER = "is not how an enabler answers; check the address (--enabler)"


_BARE = _Question("/v1/identity", _JSON, parse_identity)


def _timeouts(patience: float) -> dict[str, float]:
    """Give the limits of one operation each, in httpcore's words."""
    return {"connect": patience / 2, "read": patience, "write": patience}


def _seconds(retry_after: str) -> float:
    """Read ``Retry-After`` in seconds; its other form, a date, is not what an enabler sends."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
