"""The migrations that this host saw: counted, and one line in the log for each.

kind                what was seen
------------------  -----------------------------------------------------
incoming            the VM runs here, with all of its memory
incoming-postcopy   the VM runs here, its memory is still arriving
outgoing            the VM was switched over to another host
aborted             a migration away ended, and the VM is still here
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from enabler.changes import Change, EventKind, Known
from enabler.events import ArrivedBy
from enabler.residency import MigrationState, Place, Vm

log = logging.getLogger(__name__)

KINDS = ("incoming", "incoming-postcopy", "outgoing", "aborted")

_SAID = {
    "incoming": "migrated here",
    "incoming-postcopy": "migrated here, its memory is still arriving",
    "outgoing": "migrated away",
    "aborted": "stays here: its migration was aborted",
}


@dataclass(slots=True)
class _Move:
    began: datetime
    leaving: bool = False
    """Switched over by an event, perhaps too fast for libvirt to have been asked about it."""
    told: bool = False
    """That it was switched over was counted."""


class Migrations:
    """Takes in what is known of VMs as it changes. Of one thread, the event loop's."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._moves: dict[str, _Move] = {}

    def changed(self, vm_uuid: str, vm: Vm) -> None:
        """Take in a VM's state after each news of it: when a move begins, and that it left."""
        if vm.place is Place.ARRIVING or vm.place is Place.LEAVING:
            moving = True
        else:
            moving = vm.migration is not MigrationState.NONE and vm.place is not Place.ABSENT
        move = self._moves.get(vm_uuid)
        if moving and move is None:
            move = self._moves[vm_uuid] = _Move(datetime.now(UTC))
        if move is not None:
            move.leaving = vm.place is Place.LEAVING or (move.leaving and not vm.resident)

    def tell(self, vm_uuid: str, told: list[Change], vm: Vm, at: datetime) -> None:
        """Take in what is told of a VM, and how it stands then; ``at``: when libvirt said so."""
        move = self._moves.get(vm_uuid)
        for change in told:
            kind = _kind(change, move)
            if kind is not None:
                if kind == "outgoing" and move is not None:
                    move.told = True
                self._count(kind, vm_uuid, change.vm, move, at)
        if vm.place is Place.ABSENT or (vm.resident and vm.migration is MigrationState.NONE):
            self._moves.pop(vm_uuid, None)

    def _count(
        self, kind: str, vm_uuid: str, known: Known, move: _Move | None, at: datetime
    ) -> None:
        self.counts[kind] += 1
        fields: dict[str, object] = {
            "vm": vm_uuid,
            "name": known.facts.name,
            "migration": kind,
            "residency": known.stay.id,
        }
        text = f"VM {vm_uuid} ({known.facts.name}) {_SAID[kind]}: residency {known.stay.id}"
        before = known.facts.recorded
        if kind.startswith("incoming") and before is not None and before.id != known.stay.id:
            # The record of the host it came from, which travelled with it.
            fields["from_residency"] = before.id
            text += f", from {before.id}"
        if move is not None:
            seconds = max(0.0, (max(at, datetime.now(UTC)) - move.began).total_seconds())
            fields["seconds"] = round(seconds, 3)
            text += f", after {seconds:.3f} s"
        log.info("%s", text, extra={"fields": fields})


def _kind(change: Change, move: _Move | None) -> str | None:
    match change.kind:
        case EventKind.ARRIVAL if change.vm.stay.arrived_by is ArrivedBy.MIGRATION:
            postcopy = change.vm.migration is MigrationState.POSTCOPY
            return "incoming-postcopy" if postcopy else "incoming"
        case EventKind.MIGRATION_SWITCHED_OVER:
            return "outgoing"
        case EventKind.DEPARTURE if move is not None and move.leaving and not move.told:
            return "outgoing"
        case EventKind.MIGRATION_ABORTED:
            return "aborted"
    return None
