"""Every error the guest client raises on purpose, in one tree.

    GuestClientError
    ├── UsageError               exit 64   the command line is wrong
    ├── ConfigurationError       exit 78   a file, variable or value of the configuration is wrong
    ├── AuditMissing             exit 78   what verifies signatures is not installed
    ├── InputError               exit 66   a file that was named can't be read
    ├── Unverified               exit 69   no answer that can be trusted
    │   ├── NoAnswer             exit 69   nobody answered within the deadline
    │   ├── UntrustedAnswer      exit 69   something answered, and it is not what an enabler says
    │   │   └── IdentityInvalid  exit 69   the identity document breaks the contract
    │   ├── TokenUnusable        exit 78   our own token can't be read, or others may read it
    │   └── Refused              exit 77   the enabler says that we are no VM of its host
    ├── InconsistentScan         exit 75   the machine changed inside the scan
    ├── OutputError              exit 73   an output can't be created
    │   └── OutputWriteError     exit 74   an output was begun and can't be finished
    ├── StateError               exit 74   the client's own records can't be read or written
    │   ├── StateNotMade         exit 73   they can't be made: a folder that may not be written
    │   └── StateFromLater       exit 78   they were written by a later guest client
    ├── AgentRunning             exit 73   another agent has the state
    ├── AgentNotRunning          exit 69   there is no agent to speak to
    └── ScannerError             exit 126  the scanner is there and can't be run
        └── ScannerNotFound      exit 127  there is no such scanner

    Interrupted (a KeyboardInterrupt)      exit 128 + the signal's number

Each says in one line what is wrong and what to do about it, and carries the exit code that it ends
a command with: those of ``sysexits.h``, and the shells' own for a command that can't be run.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from guest_client.guard import Verdict


class GuestClientError(Exception):
    """The root. ``str(error)`` is one line that a person can act on."""

    exit_code: ClassVar[int] = 70  # EX_SOFTWARE


class UsageError(GuestClientError):
    """The command line is wrong."""

    exit_code = 64  # EX_USAGE


class ConfigurationError(GuestClientError):
    """A setting from a file or from the environment is wrong."""

    exit_code = 78  # EX_CONFIG


class AuditMissing(GuestClientError):
    """What verifies signatures is not installed: the extra ``audit``."""

    exit_code = 78  # EX_CONFIG


class InputError(GuestClientError):
    """A file that was named on the command line can't be read."""

    exit_code = 66  # EX_NOINPUT


class Unverified(GuestClientError):
    """No answer that can be trusted; ``reason`` is the short word that verdicts and reports use."""

    exit_code = 69  # EX_UNAVAILABLE
    reason: ClassVar[str] = "unverified"


class NoAnswer(Unverified):
    """Nobody answered within the deadline."""

    reason = "no-answer"


class UntrustedAnswer(Unverified):
    """Something answered, but not as an enabler does: a redirect, no JSON, far too much of it."""

    reason = "untrusted-answer"


class IdentityInvalid(UntrustedAnswer):
    """The identity document breaks the contract.

    ``path`` names the member that is wrong, with dots (``machine.serial_number``); it is empty when
    the document as a whole is.
    """

    reason = "invalid-identity"

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        where = f"its member {path} {problem}" if path else f"it {problem}"
        super().__init__(
            f"the identity document can't be trusted: {where};"
            " check that the enabler's version fits this client's"
        )


class Refused(Unverified):
    """The enabler answered, and says that we are no virtual machine of its host."""

    exit_code = 77  # EX_NOPERM
    reason = "refused"


class TokenUnusable(Unverified):
    """The file of our own token can't be used, so the enabler was not asked."""

    exit_code = 78  # EX_CONFIG
    reason = "token"


class InconsistentScan(GuestClientError):
    """The machine changed inside the scan (RC_INCONSISTENT_OUTPUT): what it found is of no use."""

    exit_code = 75  # EX_TEMPFAIL

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(f"{verdict.sentence}; run the scan again")


class OutputError(GuestClientError):
    """An output can't be created."""

    exit_code = 73  # EX_CANTCREAT


class OutputWriteError(OutputError):
    """An output was begun and can't be finished: the disk is full, the reader has gone."""

    exit_code = 74  # EX_IOERR


class StateError(GuestClientError):
    """The client's own records (triggers, the agent's state) can't be read or written."""

    exit_code = 74  # EX_IOERR


class StateNotMade(StateError):
    """The client's records can't be made: the folder may not be written, say."""

    exit_code = 73  # EX_CANTCREAT


class StateFromLater(StateError):
    """The records were written by a later version, which this one can't read."""

    exit_code = 78  # EX_CONFIG


class AgentRunning(GuestClientError):
    """Another agent has the state; there is one for each."""

    exit_code = 73  # EX_CANTCREAT


class AgentNotRunning(GuestClientError):
    """There is no agent to speak to, or it does not answer."""

    exit_code = 69  # EX_UNAVAILABLE


class ScannerError(GuestClientError):
    """The scanner exists and can't be run."""

    exit_code = 126


class ScannerNotFound(ScannerError):
    """There is no such scanner."""

    exit_code = 127


class Interrupted(KeyboardInterrupt):
    """A signal asked the client to end.

    No part of the tree on purpose: what handles errors must let it pass, as it would Ctrl-C.
    """

    def __init__(self, signum: int) -> None:
        self.signal = signal.Signals(signum)
        self.exit_code = 128 + signum
        super().__init__(f"ended by {self.signal.name}")
