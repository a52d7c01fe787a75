"""The report and the manifest of a modular scan.

The report has the members that every report has (``report.py``): its verdict is that of the whole
set, its two reads are the last two, its output is the folder, with digest and size of the manifest.
And:

    plan       the plan's name, null if there was none
    modules    in the plan's order: {"name", "command", "file", "host_dependent", "description",
               "runs" (how often it was run), "stands", "verdict" (its last run's), "output"
               ({"sha256", "bytes"} of its last run)}; the last two null if it was not run
    left_out   those that are not run, as they are not installed or not wanted: {"name", "command",
               "why"}
    reads      every read, in order, as "before" and "after" of the whole
    runs       every run of a module, in order: {"number", "module", "because" (null the first time;
               then "crossed", "machine-changed" or "vm-changed": see ``modules.py``),
               "before", "after" (numbers in "reads", from 0), "waited_for_migration" (seconds),
               "scanner", "output", "verdict", "stands" (to the end)}
    changes    every change of the machine, in order: {"before", "after" (numbers in "reads"),
               "during" (the module that it crossed, or null), "verdict", "undone" ([{"module",
               "why"}]), "repeat" (the how manieth repeat it cost, null if none)}

The manifest is ``manifest.json`` in the published folder (additive; ``manifest_version`` counts
incompatible changes):

    manifest_version  1
    client            {"name", "version"}
    plan
    started           of the whole scan
    published         when it was put there
    verdict           of the whole; in a folder from --output its outcome is always "consistent"
    identity          the one document that every host-dependent module was measured under, its
                      residency among its members: that of the last read; null if that failed
    modules           {"name", "output" (the file's name), "sha256", "bytes", "host_dependent",
                      "description", "command", "exit_code", "started", "finished", "runs",
                      "residency_id" (where it ran: one that is not host-dependent may have run in
                      an earlier residency), "stands" (in a folder from --output always true)}
    left_out          as in the report
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from guest_client.channel import Read
from guest_client.folder import MANIFEST_VERSION
from guest_client.guard import Verdict
from guest_client.modules import Again, Undone
from guest_client.output import Digest
from guest_client.plan import LeftOut, PlannedModule
from guest_client.process import Ended
from guest_client.report import (
    Attempt,
    Report,
    client_as_dict,
    digest_as_dict,
    ended_as_dict,
    or_null,
)


@dataclass
class ModuleRun:
    """One run of a module between two reads, as far as it came."""

    number: int
    module: PlannedModule
    because: Again | None
    before: int
    waited: float
    after: int | None = None
    scanner: Ended | None = None
    output: Digest | None = None
    verdict: Verdict | None = None
    stands: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Give the run as the report writes it."""
        return {
            "number": self.number,
            "module": self.module.name,
            "because": None if self.because is None else str(self.because),
            "before": self.before,
            "after": self.after,
            "waited_for_migration": round(self.waited, 3),
            "scanner": ended_as_dict(self.scanner),
            "output": digest_as_dict(self.output),
            "verdict": or_null(self.verdict),
            "stands": self.stands,
        }


@dataclass(frozen=True)
class Change:
    """A change of the machine that was seen between two reads, and what it made untrue."""

    before: int
    after: int
    during: PlannedModule | None
    verdict: Verdict
    undone: tuple[Undone, ...]
    repeat: int | None

    def as_dict(self) -> dict[str, Any]:
        """Give the change as the report writes it."""
        return {
            "before": self.before,
            "after": self.after,
            "during": None if self.during is None else self.during.name,
            "verdict": self.verdict.as_dict(),
            "undone": [{"module": one.module.name, "why": str(one.why)} for one in self.undone],
            "repeat": self.repeat,
        }


@dataclass
class SetReport(Report):
    """The report of a modular scan."""

    plan: str | None
    modules: tuple[PlannedModule, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    reads: list[Read] = field(default_factory=list, init=False)
    runs: list[ModuleRun] = field(default_factory=list, init=False)
    changes: list[Change] = field(default_factory=list, init=False)
    verdict: Verdict | None = field(default=None, init=False)
    manifest: Digest | None = field(default=None, init=False)

    def last(self) -> Attempt:
        """Give the verdict of the whole, the last two reads, and the manifest's digest."""
        before, after = self.reads[-2:] if len(self.reads) > 1 else (*self.reads, None, None)[:2]
        return Attempt(0, before, after, output=self.manifest, verdict=self.verdict)

    def last_run(self, module: PlannedModule) -> ModuleRun | None:
        """Give the latest run of a module, if it was run."""
        return next((run for run in reversed(self.runs) if run.module == module), None)

    def run_count(self, module: PlannedModule) -> int:
        """Say how often a module was run."""
        return sum(run.module == module for run in self.runs)

    def details(self) -> dict[str, Any]:
        """Give the modules, and what became of each."""
        return {
            "plan": self.plan,
            "modules": [self._module(module) for module in self.modules],
            "left_out": self._left_out(),
            "reads": [read.as_dict() for read in self.reads],
            "runs": [run.as_dict() for run in self.runs],
            "changes": [change.as_dict() for change in self.changes],
        }

    def as_manifest(self, published: str) -> bytes:
        """Make the manifest of what there is now; ``published`` is a time of day (RFC 3339)."""
        identity = self.reads[-1].identity if self.reads else None
        document = {
            "manifest_version": MANIFEST_VERSION,
            "client": client_as_dict(),
            "plan": self.plan,
            "started": self.started,
            "published": published,
            "verdict": or_null(self.verdict),
            "identity": None if identity is None else identity.as_dict(),
            "modules": [
                self._entry(run)
                for module in self.modules
                if (run := self.last_run(module)) is not None and run.output is not None
            ],
            "left_out": self._left_out(),
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    def _module(self, module: PlannedModule) -> dict[str, Any]:
        run = self.last_run(module)
        return {
            "name": module.name,
            "command": list(module.command),
            "file": module.output,
            "host_dependent": module.host_dependent,
            "description": module.description,
            "runs": self.run_count(module),
            "stands": run is not None and run.stands,
            "verdict": None if run is None else or_null(run.verdict),
            "output": None if run is None else digest_as_dict(run.output),
        }

    def _entry(self, run: ModuleRun) -> dict[str, Any]:
        module, began = run.module, self.reads[run.before].identity
        assert run.scanner is not None
        assert run.output is not None
        return {
            "name": module.name,
            "output": module.output,
            "sha256": run.output.sha256,
            "bytes": run.output.size,
            "host_dependent": module.host_dependent,
            "description": module.description,
            "command": list(module.command),
            "exit_code": run.scanner.exit_code,
            "started": run.scanner.started,
            "finished": run.scanner.finished,
            "runs": self.run_count(module),
            "residency_id": None if began is None else began.residency.id,
            "stands": run.stands,
        }

    def _left_out(self) -> list[dict[str, Any]]:
        return [
            {"name": left.module.name, "command": list(left.module.command), "why": left.why}
            for left in self.left_out
        ]
