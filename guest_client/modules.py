"""Modular scans: what to run next, and what a change of the machine made untrue. Pure.

A set of modules is guarded as one scan. The identity is read before the first module and after each
one, and the reading after one module is the reading before the next: N quiet modules cost N + 1
readings. When a reading differs from the one before it, only what that made untrue is run again.

Rules
-----
1. A module *stands* when it ran between two readings that tell of the same machine (``guard.py``),
   and nothing seen since has made it untrue. What does not stand is run again, what stands is not.
2. The module inside whose run the change fell is crossed, and never stands, whatever it reads:
   half of it may be of before, half of after.
3. A module whose content depends on the machine stands only while *nothing* in the identity has
   changed. So all that are published were measured in one residency, on one host, with one
   capacity and allocation, and it is the last reading's.
4. A module whose content does not depend on the machine (installed packages, say) stands while the
   VM is the same one and its disk has not gone back in time.
5. A reading without a trusted answer ends the set, unverified: nothing can be said about any of it.
6. The set is published when all of it stands, else nothing of it is.

What a change between two readings makes untrue:

    what was seen                               crossed   finished and       finished, not
                                                          host-dependent     host-dependent
    ------------------------------------------  --------  -----------------  ------------------
    nothing (also: renamed, migration begun)    -         stands             stands
    another residency, by migration (migrated,  again     again              stands
    returned)
    another residency, begun in another way     again     again              stands
    (restored, migrated by save and restore),
    and the generation is told to be the same
    the same, and it is not told                again     again              again
    another generation, or a residency that     again     again              again
    began by a snapshot (reverted)
    another VM (cloned)                         again     again              again
    other capacity or allocation (resized)      again     again              stands
    no trusted answer                           the set ends: unverified

Why so:

*returned* (A to B and back to A): the modules finished earlier on A did measure A. But the set says
of itself that it was measured in one residency, and of the time between nothing is known: the way
back is another arrival, as a new residency ID says, and on the way what hangs on the host (devices
passed through, CPU features) is taken off and put on again. The safe side costs a repeat at most.

*a residency that began in another way than by migration*: a saved VM that is restored goes on where
it was, and so does its disk; unless an older image was restored, or one for the second time. Then
the packages that were listed may not be those that are installed. Only an unchanged generation ID
says that it was not so; libvirt gives a new one with every restore, and so cannot say it.

*a generation that is not always told*: null, on a host that gives none, is no news (``guard.py``).
But a host-independent module may stand through several residencies, so the last ID that was told
since it ran is remembered, and another one after any number of nulls is a revert.

Theory of operation
-------------------
:class:`ModuleSet` is driven from outside, as the guard is. ``Run`` names the module to run next, in
the order of the plan, first what never ran and what is to be run again alike.

    phase     event                                  next phase   answer
    --------  -------------------------------------  -----------  ------------------------------
    READY     first(a trusted reading)               RUNNING      Run: the first module
    READY     first(no trusted answer)               OVER         End: unverified
    RUNNING   ran(nothing changed), some left        RUNNING      Run: the next one
    RUNNING   ran(nothing changed), all stand        OVER         Publish
    RUNNING   ran(a change), repeats left            RUNNING      Run: the first of what is to do
    RUNNING   ran(a change), none left               OVER         End: inconsistent
    RUNNING   ran(no trusted answer)                 OVER         End: unverified
    RUNNING   looked(any reading)                    as ran()     as ran(), but nothing was run: no
                                                                  module is crossed or finished

``looked`` is for whoever waits, before a module is run, until a migration is over. A repeat is a
change that makes something be run again: one that makes nothing untrue costs none. So a set of N
modules with R repeats ends after at most N * (R + 1) runs.

Anything else is a :class:`~guest_client.guard.GuardMisused`, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from guest_client.compat import StrEnum
from guest_client.guard import (
    Aspect,
    Guard,
    GuardMisused,
    Outcome,
    Reading,
    Verdict,
    describe_machine,
    differences,
)
from guest_client.identity import Arrival, Identity


@dataclass(frozen=True)
class Module:
    """One part of a scan; ``host_dependent``: does its content depend on the real machine?"""

    name: str
    host_dependent: bool = True


class Again(StrEnum):
    """Why a module that was run is to be run again."""

    CROSSED = "crossed"
    """The change fell inside its run."""
    MACHINE_CHANGED = "machine-changed"
    """It was finished, and tells of a machine that is no longer the one."""
    VM_CHANGED = "vm-changed"
    """It was finished; since then the VM became another, or may have gone back in time."""


@dataclass(frozen=True)
class Undone:
    """A run of a module that a change has made untrue."""

    module: Module
    why: Again


@dataclass(frozen=True)
class Run:
    """Run this module next. ``because`` is ``None`` when it has not been run before."""

    module: Module
    because: Again | None


@dataclass(frozen=True)
class Publish:
    """All of it stands. ``identity`` is the machine that the host-dependent modules tell of."""

    identity: Identity
    verdict: Verdict


@dataclass(frozen=True)
class End:
    """The set is not to be published; the verdict says why."""

    verdict: Verdict


Step = Union[Run, Publish, End]
"""What to do next."""


@dataclass(frozen=True)
class Turn:
    """What a reading brought: the verdict on the time since the one before, and what to do next."""

    verdict: Verdict | None
    """``None`` for a trusted first reading, which there is nothing to compare with."""
    undone: tuple[Undone, ...]
    """What the change made untrue, in the order of the plan; empty when nothing changed."""
    step: Step


class ModuleSet:
    """A set of modules, driven by readings; see the table above."""

    __slots__ = ("_finished", "_guard", "_modules", "_repeats", "_step", "_undone")

    def __init__(self, modules: Sequence[Module], *, repeat: int = 0) -> None:
        if not modules:
            raise ValueError("a set has one module or more")
        if len({module.name for module in modules}) < len(modules):
            raise ValueError("each module of a set has a name of its own")
        self._modules = tuple(modules)
        self._repeats = repeat
        self._guard = Guard()
        self._finished: dict[Module, str | None] = {}
        """What stands, and the last generation ID that was told since each was run."""
        self._undone: dict[Module, Again] = {}
        self._step: Step | None = None

    @property
    def repeats_left(self) -> int:
        """How many more changes there may be that make something be run again."""
        return self._repeats

    @property
    def standing(self) -> tuple[Module, ...]:
        """Which modules stand now, in the order of the plan."""
        return tuple(module for module in self._modules if module in self._finished)

    def first(self, reading: Reading) -> Turn:
        """Take the reading before the first module."""
        if self._step is not None:
            raise GuardMisused("first() comes once, and before all else")
        verdict = self._guard.before(reading)
        if verdict is not None:
            return self._turn(verdict, (), End(verdict))
        return self._turn(None, (), self._next())

    def ran(self, reading: Reading) -> Turn:
        """Take the reading after the module that was to be run."""
        return self._judge(reading, self._expect_run("ran").module)

    def looked(self, reading: Reading) -> Turn:
        """Take a reading before that module, which has not been run yet."""
        self._expect_run("looked")
        return self._judge(reading, None)

    def _expect_run(self, event: str) -> Run:
        if not isinstance(self._step, Run):
            raise GuardMisused(f"{event}() belongs to a set that has a module to run")
        return self._step

    def _judge(self, reading: Reading, ran: Module | None) -> Turn:
        before = self._guard.before_reading
        verdict = self._guard.after(reading)
        if not isinstance(reading, Identity) or not isinstance(before, Identity):
            return self._turn(verdict, (), End(verdict))
        self._guard = self._guard.following()
        undone: tuple[Undone, ...] = ()
        if verdict.inconsistent:
            undone = self._undo(ran, before, reading)
        elif ran is not None:
            self._finished[ran] = None
        if reading.vm.generation_id is not None:
            self._finished = dict.fromkeys(self._finished, reading.vm.generation_id)
        if undone:
            if not self._repeats:
                return self._turn(verdict, undone, End(verdict))
            self._repeats -= 1
        if len(self._finished) == len(self._modules):
            return self._turn(verdict, undone, Publish(reading, _whole(reading, verdict)))
        return self._turn(verdict, undone, self._next())

    def _undo(self, ran: Module | None, before: Identity, after: Identity) -> tuple[Undone, ...]:
        undone: dict[Module, Again] = {}
        for module, generation in self._finished.items():
            why = _untrue(module, generation, before, after)
            if why is not None:
                undone[module] = why
        for module in undone:
            del self._finished[module]
        if ran is not None:
            undone[ran] = Again.CROSSED
        self._undone |= undone
        return tuple(Undone(m, undone[m]) for m in self._modules if m in undone)

    def _next(self) -> Run:
        module = next(module for module in self._modules if module not in self._finished)
        return Run(module, self._undone.get(module))

    def _turn(self, verdict: Verdict | None, undone: tuple[Undone, ...], step: Step) -> Turn:
        self._step = step
        return Turn(verdict, undone, step)


def _untrue(
    module: Module, generation: str | None, before: Identity, after: Identity
) -> Again | None:
    """Say what a change between two readings does to a finished module; ``None``: it stands."""
    if _vm_changed(generation, before, after):
        return Again.VM_CHANGED
    return Again.MACHINE_CHANGED if module.host_dependent else None


def _vm_changed(generation: str | None, before: Identity, after: Identity) -> bool:
    """Whether the VM became another, or may have gone back in time, since ``generation``."""
    changes = differences(before, after)
    if Aspect.VM in changes or Aspect.GENERATION in changes:
        return True
    told = after.vm.generation_id
    if generation is not None and told is not None and generation != told:
        return True
    arrived = Aspect.HOST in changes or Aspect.RESIDENCY in changes
    if not arrived or after.residency.arrived_by is Arrival.MIGRATION:
        return False
    # The same ID on both sides is the hypervisor's own word that the VM did not go back.
    vouched = before.vm.generation_id is not None and told is not None
    return after.residency.arrived_by is Arrival.SNAPSHOT or not vouched


def _whole(identity: Identity, last: Verdict) -> Verdict:
    """Give the verdict on a set of which everything stands."""
    sentence = f"every part of the scan stands; the machine is {describe_machine(identity)}"
    if last.migrating:
        sentence += "; a migration was in progress and had not switched over"
    return Verdict(Outcome.CONSISTENT, None, (), sentence, last.migrating)
