"""Triggers: on disk first, acted on afterwards, and once for each migration.

A trigger is one file, ``STATE_DIR/triggers/KEY.json``, written and synced before anything acts on
it. Its key is made of where the VM has come to be: VM UUID, residency ID and generation ID. A
residency ID is new at each arrival, so two scans that one migration crossed, or a scan and a watch
that saw it from different beginnings, make the same key, and only the first makes the file.

Members of the file (additive; ``trigger_version`` counts incompatible changes):

    trigger_version   1
    key               32 hex digits, also the file's name
    reason            the verdict's: migrated, returned, cloned or reverted
    changes           the verdict's
    sentence          the verdict's, for people
    detected_at       RFC 3339
    source            who saw it: "scan"
    before, after     the two identity documents
    programs          the programs to be run for it, each once: [{"command": [...], "ended": how it
                      ended ({"started", "finished", "exit_code", "signal"} or {"error"}), null
                      while it has not been run to its end}]

The facts, which a program gets as JSON on its standard input, are all of these but the last. In its
environment it finds the same as ``TRIGGER_…``: see :func:`facts_environment`.

``.lock`` beside the files is held while a program runs, so that two scans don't run it twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from guest_client.errors import StateError
from guest_client.guard import Reason, Verdict
from guest_client.identity import Identity
from guest_client.output import sync_directory, write_whole
from guest_client.text import printable
from guest_client.times import rfc3339

VERSION = 1

TRIGGERING = frozenset({Reason.MIGRATED, Reason.RETURNED, Reason.CLONED, Reason.REVERTED})
"""The reasons that call for somebody's action: the VM has been elsewhere, or there is another one
with the same agent ID, or its agent ID may be an old one. A VM that was restored where it was
saved, or resized, is the same VM on the same machine: its scan is discarded, nobody is called."""


@dataclass(frozen=True)
class ProgramRun:
    """A program that a trigger is to run, and how it ended; ``None`` while it has not."""

    command: tuple[str, ...]
    ended: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Trigger:
    """One trigger; ``before`` and ``after`` are whole identity documents."""

    key: str
    reason: str
    changes: tuple[str, ...]
    sentence: str
    detected_at: str
    source: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    programs: tuple[ProgramRun, ...] = ()

    @property
    def pending(self) -> tuple[tuple[str, ...], ...]:
        """The programs that have not been run to their end."""
        return tuple(program.command for program in self.programs if program.ended is None)

    def facts(self) -> dict[str, Any]:
        """Give what a program is told."""
        return {
            "trigger_version": VERSION,
            "key": self.key,
            "reason": self.reason,
            "changes": list(self.changes),
            "sentence": self.sentence,
            "detected_at": self.detected_at,
            "source": self.source,
            "before": dict(self.before),
            "after": dict(self.after),
        }

    def as_dict(self) -> dict[str, Any]:
        """Give the trigger as its file has it."""
        programs = [{"command": list(run.command), "ended": run.ended} for run in self.programs]
        return {**self.facts(), "programs": programs}


def trigger_key(after: Identity) -> str:
    """Make the key of whatever brought the VM to be as ``after`` has it."""
    where = [after.vm.uuid, after.residency.id, after.vm.generation_id]
    return hashlib.sha256(json.dumps(where).encode()).hexdigest()[:32]


def make_trigger(
    verdict: Verdict,
    before: Identity,
    after: Identity,
    detected_at: datetime,
    source: str,
    program: tuple[str, ...] | None = None,
) -> Trigger:
    """Make the trigger of an inconsistent verdict between two identities."""
    return Trigger(
        key=trigger_key(after),
        reason=str(verdict.reason),
        changes=tuple(str(aspect) for aspect in verdict.changes),
        sentence=verdict.sentence,
        detected_at=rfc3339(detected_at),
        source=source,
        before=before.as_dict(),
        after=after.as_dict(),
        programs=() if program is None else (ProgramRun(program),),
    )


def facts_environment(trigger: Trigger) -> dict[str, str]:
    """Give the facts as environment variables; what is not known is an empty string.

    ``TRIGGER_KEY``, ``_REASON``, ``_DETECTED_AT``, ``_VM_UUID``, ``_VM_NAME``, and each with
    ``OLD`` and ``NEW``: ``TRIGGER_OLD_COMPONENT_ID``, ``_MANUFACTURER``, ``_TYPE``, ``_MODEL``,
    ``_SERIAL_NUMBER``, ``_UUID`` (the machine's), ``_RESIDENCY_ID``, ``_GENERATION_ID``.
    """
    found = {
        "KEY": trigger.key,
        "REASON": trigger.reason,
        "DETECTED_AT": trigger.detected_at,
        "VM_UUID": trigger.after["vm"]["uuid"],
        "VM_NAME": trigger.after["vm"]["name"],
    }
    for when, document in (("OLD", trigger.before), ("NEW", trigger.after)):
        found[f"{when}_COMPONENT_ID"] = document["component_id"]
        for member in ("manufacturer", "type", "model", "serial_number", "uuid"):
            found[f"{when}_{member.upper()}"] = document["machine"][member]
        found[f"{when}_RESIDENCY_ID"] = document["residency"]["id"]
        found[f"{when}_GENERATION_ID"] = document["vm"]["generation_id"]
    # The identity comes from outside: a NUL in it would keep the program from being run at all.
    return {f"TRIGGER_{name}": printable(value or "", 4096) for name, value in found.items()}


class TriggerBox:
    """The folder of triggers under a state directory. Errors are :class:`StateError`."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "triggers"

    def prepare(self) -> None:
        """Make the folder, and see that it can be written."""
        probe = self.path / f".probe.{os.getpid()}"
        with self._as_state_error("can't be written"):
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()

    def record(self, trigger: Trigger) -> bool:
        """Put a trigger on disk, for good; false if there is one with its key already."""
        path = self._file(trigger.key)
        temporary = path.with_name(f".{trigger.key}.{os.getpid()}.part")
        with self._as_state_error("can't record a trigger"):
            try:
                with temporary.open("wb") as stream:
                    stream.write(_encode(trigger))
                    stream.flush()
                    os.fsync(stream.fileno())
                try:
                    os.link(temporary, path)  # unlike a rename, it never replaces
                except FileExistsError:
                    return False
                sync_directory(self.path)
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def get(self, key: str) -> Trigger | None:
        """Read one trigger."""
        try:
            return _decode(self._file(key).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"can't read {self._file(key)}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{self._file(key)} is no trigger ({error!r}); move it out of the way"
            ) from error

    def all(self) -> list[Trigger]:
        """Read every trigger, in the order of detection."""
        if not self.path.is_dir():
            return []
        with self._as_state_error("can't be read"):
            keys = [path.stem for path in self.path.glob("*.json") if path.name[0] != "."]
        found = [trigger for key in keys if (trigger := self.get(key)) is not None]
        return sorted(found, key=lambda trigger: (trigger.detected_at, trigger.key))

    def add_program(self, key: str, command: tuple[str, ...]) -> None:
        """See that a recorded trigger has a program to run; to be used inside :meth:`lock`."""
        trigger = self.get(key)
        if trigger is not None and command not in [run.command for run in trigger.programs]:
            self._rewrite(replace(trigger, programs=(*trigger.programs, ProgramRun(command))))

    def mark_ended(self, key: str, command: tuple[str, ...], how: Mapping[str, Any]) -> None:
        """Note how a trigger's program ended; to be used inside :meth:`lock`."""
        trigger = self.get(key)
        if trigger is not None:
            runs = [
                ProgramRun(command, how) if r.command == command else r for r in trigger.programs
            ]
            self._rewrite(replace(trigger, programs=tuple(runs)))

    def _rewrite(self, trigger: Trigger) -> None:
        with self._as_state_error("can't note what became of a trigger"):
            write_whole(self._file(trigger.key), _encode(trigger))

    def remove(self, key: str) -> None:
        """Forget a trigger that has been dealt with."""
        with self._as_state_error("can't remove a trigger"):
            self._file(key).unlink(missing_ok=True)
            sync_directory(self.path)

    @contextmanager
    def lock(self, *, wait: bool = True) -> Iterator[bool]:
        """Keep other clients from running programs; false if one does and we shall not wait."""
        with self._as_state_error("can't be locked"):
            stream = (self.path / ".lock").open("ab")
        with stream:
            held = True
            with self._as_state_error("can't be locked"):
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    held = False
            yield held

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.json"

    @contextmanager
    def _as_state_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"{self.path}: {what}: {error.strerror}; make room, mend its mode and owner,"
                " or name another folder (--state-dir)"
            ) from error


def _encode(trigger: Trigger) -> bytes:
    return json.dumps(trigger.as_dict(), indent=2).encode() + b"\n"


def _decode(content: bytes) -> Trigger:
    document = json.loads(content)
    if document["trigger_version"] != VERSION:
        raise ValueError(f"version {document['trigger_version']!r}, written by another client")
    return Trigger(
        key=document["key"],
        reason=document["reason"],
        changes=tuple(document["changes"]),
        sentence=document["sentence"],
        detected_at=document["detected_at"],
        source=document["source"],
        before=document["before"],
        after=document["after"],
        programs=tuple(
            ProgramRun(tuple(run["command"]), run["ended"]) for run in document["programs"]
        ),
    )
