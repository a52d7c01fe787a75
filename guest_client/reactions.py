"""What a scan does about a migration that it sees: record a trigger, run a program, send a signal.

Each happens once for a migration, however many attempts it crossed. The trigger is on disk before
the program is run. A program that did not come to its end because its client died is run again by
the next scan that notifies.

A program runs with the facts on its standard input and in its environment (``triggers.py``); what
it prints goes to our standard error, as our standard output is the scan's. It has
:data:`PROGRAM_LIMIT` seconds. That it fails is reported, and changes neither verdict nor exit code.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guest_client.errors import ScannerError, StateError, UsageError
from guest_client.guard import Verdict
from guest_client.identity import Identity
from guest_client.process import run
from guest_client.report import Reaction, ended_as_dict
from guest_client.signals import SignalCatcher
from guest_client.text import printable
from guest_client.times import utc_now

if TYPE_CHECKING:
    # Nothing of it is needed by a scan that nothing crossed.
    from guest_client.triggers import Trigger, TriggerBox

PROGRAM_LIMIT = 300.0

Say = Callable[[str], None]


class SignalTarget:
    """A process to be signalled later: the one that has the number now, or none at all."""

    def __init__(self, signum: signal.Signals, pid: int) -> None:
        self.signum = signum
        self.pid = pid
        self._fd: int | None = None
        try:
            if hasattr(os, "pidfd_open"):
                self._fd = os.pidfd_open(pid)
            else:
                os.kill(pid, 0)
        except ProcessLookupError as error:
            raise UsageError(f"--signal-pid {pid}: there is no such process") from error
        except PermissionError as error:
            raise UsageError(f"--signal-pid {pid}: this user may not signal it") from error
        except OSError as error:
            raise UsageError(f"--signal-pid {pid}: {error.strerror}") from error

    def send(self) -> None:
        """Send the signal; raises ``OSError``."""
        if self._fd is not None:
            signal.pidfd_send_signal(self._fd, self.signum)
        else:
            os.kill(self.pid, self.signum)


class Reactions:
    """Reacts to inconsistent verdicts, as the command line asked for."""

    def __init__(
        self,
        catcher: SignalCatcher,
        say: Say,
        *,
        box: TriggerBox | None = None,
        program: tuple[str, ...] | None = None,
        target: SignalTarget | None = None,
    ) -> None:
        self._catcher = catcher
        self._say = say
        self._box = box
        self._program = program
        self._target = target
        self.done: dict[str, Reaction] = {}
        """By trigger key, in order."""

    def prepare(self) -> None:
        """See that triggers can be recorded, and finish what a client before us could not.

        Raises :class:`StateError`.
        """
        if self._box is None:
            return
        self._box.prepare()
        with self._box.lock(wait=False) as held:
            if not held:
                return
            for trigger in self._box.all():
                for command in trigger.pending:
                    self._say(f"running {printable(command[0])} for an earlier {trigger.reason} VM")
                    self._run(self._box, trigger, command)

    def react(self, verdict: Verdict, before: Identity, after: Identity) -> None:
        """React to an inconsistent verdict; raises :class:`StateError` if it can't be recorded."""
        from guest_client.triggers import TRIGGERING, make_trigger, trigger_key

        key = trigger_key(after)
        if verdict.reason not in TRIGGERING or key in self.done:
            return
        reaction = self.done[key] = Reaction(key, str(verdict.reason))
        if self._box is not None:
            trigger = make_trigger(verdict, before, after, utc_now(), "scan", self._program)
            self._box.record(trigger)
            reaction.recorded = True
            if self._program is not None:
                reaction.notified = self._notify(self._box, key, self._program)
        if self._target is not None:
            reaction.signalled = self._signal(self._target)

    def _notify(self, box: TriggerBox, key: str, program: tuple[str, ...]) -> dict[str, Any] | None:
        with box.lock():
            box.add_program(key, program)
            trigger = box.get(key)
            if trigger is None or program not in trigger.pending:
                return None  # another scan that the same migration crossed was first
            return self._run(box, trigger, program)

    def _run(self, box: TriggerBox, trigger: Trigger, command: tuple[str, ...]) -> dict[str, Any]:
        from guest_client.triggers import facts_environment

        shown = printable(command[0])
        try:
            with tempfile.TemporaryFile() as facts:
                facts.write(json.dumps(trigger.facts()).encode())
                facts.seek(0)
                ended = run(
                    command,
                    self._catcher,
                    stdin=facts.fileno(),
                    stdout=2,
                    environment={**os.environ, **facts_environment(trigger)},
                    limit=PROGRAM_LIMIT,
                )
        except ScannerError as error:
            self._say(str(error))
            how: dict[str, Any] = {"error": str(error)}
        except OSError as error:
            raise StateError(
                f"can't write the facts for {shown} to {tempfile.gettempdir()}: {error.strerror}"
            ) from error
        else:
            self._catcher.check()
            if ended.shell_code:
                self._say(
                    f"{shown} was told that the VM was {trigger.reason}, and failed with"
                    f" {ended.signal or ended.exit_code}"
                )
            how = ended_as_dict(ended) or {}
        box.mark_ended(trigger.key, command, how)
        return how

    def _signal(self, target: SignalTarget) -> dict[str, Any]:
        said: dict[str, Any] = {"signal": target.signum.name, "pid": target.pid, "error": None}
        try:
            target.send()
        except OSError as error:
            said["error"] = error.strerror
            self._say(f"can't send {target.signum.name} to process {target.pid}: {error.strerror}")
        return said
