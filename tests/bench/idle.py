"""What an enabler costs that nobody asks anything: memory with 100 VMs, CPU over a minute."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.api.network import HOST, network, serving, vm_mac, write_node
from tests.bench.figures import Figure, at_most, say
from tests.bench.load import answer, baseline

VMS, SECONDS, STARTS = 100, 60, 3
_PORT = 9003


def run() -> list[Figure]:
    """Measure both."""
    enabler, empty = [], []
    with tempfile.TemporaryDirectory() as name, network("vmidle", [vm_mac(1)]) as net:
        folder = Path(name)
        uri = write_node(folder / "node.xml", VMS)
        for number in range(STARTS):
            with serving(net, folder / "log", uri=uri) as process:
                answer(net, folder / "answer")
                time.sleep(2)
                enabler.append(_memory(process.pid))
                if number == STARTS - 1:
                    say(f"idle for {SECONDS} s")
                    before = _cpu(process.pid)
                    time.sleep(SECONDS)
                    used = _cpu(process.pid) - before
            with baseline(net, "empty", _PORT, folder / "answer") as pid:
                url = f"http://{HOST}:{_PORT}/readyz"
                subprocess.run(
                    ["ip", "netns", "exec", net.guest, "curl", "-s", url],
                    check=True,
                    capture_output=True,
                )
                empty.append(_memory(pid))
            said = f"{enabler[-1]:.1f} MiB, bare FastAPI app {empty[-1]:.1f} MiB"
            say(f"start {number + 1} of {STARTS}: {said}")
    return [
        Figure(
            "idle",
            f"resident memory, idle, {VMS} VMs",
            median(enabler),
            "MiB",
            median(empty),
            "bare FastAPI app",
            at_most(1.5),
        ),
        Figure("idle", f"CPU used idle, {SECONDS} s", used, "s", aim=at_most(0.1)),
    ]


def _memory(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no VmRSS of {pid}; {sys.platform}")


def _cpu(pid: int) -> float:
    """Seconds that a process has run, by the scheduler's count; ticks are too coarse."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
