"""One modular scan: modules run in turn with a read between them; published together, or not.

What is run next, and what a change made untrue, is settled in ``modules.py``; this does it. How the
whole ends:

    all modules stand                    published together        0
    a module's program ended with an     nothing is published      the program's own, as the shell
    exit code that is not among its ok                             has it
    ones, or was killed
    a change, and no repeat left         nothing is published      75
    no trusted answer                    nothing is published      69; 77 when we are refused
    a migration in progress for longer   nothing is published      75
    than we may wait

A module whose program failed is judged first: if it was crossed, that may be why it failed, and it
is run again. What is not published is discarded, or put into ``keep``, if any module has run.

The modules' standard input is empty: what one of them read, another would miss. Their messages go
where ours go. An output that is still written to after its program has ended, by something that
program left behind, is not what was judged: the set is not published.
"""

from __future__ import annotations

import hashlib
import subprocess
from contextlib import closing
from dataclasses import dataclass

from guest_client.channel import Read
from guest_client.errors import OutputWriteError
from guest_client.folder import FolderDestination, Part
from guest_client.guard import Verdict
from guest_client.modules import End, ModuleSet, Publish, Run, Turn
from guest_client.output import Digest
from guest_client.plan import Plan, PlannedModule, choose
from guest_client.process import run
from guest_client.session import INCONSISTENT, Session, Settled, code_without
from guest_client.set_report import Change, ModuleRun, SetReport
from guest_client.text import printable
from guest_client.times import rfc3339, utc_now


@dataclass(frozen=True)
class SetRequest:
    """What a modular scan is to do."""

    plan: Plan
    output: FolderDestination
    keep: FolderDestination | None = None


