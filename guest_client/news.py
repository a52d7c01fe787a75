"""What is news between two identities that a watch read one after the other. Pure.

    before              now                                      change
    ------------------  ---------------------------------------  ----------------------------------
    nothing             any                                      present
    differs in what a guard compares (``guard.py``)              the guard's reason: migrated,
                                                                 returned, restored, reverted,
                                                                 cloned, resized
    not leaving         outgoing                                 migrating
    outgoing            same stay, no longer outgoing            aborted: it stays where it is
    post-copy           same stay, none                          settled: its memory is all here

A new stay ends what went on in the one before, so a migration that was seen to begin and then
succeeded is ``migrating``, ``migrated``.
"""

from __future__ import annotations

from guest_client.compat import StrEnum
from guest_client.guard import Reason, describe_machine, judge
from guest_client.identity import Identity, MigrationState


class Change(StrEnum):
    """What a line of ``guest-client watch`` tells."""

    PRESENT = "present"
    MIGRATING = "migrating"
    ABORTED = "aborted"
    SETTLED = "settled"
    UNVERIFIED = "unverified"
    MIGRATED = str(Reason.MIGRATED)
    RETURNED = str(Reason.RETURNED)
    RESTORED = str(Reason.RESTORED)
    CLONED = str(Reason.CLONED)
    REVERTED = str(Reason.REVERTED)
    RESIZED = str(Reason.RESIZED)


NO_CHANGE = (Change.PRESENT, Change.UNVERIFIED)
"""What is told without anything having changed."""


def news(before: Identity | None, now: Identity) -> list[tuple[Change, str]]:
    """Name each change between two identities, in order, with a sentence for people."""
    machine = describe_machine(now)
    if before is None:
        found = [(Change.PRESENT, f"the VM runs on {machine}")]
        state = MigrationState.NONE
    else:
        found = []
        verdict = judge(before, now)
        if verdict.reason is not None:
            found.append((Change(str(verdict.reason)), _sentence(verdict.reason, before, now)))
        same_stay = before.residency.id == now.residency.id and before.vm.uuid == now.vm.uuid
        state = before.migration.state if same_stay else MigrationState.NONE
    if now.migration.state is MigrationState.OUTGOING and state is not MigrationState.OUTGOING:
        found.append((Change.MIGRATING, f"the VM is about to leave {machine}"))
    elif now.migration.state is not MigrationState.OUTGOING and state is MigrationState.OUTGOING:
        found.append((Change.ABORTED, f"the VM did not leave {machine}"))
    elif now.migration.state is MigrationState.NONE and state is MigrationState.POSTCOPY:
        found.append((Change.SETTLED, f"all of the VM's memory has come to {machine}"))
    return found


def _sentence(reason: str, before: Identity, now: Identity) -> str:
    here = describe_machine(now)
    sentences = {
        Reason.MIGRATED: f"the VM moved from {describe_machine(before)} to {here}",
        Reason.RETURNED: f"the VM left {here} and came back",
        Reason.RESTORED: f"the VM's stay on {here} is a new one (by {now.residency.arrived_by})",
        Reason.REVERTED: "the VM was reverted to a snapshot, or duplicated",
        Reason.CLONED: f"this is another VM now: {before.vm.uuid} became {now.vm.uuid}",
        Reason.RESIZED: "the host's capacity, or the VM's vCPUs or memory, changed",
    }
    return sentences[Reason(reason)]
