"""What the guest client costs beside what it does: whole processes, from start to end.

One fixed identity is served from loopback by a small server, so that both sides of a pair wait for
the same answer. All of it is measured in a virtual environment that has what a guest has: in that
of the developers httpcore finds trio, and loads it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.figures import Figure, at_most, say
from tests.unit.guest.documents import document

RUNS = 31

_SERVER = """\
import socketserver, sys
body = open(sys.argv[1], "rb").read()
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: "
answer = head + str(len(body)).encode() + b"\\r\\n\\r\\n" + body
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            if line == b"\\r\\n":
                self.wfile.write(answer)
socketserver.ThreadingTCPServer.daemon_threads = True
server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def run() -> list[Figure]:
    """Measure; each pair by turns."""
    with tempfile.TemporaryDirectory() as folder:
        python = _guests_python(Path(folder, "guest"))
        client = str(python.with_name("guest-client"))
        identity = Path(folder, "identity.json")
        identity.write_text(json.dumps(document()))
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(identity)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            clean = {k: v for k, v in os.environ.items() if not k.startswith("GUEST_CLIENT_")}
            environment = clean | {"GUEST_CLIENT_ENABLER": url}
            scan, httpx = _pair(
                [client, "scan", "--", "true"], [str(python), "-c", "import httpx"], environment
            )
            figures = [
                Figure(
                    "client",
                    "whole process of `guest-client scan -- true`",
                    scan * 1000,
                    "ms",
                    baseline=httpx * 1000,
                    baseline_name='python3 -c "import httpx"',
                    aim=at_most(1.3),
                )
            ]
            if shutil.which("curl"):
                told, curl = _pair(
                    [client, "identity"], ["curl", "-sf", f"{url}/v1/identity"], environment
                )
                figures.append(
                    Figure(
                        "client",
                        "whole process of `guest-client identity`",
                        told * 1000,
                        "ms",
                        baseline=curl * 1000,
                        baseline_name="curl of the same",
                    )
                )
            return figures
        finally:
            server.kill()
            server.wait()


def _guests_python(folder: Path) -> Path:
    """A virtual environment with the client and what it needs, as locked; its Python."""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    locked = ["--require-hashes", "-r", str(root / "requirements" / "guest.txt")]
    subprocess.run([*install, *locked], check=True)
    subprocess.run([*install, "--no-deps", str(root)], check=True)
    return python


def _pair(
    measured: Sequence[str], baseline: Sequence[str], environment: Mapping[str, str]
) -> tuple[float, float]:
    """Median seconds of both, run by turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for command, found in zip((measured, baseline), times, strict=True):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            found.append(time.perf_counter() - began)
    say(f"{measured[0]} …: {' '.join(f'{each * 1000:.0f}' for each in sorted(times[0]))} ms")
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    from tests.bench.figures import table

    print(table(run()))
