"""Load by wrk (https://github.com/wg/wrk) from a guest, and servers to put it on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.api.network import HOST, Network, run_in
from tests.api.running import eventually

UNLIMITED = {
    "ENABLER_LIMITS__REQUESTS_PER_SECOND": "1000000",
    "ENABLER_LIMITS__BURST": "1000000",
    "ENABLER_LIMITS__CONNECTIONS_PER_CALLER": "1000",
}
"""The limits work as ever, but are never reached."""

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it."""

    per_second: float
    p99: float
    """Seconds."""


def wrk(network: Network, url: str, seconds: float = 3, connections: int = 64) -> Load:
    """Ask as fast as possible on so many connections that are kept."""
    options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    command = run_in(network.guest, "wrk", *options, url)
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in done or "Socket errors" in done:
        raise RuntimeError(done)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", done)
    assert rate is not None, done
    assert p99 is not None, done
    return Load(float(rate[1]), float(p99[1]) * _UNITS[p99[2]])


def answer(network: Network, file: Path) -> None:
    """Keep the enabler's answer to a guest, headers and body, for the baselines."""
    curl = run_in(network.guest, "curl", "-sS", "-i", f"{network.url}/v1/identity")
    done = subprocess.run(curl, check=True, capture_output=True, text=True).stdout
    head, _, body = done.partition("\n\n")
    headers = [
        (name.strip(), value.strip())
        for name, _, value in (line.partition(":") for line in head.splitlines()[1:])
        if name.lower() != "date"
    ]
    file.write_text(json.dumps({"headers": headers, "body": body}))


@contextmanager
def baseline(network: Network, kind: str, port: int, file: Path) -> Iterator[int]:
    """A baseline in the host's namespace; gives its process ID."""
    command = [sys.executable, "-m", "tests.bench.baselines", kind, HOST, str(port), str(file)]
    with subprocess.Popen(run_in(network.host, *command)) as process:
        try:
            url = f"http://{HOST}:{port}/v1/identity"
            curl = run_in(network.guest, "curl", "-s", "-o", "/dev/null", url)
            eventually(lambda: subprocess.run(curl, check=False).returncode == 0)
            yield process.pid
        finally:
            process.terminate()


def quiet(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process does nothing: it has done what it does once for each VM it meets."""
    stat = Path(f"/proc/{process.pid}/stat")

    def ticks() -> int:
        fields = stat.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # utime and stime, proc_pid_stat(5)

    before = -100
    while (now := ticks()) - before > os.sysconf("SC_CLK_TCK") // 20:
        before = now
        time.sleep(1)
