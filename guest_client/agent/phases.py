"""The phases that a program can be registered for, and what each reason means for them. Pure.

    phase       when its programs run
    ---------   ----------------------------------------------------------------------------------
    migrated    the VM has arrived on another machine, or has come back to one that it had left
    migrating   a migration has begun; the VM still runs on the old host
    aborted     that migration has ended, and the VM is where it was
    cloned      this is another VM than the one that the state was written by
    reverted    the VM went back to a snapshot, or was duplicated

A VM that was restored where it had been saved, or started again on the same machine, or resized, is
the same VM on the same machine with the same agent ID: nobody is called, and there is no phase for
it (:data:`guest_client.triggers.TRIGGERING` is the rule). Saved here and restored elsewhere, or
shut down here and started elsewhere, is ``migrated``.
"""

from __future__ import annotations

from guest_client.compat import StrEnum
from guest_client.guard import Reason


class Phase(StrEnum):
    """When a program wants to be run."""

    MIGRATED = "migrated"
    MIGRATING = "migrating"
    ABORTED = "aborted"
    CLONED = "cloned"
    REVERTED = "reverted"

    @property
    def told(self) -> bool:
        """Whether the management infrastructure is sent an event.

        It is when the agent ID's world has changed. A migration that has only begun, or came to
        nothing, has changed nothing yet.
        """
        return self in (Phase.MIGRATED, Phase.CLONED, Phase.REVERTED)


MANUAL = "manual"
"""The reason of a trigger by hand; its phase is what the hand says."""

_OF_REASON = {
    Reason.MIGRATED: Phase.MIGRATED,
    Reason.RETURNED: Phase.MIGRATED,
    Reason.CLONED: Phase.CLONED,
    Reason.REVERTED: Phase.REVERTED,
}


def phase_of(reason: str) -> Phase:
    """Give the phase that a verdict's reason belongs to; raises ``ValueError`` if to none."""
    try:
        return _OF_REASON[Reason(reason)]
    except (KeyError, ValueError):
        raise ValueError(f"{reason!r} is no reason to trigger anything") from None


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Read ``migrated,cloned``; raises ``ValueError``."""
    names = [name.strip() for name in text.split(",")]
    try:
        return tuple(dict.fromkeys(Phase(name) for name in names))
    except ValueError:
        wrong = next(name for name in names if name not in set(Phase))
        raise ValueError(f"{wrong!r} is no phase; the phases are {', '.join(Phase)}") from None
