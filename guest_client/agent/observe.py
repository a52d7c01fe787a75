"""What the agent's own watch makes of an identity that it reads: known and present in, news out.

Pure. The guard's rules (``guard.py``) say what changed; this says whom to call.

    known                  present                                   phase
    ---------------------  ----------------------------------------  ------------------------
    nothing                any                                       none: it is noted
    VM V                   another VM                                cloned
    generation G           another, and no restore explains it       reverted
    host H                 another host                              migrated
    residency R            another on the same host, by migration    migrated (it returned)
    residency R            another on the same host, by snapshot     reverted
    residency R            another on the same host, otherwise       none: restored, started
    not migrating          outgoing                                  migrating
    migrating              same residency, no longer outgoing        aborted

The key of what brought the VM to be where it is, is the scans' key (``triggers.py``): whoever sees
a migration first, it triggers once. A migration that has begun is known by its residency and a
count, as one VM can be about to leave the same host many times.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from guest_client.agent.model import Known, NewTrigger
from guest_client.agent.phases import Phase, phase_of
from guest_client.guard import Reason, describe_machine, judge
from guest_client.identity import Identity, MigrationState
from guest_client.times import rfc3339
from guest_client.triggers import TRIGGERING, trigger_key

SOURCE = "watch"


def observe(
    known: Known | None, present: Identity, now: datetime, source: str = SOURCE
) -> tuple[Known, tuple[NewTrigger, ...]]:
    """Compare what was known with what is read now; gives what is known from now on, and news."""
    if known is None:
        return _note_migration(Known(present), present, now, source)
    verdict = judge(known.identity, present)
    if not verdict.inconsistent or known.identity.residency.id == present.residency.id:
        news: tuple[NewTrigger, ...] = ()
        standing = Known(present, known.migrating, known.attempts)
    else:
        # A new stay: whatever was going on in the old one is over.
        news, standing = (), Known(present)
    if verdict.reason in TRIGGERING:
        reason = Reason(str(verdict.reason))
        standing = Known(present)
        news = (
            NewTrigger(
                key=trigger_key(present),
                phase=phase_of(reason),
                reason=str(reason),
                changes=tuple(str(aspect) for aspect in verdict.changes),
                sentence=_sentence(reason, known.identity, present),
                detected_at=rfc3339(now),
                source=source,
                before=known.identity.as_dict(),
                after=present.as_dict(),
            ),
        )
    standing, more = _note_migration(standing, present, now, source)
    return standing, (*news, *more)


def _note_migration(
    standing: Known, present: Identity, now: datetime, source: str
) -> tuple[Known, tuple[NewTrigger, ...]]:
    leaving = present.migration.state is MigrationState.OUTGOING
    if leaving == standing.migrating:
        return standing, ()
    attempts = standing.attempts + leaving
    phase = Phase.MIGRATING if leaving else Phase.ABORTED
    what = "is about to leave" if leaving else "did not leave"
    trigger = NewTrigger(
        key=_attempt_key(present, phase, attempts),
        phase=phase,
        reason=str(phase),
        changes=(),
        sentence=f"the VM {what} {describe_machine(present)}",
        detected_at=rfc3339(now),
        source=source,
        before=standing.identity.as_dict(),
        after=present.as_dict(),
    )
    return Known(present, leaving, attempts), (trigger,)


def _attempt_key(present: Identity, phase: Phase, attempt: int) -> str:
    return hashlib.sha256(f"{trigger_key(present)} {phase} {attempt}".encode()).hexdigest()[:32]


def _sentence(reason: Reason, before: Identity, after: Identity) -> str:
    if reason is Reason.CLONED:
        return (
            f"this VM is a clone: the state is of VM {before.vm.uuid}, and this is {after.vm.uuid}"
        )
    if reason is Reason.REVERTED:
        return "the VM was reverted to a snapshot, or duplicated: its generation is another"
    if reason is Reason.RETURNED:
        return f"the VM left {describe_machine(after)} and came back to it"
    return (
        f"the VM moved to another host: {describe_machine(before)}, then {describe_machine(after)}"
    )
