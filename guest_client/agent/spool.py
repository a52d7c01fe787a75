"""Takes in the triggers that scans have left in ``STATE_DIR/triggers`` (``triggers.py``).

A file is put into the state first and removed afterwards; a file that is found again, because the
agent died between the two, has a key that the state knows, and only is removed.

A file whose scan runs a notify program for it is left to that scan: it is removed when the program
has been run, and not before :data:`KEEP`, as another scan that the same migration crossed may look
it up to see that the program was run. What is no trigger is left where it is, and told of once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from guest_client.agent.model import Known, NewTrigger
from guest_client.agent.phases import phase_of
from guest_client.agent.state import State
from guest_client.errors import IdentityInvalid, StateError
from guest_client.identity import Identity, parse_identity
from guest_client.times import WallClock, parse_time
from guest_client.triggers import Trigger, TriggerBox

KEEP = timedelta(days=7)


class Spool:
    """The folder that scans leave triggers in."""

    def __init__(self, state_dir: Path, say: Callable[[str], None], now: WallClock) -> None:
        self._box = TriggerBox(state_dir)
        self._say = say
        self._now = now
        self._told: set[str] = set()

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._box.path

    def prepare(self) -> None:
        """Make the folder; raises :class:`StateError`."""
        self._box.prepare()

    def take_in(self, state: State) -> list[NewTrigger]:
        """Put every trigger that is there into the state; gives those that are new, in order.

        Raises :class:`StateError` if the state can't be written; then no file is removed.
        """
        new = []
        triggers = self._read()
        for trigger in triggers:
            try:
                wanted, after = _understand(trigger)
            except (ValueError, IdentityInvalid) as error:
                self._tell_once(trigger.key, f"{trigger.key}.json is left alone: {error}")
                continue
            if state.record(wanted, _known_from_then_on(state.known(), wanted, after)):
                new.append(wanted)
        if triggers:
            self._remove(triggers)
        return new

    def _read(self) -> list[Trigger]:
        found = []
        for path in self._box.path.glob("*.json"):
            if path.name.startswith("."):
                continue
            try:
                trigger = self._box.get(path.stem)
            except StateError as error:
                self._tell_once(path.stem, str(error))
                continue
            if trigger is None:
                continue
            if trigger.key != path.stem:
                self._tell_once(path.stem, f"{path} holds another trigger; move it away")
                continue
            found.append(trigger)
        return sorted(found, key=lambda trigger: (trigger.detected_at, trigger.key))

    def _remove(self, triggers: list[Trigger]) -> None:
        with self._box.lock(wait=False) as held:
            if not held:
                return  # a scan runs its program: next time
            for trigger in triggers:
                current = self._box.get(trigger.key)
                if current is None or trigger.key in self._told or current.pending:
                    continue
                if not current.programs or self._is_old(current):
                    self._box.remove(trigger.key)

    def _is_old(self, trigger: Trigger) -> bool:
        return self._now() - parse_time(trigger.detected_at) > KEEP

    def _tell_once(self, key: str, line: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._say(line)


def _understand(trigger: Trigger) -> tuple[NewTrigger, Identity]:
    """Check what a file says; raises ``ValueError`` or :class:`IdentityInvalid`."""
    parse_time(trigger.detected_at)
    _identity(trigger.before)
    after = _identity(trigger.after)
    wanted = NewTrigger(
        key=trigger.key,
        phase=phase_of(trigger.reason),
        reason=trigger.reason,
        changes=trigger.changes,
        sentence=trigger.sentence,
        detected_at=trigger.detected_at,
        source=trigger.source,
        before=trigger.before,
        after=trigger.after,
    )
    return wanted, after


def _identity(document: Mapping[str, Any]) -> Identity:
    return parse_identity(json.dumps(document).encode())


def _known_from_then_on(known: Known | None, trigger: NewTrigger, after: Identity) -> Known | None:
    """Say what is known once a scan has seen this; ``None`` if the agent knows better already."""
    if known is None:
        return Known(after)
    before = (trigger.before or {})["residency"]["id"]
    return Known(after) if known.identity.residency.id == before else None