class ModularScan:
    """Carries out a :class:`SetRequest`."""

    def __init__(self, request: SetRequest, session: Session) -> None:
        self._request = request
        self._session = session
        self._say = session.say
        self._written: dict[str, tuple[int, int] | None] = {}
        """By file: its size and time of change when its program had ended."""
        self.report = SetReport(
            plan=request.plan.name,
            modules=request.plan.modules,
            enabler=session.enabler,
            destination=request.output.name,
            started=rfc3339(utc_now()),
        )

    def run(self) -> int:
        """Scan, and give the exit code. Errors are said and reported, not raised."""
        return self._session.conclude(self._scan, self.report)

    def _scan(self) -> int:
        report = self.report
        report.modules, missing = choose(self._request.plan)
        report.left_out = (*self._request.plan.left_out, *missing)
        if missing:
            names = (
                f"{left.module.name} ({printable(left.module.command[0], 40)})" for left in missing
            )
            self._say(f"not installed here, and left out: {', '.join(names)}")
        self._session.reactions.prepare()
        with self._session.catcher.held():
            part = self._request.output.part()
        try:
            self._session.catcher.check()
            return self._drive(part)
        finally:
            part.discard()

    def _drive(self, part: Part) -> int:
        modules = ModuleSet(
            [module.module for module in self.report.modules], repeat=self._session.terms.repeat
        )
        settled = self._settle()
        turn = modules.first(settled.read.reading)
        while settled.still is None:
            step = turn.step
            if isinstance(step, Publish):
                return self._publish(part, step.verdict)
            if isinstance(step, End):
                return self._end(part, step.verdict, settled.read)
            if self._must_wait(settled.read):
                settled = self._settle()
                turn = modules.looked(settled.read.reading)
                self._see(turn, None, modules)
                continue
            this = self._begin(step, settled.waited)
            settled = self._execute(this, part)
            turn = modules.ran(settled.read.reading)
            this.verdict = turn.verdict
            self._see(turn, this.module, modules)
            code = self._outcome(this, part)
            if code:
                return code
        return self._not_begun(part, settled.still)

    def _settle(self) -> Settled:
        settled = self._session.settle()
        self.report.reads.append(settled.read)
        return settled

    def _must_wait(self, read: Read) -> bool:
        waits = self._session.terms.wait_if_migrating is not None
        return waits and read.identity is not None and read.identity.migrating

    def _begin(self, step: Run, waited: float) -> ModuleRun:
        planned = {module.name: module for module in self.report.modules}
        number, before = len(self.report.runs) + 1, len(self.report.reads) - 1
        this = ModuleRun(number, planned[step.module.name], step.because, before, waited)
        self.report.runs.append(this)
        return this

    def _execute(self, this: ModuleRun, part: Part) -> Settled:
        """Run a module, and read the identity after it."""
        module, catcher = this.module, self._session.catcher
        spool = part.spool(module.output)
        with closing(spool):
            this.scanner = run(
                module.command, catcher, stdin=subprocess.DEVNULL, stdout=spool.stream
            )
            catcher.check()
            read = self._session.read()
            self.report.reads.append(read)
            this.after = len(self.report.reads) - 1
            this.output = spool.digest()
            if _ended_well(this):
                spool.prove_room()
            self._written[module.output] = _size_and_time(part, module.output)
        return Settled(read, 0.0, None)

    def _outcome(self, this: ModuleRun, part: Part) -> int:
        """Give the exit code of a module that failed and was not crossed; 0 for all others."""
        assert this.verdict is not None
        assert this.scanner is not None
        if not this.verdict.consistent:
            return 0
        this.stands = _ended_well(this)
        if this.stands:
            return 0
        self.report.verdict = this.verdict
        how = (
            f"was killed by {this.scanner.signal}"
            if this.scanner.signal is not None
            else f"ended with {this.scanner.exit_code}"
        )
        self.report.error = (
            f"the {this.module.name} module's program, {printable(this.module.command[0])}, {how};"
            f" {self._discard(part)}; mend it, or --leave-out {this.module.name}"
        )
        self._say(self.report.error)
        return this.scanner.shell_code

    def _see(self, turn: Turn, during: PlannedModule | None, modules: ModuleSet) -> None:
        """React to a change, put it down, and tell of it what is not the end of all."""
        if turn.verdict is None or not turn.verdict.inconsistent:
            return
        report, session = self.report, self._session
        before, after = len(report.reads) - 2, len(report.reads) - 1
        # First of all, for this is what may not be lost.
        session.reactions.react(
            turn.verdict, report.reads[before].trusted(), report.reads[after].trusted()
        )
        for one in turn.undone:
            runs = reversed(report.runs)
            next(run for run in runs if run.module.name == one.module.name).stands = False
        ends = isinstance(turn.step, End)
        repeat = session.terms.repeat - modules.repeats_left if turn.undone and not ends else None
        report.changes.append(Change(before, after, during, turn.verdict, turn.undone, repeat))
        if ends:
            return
        names = ", ".join(f"{one.module.name} ({one.why})" for one in turn.undone)
        then = (
            f"running again ({repeat} of {session.terms.repeat}): {names}"
            if names
            else "nothing that was run is untrue by it"
        )
        standing = [module.name for module in modules.standing]
        if standing:
            then += f"; {', '.join(standing)} {'stands' if len(standing) == 1 else 'stand'}"
        self._say(f"{turn.verdict.sentence}; {then}")

    def _publish(self, part: Part, verdict: Verdict) -> int:
        report = self.report
        report.verdict = verdict
        for module in report.modules:
            if _size_and_time(part, module.output) != self._written[module.output]:
                raise OutputWriteError(
                    f"{module.output} was changed after the {module.name} module's program had"
                    " ended; nothing was published: see that it waits for what it starts"
                )
        content = report.as_manifest(rfc3339(utc_now()))
        with self._session.catcher.held():
            self._request.output.publish(part, content)
            report.published = True
        report.manifest = Digest(hashlib.sha256(content).hexdigest(), len(content))
        if verdict.migrating:
            self._say(verdict.sentence)
        return 0

    def _end(self, part: Part, verdict: Verdict, read: Read) -> int:
        report, repeats = self.report, self._session.terms.repeat
        report.verdict = verdict
        if not report.runs:
            self._say(f"{verdict.sentence}; the scan was not started")
        elif not verdict.inconsistent:
            self._say(f"{verdict.sentence}; {self._discard(part)}")
        else:
            then = (
                f"giving up after repeating {repeats} times"
                if repeats
                else "run it again, or use --repeat-if-migrated"
            )
            self._say(f"{verdict.sentence}; {self._discard(part)}; {then}")
        return INCONSISTENT if verdict.inconsistent else code_without(read)

    def _not_begun(self, part: Part, still: Verdict) -> int:
        self.report.verdict = still
        self._say(
            f"{still.sentence}; {self._discard(part)}" if self.report.runs else still.sentence
        )
        return INCONSISTENT

    def _discard(self, part: Part) -> str:
        """Put what there is where it is to be kept, if anywhere; gives the words for it."""
        keep = self._request.keep
        if keep is None:
            return "nothing was published"
        kept = keep.part()
        try:
            for run in {run.module.output: run for run in self.report.runs}.values():
                kept.copy(part, run.module.output)
            with self._session.catcher.held():
                keep.publish(kept, self.report.as_manifest(rfc3339(utc_now())))
        finally:
            kept.discard()
        self.report.kept = keep.name
        return f"nothing was published, what there is was kept in {printable(keep.name)}"


def _ended_well(this: ModuleRun) -> bool:
    return this.scanner is not None and this.scanner.exit_code in this.module.ok_exit_codes


def _size_and_time(part: Part, name: str) -> tuple[int, int] | None:
    try:
        status = (part.path / name).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
