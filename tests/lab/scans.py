"""A guarded scan in a guest, held in its middle for as long as a test needs.

The scanner is a real one (lshw), behind a gate: it says that it has begun, waits for the gate to
open, then reads the hardware. So a test can let anything happen inside a scan, without racing it:

    scan = GatedScan(guest, "--repeat-if-migrated")
    scan.wait_begun()
    migrate(guest, host_b)
    result = scan.finish()
    assert result.reason == "migrated"
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from tests.lab.guest import Guest
from tests.lab.jobs import Result
from tests.lab.processes import wait_until

_SCANNER = """\
#!/bin/sh
echo x >> "$1/begun"
run=$(wc -l < "$1/begun")
while [ ! -e "$1/gate" ] && [ ! -e "$1/gate-$run" ]; do /bin/busybox usleep 50000; done
exec lshw -quiet -json -class system
"""


@dataclass(frozen=True, slots=True)
class Scanned:
    """What came of a scan: the client's own end, its report, and what it published."""

    done: Result
    report: dict[str, Any]
    output: bytes | None

    @property
    def code(self) -> int:
        """The client's exit code."""
        return self.done.returncode

    @property
    def outcome(self) -> str:
        """The last attempt's verdict."""
        outcome: str = self.report["verdict"]["outcome"]
        return outcome

    @property
    def reason(self) -> str | None:
        """The last attempt's reason."""
        reason: str | None = self.report["verdict"]["reason"]
        return reason

    def verdicts(self) -> list[tuple[str, str | None]]:
        """The verdict and reason of each attempt."""
        return [
            (attempt["verdict"]["outcome"], attempt["verdict"]["reason"])
            for attempt in self.report["attempts"]
        ]

    def serials(self) -> tuple[str | None, str | None]:
        """The real machine's serial number at the last attempt's two reads."""
        return self._serial("before"), self._serial("after")

    def _serial(self, read: str) -> str | None:
        identity = (self.report[read] or {}).get("identity")
        return identity["machine"]["serial_number"] if identity else None


class GatedScan:
    """A `guest-client scan` in a guest that begins at once and ends when the gate is opened."""

    def __init__(self, guest: Guest, *options: str) -> None:
        self.guest = guest
        self.folder = f"/run/scan-{uuid.uuid4().hex[:8]}"
        guest.write_file(f"{self.folder}/scanner", _SCANNER, mode=0o755)
        self._job = guest.spawn(
            [
                *("guest-client", "scan", "--verbose"),
                *("--output", f"{self.folder}/output", "--report", f"{self.folder}/report"),
                *(*options, "--", f"{self.folder}/scanner", self.folder),
            ]
        )

    def begun(self) -> int:
        """How many times the scanner has been started."""
        try:
            return len(self.guest.read_file(f"{self.folder}/begun").split())
        except FileNotFoundError:
            return 0

    def wait_begun(self, times: int = 1, seconds: float = 60) -> None:
        """Wait until the scanner runs: the before-read has been made."""
        assert wait_until(lambda: self.begun() >= times or self._job.poll() is not None, seconds)
        assert self.begun() >= times, self._job.wait(1).stderr

    def open_gate(self, run: int | None = None) -> None:
        """Let the scanner, and all its repeats, go on to their end; or only its nth run."""
        self.guest.write_file(f"{self.folder}/gate" + ("" if run is None else f"-{run}"), "")

    def finish(self, seconds: float = 120) -> Scanned:
        """Open the gate and wait for the client's end."""
        self.open_gate()
        return self.result(seconds)

    def result(self, seconds: float = 120) -> Scanned:
        """Wait for the client's end."""
        done = self._job.wait(seconds)
        report = json.loads(self.guest.read_file(f"{self.folder}/report"))
        try:
            output = self.guest.read_file(f"{self.folder}/output")
        except FileNotFoundError:
            output = None
        return Scanned(done, report, output)


def scan(guest: Guest, *options: str) -> Scanned:
    """Run a scan that nothing holds up."""
    gated = GatedScan(guest, *options)
    return gated.finish()
