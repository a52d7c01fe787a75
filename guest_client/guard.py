"""The guard: identity readings in, verdict out. Pure; what a scan is worth is settled here alone.

Rules
-----
1. ``consistent`` is said only of two trusted readings that tell of the same VM, in the same
   generation, in the same residency on the same host, with the same capacity and allocation.
   Nothing else is ever called so.
2. ``inconsistent`` is said only of two trusted readings, and always with a reason.
3. All else is ``unverified``. A reading without a trusted answer proves nothing, neither that the
   machine changed nor that it did not.
4. A migration that is in progress and has not switched over changes nothing yet: the verdict says
   that it is there, and is what it would be without it.
5. A scan may be started only after a trusted before-reading.

When several things differ, all are kept as ``changes``, and the first in this table is the reason:

    differs             reason      why it comes before those below
    ------------------  ----------  -------------------------------------------------------------
    vm                  cloned      this is another VM: what else differs is no news about this one
    generation          reverted    the VM went back in time or was duplicated; that it also changed
                                    hosts is the lesser news to a program that keeps a state.
                                    Passed over if the new stay began by a restore: see below
    host                migrated    another host always means another residency as well
    residency           returned    same host, new stay, and it came by migration: it was elsewhere
                        reverted    same host, new stay, which began from a snapshot
                        restored    same host, new stay, which began any other way
    capacity            resized     the host itself changed (a CPU was taken offline, say)
    allocation          resized     the VM's vCPUs or memory changed

About the generation: ``null`` means that the hypervisor gives the VM no generation ID. Two
different IDs are always a change. ``null`` on one side only is a change of what is *known*; across
two residencies the other host may just not tell, so the residency or the host is the reason, and
the generation no change. Within one residency nothing could have made an ID appear or go, as a
running VM's generation ID can't be configured: something happened that a guard can't vouch for, and
the safe side is to call it a change.

A restore (``virsh save``, ``virsh restore``) always makes libvirt give the VM a new generation, as
the same saved image could be restored twice. So a new generation that comes with a restore tells no
more than the restore does: it is kept as a change, and the host or the residency is the reason.

Names (a renamed VM), the time and manner of arrival under an unchanged residency ID, the time of
observation, and members unknown to this client are not compared.

Theory of operation
-------------------
:class:`Guard` is one guarded scan as a machine that is driven from outside:

    phase      event                      next phase   answer
    ---------  -------------------------  -----------  ------------------------------
    WAITING    before(a trusted reading)  ARMED        None: the scan may start
    WAITING    before(no trusted answer)  JUDGED       unverified; the scan must not start
    ARMED      after(any reading)         JUDGED       the verdict
    JUDGED     following()                             a new guard, whose before-reading is this
                                                       one's after-reading: N modules, N+1 readings

Anything else is a :class:`GuardMisused`, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

from guest_client.compat import StrEnum
from guest_client.identity import Arrival, Identity


class Outcome(StrEnum):
    """What a scan is worth."""

    CONSISTENT = "consistent"
    INCONSISTENT = "inconsistent"
    UNVERIFIED = "unverified"


class Reason(StrEnum):
    """Why a scan is inconsistent."""

    MIGRATED = "migrated"
    RETURNED = "returned"
    RESTORED = "restored"
    CLONED = "cloned"
    REVERTED = "reverted"
    RESIZED = "resized"


class Aspect(StrEnum):
    """What can differ between two readings, the weightiest first."""

    VM = "vm"
    GENERATION = "generation"
    HOST = "host"
    RESIDENCY = "residency"
    CAPACITY = "capacity"
    ALLOCATION = "allocation"


@dataclass(frozen=True)
class Missing:
    """A reading that brought no trusted answer.

    ``reason`` is a short word for machines (``no-answer``, ``refused``; see ``errors.py``),
    ``detail`` a line for people.
    """

    reason: str = "no-answer"
    detail: str = "no trusted answer from an enabler"


Reading = Union[Identity, Missing]
"""What one read of the identity brought."""


@dataclass(frozen=True)
class Verdict:
    """What a scan between two readings is worth.

    ``reason`` is a :class:`Reason` when inconsistent, the missing answer's short word when
    unverified, and ``None`` when consistent.
    """

    outcome: Outcome
    reason: str | None
    changes: tuple[Aspect, ...]
    sentence: str
    migrating: bool
    """Whether a migration was in progress at either reading."""

    @property
    def consistent(self) -> bool:
        """Whether the scan stands."""
        return self.outcome is Outcome.CONSISTENT

    @property
    def inconsistent(self) -> bool:
        """Whether the machine is known to have changed."""
        return self.outcome is Outcome.INCONSISTENT

    def as_dict(self) -> dict[str, Any]:
        """Give the verdict as reports write it."""
        return {
            "outcome": str(self.outcome),
            "reason": None if self.reason is None else str(self.reason),
            "changes": [str(aspect) for aspect in self.changes],
            "sentence": self.sentence,
            "migration_in_progress": self.migrating,
        }


def judge(before: Reading | None, after: Reading | None) -> Verdict:
    """Say what a scan between these readings is worth; ``None`` is a bare :class:`Missing`."""
    first = Missing() if before is None else before
    second = Missing() if after is None else after
    migrating = any(isinstance(r, Identity) and r.migrating for r in (first, second))
    if isinstance(first, Missing):
        return _unverified(first, "before", migrating)
    if isinstance(second, Missing):
        return _unverified(second, "after", migrating)
    changes = differences(first, second)
    if not changes:
        sentence = "the machine was the same before and after the scan"
        if migrating:
            sentence += "; a migration was in progress and had not switched over"
        return Verdict(Outcome.CONSISTENT, None, (), sentence, migrating)
    reason, sentence = _why(_weightiest(changes, second), first, second)
    return Verdict(Outcome.INCONSISTENT, reason, changes, sentence, migrating)


def differences(before: Identity, after: Identity) -> tuple[Aspect, ...]:
    """Name every aspect in which two identities differ, the weightiest first; empty if in none."""
    return tuple(aspect for aspect, differ in _DIFFER.items() if differ(before, after))


def _generation_differs(a: Identity, b: Identity) -> bool:
    one, other = a.vm.generation_id, b.vm.generation_id
    if one is None or other is None:
        return (
            one != other and a.residency.id == b.residency.id and a.component_id == b.component_id
        )
    return one != other


_DIFFER: dict[Aspect, Callable[[Identity, Identity], bool]] = {
    Aspect.VM: lambda a, b: a.vm.uuid != b.vm.uuid,
    Aspect.GENERATION: _generation_differs,
    Aspect.HOST: lambda a, b: a.component_id != b.component_id,
    Aspect.RESIDENCY: lambda a, b: a.residency.id != b.residency.id,
    Aspect.CAPACITY: lambda a, b: a.capacity != b.capacity,
    Aspect.ALLOCATION: lambda a, b: (
        (a.vm.vcpus, a.vm.memory_bytes) != (b.vm.vcpus, b.vm.memory_bytes)
    ),
}


def _weightiest(changes: tuple[Aspect, ...], after: Identity) -> Aspect:
    restored = Aspect.RESIDENCY in changes and after.residency.arrived_by is Arrival.RESTORE
    weighed = [change for change in changes if not (restored and change is Aspect.GENERATION)]
    return weighed[0]


def _why(weightiest: Aspect, before: Identity, after: Identity) -> tuple[Reason, str]:
    if weightiest is Aspect.VM:
        return Reason.CLONED, (
            f"this became another VM inside the scan: {before.vm.uuid}, then {after.vm.uuid}"
        )
    if weightiest is Aspect.GENERATION:
        return Reason.REVERTED, "the VM was reverted to a snapshot, or duplicated, inside the scan"
    if weightiest is Aspect.HOST:
        return Reason.MIGRATED, (
            "the VM moved to another host inside the scan:"
            f" {describe_machine(before)}, then {describe_machine(after)}"
        )
    if weightiest is Aspect.RESIDENCY:
        return _why_another_stay(after)
    if weightiest is Aspect.CAPACITY:
        return Reason.RESIZED, "the host's capacity changed inside the scan"
    return Reason.RESIZED, "the VM's vCPUs or memory changed inside the scan"


def _why_another_stay(after: Identity) -> tuple[Reason, str]:
    if after.residency.arrived_by is Arrival.MIGRATION:
        return Reason.RETURNED, (
            f"the VM left {describe_machine(after)} and came back to it inside the scan"
        )
    if after.residency.arrived_by is Arrival.SNAPSHOT:
        return Reason.REVERTED, "the VM was reverted to a snapshot inside the scan"
    return Reason.RESTORED, (
        f"the VM's stay on {describe_machine(after)} ended inside the scan"
        f" and a new one began (by {after.residency.arrived_by})"
    )


def describe_machine(identity: Identity) -> str:
    """Name the real machine in a few words for people, its serial number among them."""
    machine = identity.machine
    kind = "-".join(part for part in (machine.type, machine.model) if part)
    words = [word for word in (machine.manufacturer, kind) if word]
    return " ".join([*words, machine.serial_number])


def _unverified(missing: Missing, which: str, migrating: bool) -> Verdict:
    sentence = f"no trusted identity {which} the scan: {missing.detail}"
    return Verdict(Outcome.UNVERIFIED, missing.reason, (), sentence, migrating)


class Phase(StrEnum):
    """How far a guarded scan has come."""

    WAITING = "waiting"
    ARMED = "armed"
    JUDGED = "judged"


class GuardMisused(RuntimeError):
    """A guard was driven out of order: an error in the program that drives it."""


class Guard:
    """One guarded scan, driven by readings; see the table above."""

    __slots__ = ("_after", "_before", "_verdict")

    def __init__(self) -> None:
        self._before: Reading | None = None
        self._after: Reading | None = None
        self._verdict: Verdict | None = None

    @property
    def phase(self) -> Phase:
        """Say how far it has come."""
        if self._verdict is not None:
            return Phase.JUDGED
        return Phase.WAITING if self._before is None else Phase.ARMED

    @property
    def before_reading(self) -> Reading | None:
        """The reading before the scan, once there is one."""
        return self._before

    @property
    def after_reading(self) -> Reading | None:
        """The reading after the scan, once there is one."""
        return self._after

    @property
    def verdict(self) -> Verdict | None:
        """The verdict, once there is one."""
        return self._verdict

    def before(self, reading: Reading) -> Verdict | None:
        """Take the reading before the scan: ``None`` is leave to start it, a verdict forbids it."""
        self._expect(Phase.WAITING, "before")
        self._before = reading
        if isinstance(reading, Missing):
            self._verdict = judge(reading, None)
        return self._verdict

    def after(self, reading: Reading) -> Verdict:
        """Take the reading after the scan, and judge."""
        self._expect(Phase.ARMED, "after")
        self._after = reading
        self._verdict = judge(self._before, reading)
        return self._verdict

    def following(self) -> Guard:
        """Make the guard of the scan that follows at once: its before-reading is our after-reading.

        When ours brought no trusted answer the new guard waits for a reading of its own: a scan
        may be started only after a trusted one.
        """
        self._expect(Phase.JUDGED, "following")
        follower = Guard()
        if isinstance(self._after, Identity):
            follower.before(self._after)
        return follower

    def _expect(self, phase: Phase, event: str) -> None:
        if self.phase is not phase:
            raise GuardMisused(
                f"{event}() belongs to the phase {phase}; this guard is {self.phase}"
            )
