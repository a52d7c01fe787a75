"""What is kept with each VM's domain, and when it is written: the record of its stay, and its
history (`enabler.history`). In the inventory's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from enabler import domains, history, residency
from enabler.domains import Record
from enabler.errors import SigningUnavailable
from enabler.events import Carried, Stay
from enabler.history import Archive
from enabler.residency import Vm

_WAIT = 5.0
"""Seconds after a start for which records wait for all VMs to be looked at: one may hang."""

_INTERVAL = 0.005
"""Seconds from one VM's records to the next one's while there are many to write: after a start on a
host where none have been kept, they take a third of a processor and delay no answer.
"""


@dataclass(slots=True)
class _Kept:
    """What a domain has, or soon will have."""

    stay: Stay | None = None
    """Whose record we have asked to be kept."""
    history: Carried = field(default_factory=Carried)
    asked: str | None = None
    """The residency whose beginning we have asked to be kept in the history."""


class Recording:
    """Sees that the domains have what is to travel with them.

    ``write`` has a record written; what comes of it comes to `written`. ``look`` gives a VM as it
    is now, None if it is not known. Without an ``archive`` no history is kept. ``clock`` gives
    seconds.
    """

    def __init__(
        self,
        write: Callable[[str, Record], None],
        look: Callable[[str], Vm | None],
        archive: Archive | None,
        clock: Callable[[], float],
    ) -> None:
        self._write = write
        self._look = look
        self._archive = archive
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._put_off: dict[str, None] = {}
        """VMs found at a start whose records are still to be looked after, in order."""
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """A connection stands, and VMs are about to be looked at."""
        self._began = self._clock()

    def forget(self, vm_uuid: str) -> None:
        """The VM is here no more."""
        self._kept.pop(vm_uuid, None)
        self._put_off.pop(vm_uuid, None)

    def put_off(self, vm_uuid: str, vm: Vm) -> bool:
        """Look after a VM later, with `resume`, if its history has to be written; return whether.

        Many are found at a start: first they are all looked at, and guests can be answered.
        """
        if self._archive is None or vm.stay is None or vm.facts is None:
            return False
        if self._archive.has(vm.facts.history, vm.stay):
            return False
        self._put_off[vm_uuid] = None
        return True

    def resume(self, *, all_seen: bool) -> None:
        """Look after those that were put off, if all VMs have been seen, or have had their time."""
        waited = self._clock() - self._began
        if self._put_off and self._timer is None and (all_seen or waited > _WAIT):
            self._next()

    def _next(self) -> None:
        self._timer = None
        if not self._put_off:
            return
        vm_uuid = next(iter(self._put_off))
        vm = self._look(vm_uuid)
        if vm is None:
            del self._put_off[vm_uuid]
        else:
            self.keep(vm_uuid, vm)
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._next)

    def keep(self, vm_uuid: str, vm: Vm) -> None:
        """Have a stay's record and its entry in the history kept, if they are not."""
        self._put_off.pop(vm_uuid, None)
        if not (vm.resident and vm.settled) or vm.stay is None or vm.facts is None:
            return
        kept = self._kept.setdefault(vm_uuid, _Kept())
        # Not while it is moved: a record would wait for the migration, and then be another host's
        # affair.
        moving = vm.migration is not residency.MigrationState.NONE
        if vm.stay not in (vm.facts.recorded, kept.stay) and not moving:
            kept.stay = vm.stay
            self._write(vm_uuid, domains.record(vm.stay))
        self._keep_history(vm_uuid, kept, vm.facts.history, vm.stay, moving=moving)

    def _keep_history(
        self, vm_uuid: str, kept: _Kept, carried: Carried, stay: Stay, *, moving: bool
    ) -> None:
        if self._archive is None or self._archive.has(carried, stay):
            kept.history, kept.asked = carried, None
            return
        if kept.asked == stay.id:
            return  # on its way
        kept.history = carried
        if moving:
            return
        with contextlib.suppress(SigningUnavailable):  # which was logged
            kept.history = self._archive.arrival(carried, vm_uuid, stay, datetime.now(UTC))
            kept.asked = stay.id
            record = domains.history_record(kept.history, domains.Keep.BOTH)
            self._write(vm_uuid, record)

    def depart(self, vm_uuid: str, vm: Vm, at: datetime) -> None:
        """Keep the end of a stay, if the domain is still here: it was not moved, but stopped."""
        if vm_uuid in self._put_off:
            self.keep(vm_uuid, vm)
        kept = self._kept.get(vm_uuid)
        if self._archive is None or kept is None or vm.stay is None or not vm.resident:
            return
        if self._archive.has(kept.history, vm.stay):
            with contextlib.suppress(SigningUnavailable):
                now = datetime.now(UTC)
                ended = self._archive.departure(kept.history, vm_uuid, vm.stay, at, now)
                self._write(vm_uuid, domains.history_record(ended, domains.Keep.CONFIG))

    def history(self, vm_uuid: str, vm: Vm) -> Carried:
        """Return a VM's history, with its present stay."""
        if vm_uuid in self._put_off:
            self.keep(vm_uuid, vm)
        kept = self._kept.get(vm_uuid)
        return Carried() if kept is None else kept.history

    def written(self, vm_uuid: str, record: Record, *, failed: bool) -> None:
        """Take in what came of a record. One that failed is tried again when the VM is next looked
        at.
        """
        kept = self._kept.get(vm_uuid)
        if kept is None:
            return
        if record.namespace == history.NAMESPACE:
            kept.asked = None
        elif failed and kept.stay and domains.record(kept.stay) == record:
            kept.stay = None
