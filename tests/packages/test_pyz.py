"""guest-client.pyz: one file, any Python that is new enough, nothing else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.packages.test_debian import TRIGGER

NOTHING = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def pyz(built: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with a Python that sees its own standard library alone."""
    return subprocess.run(
        [sys.executable, "-I", "-S", built / "guest-client.pyz", *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        env=NOTHING,
        check=False,
    )


def test_it_brings_all_that_it_needs(built: Path) -> None:
    assert pyz(built, "--version").stdout.startswith("guest-client ")
    assert "hardware" in pyz(built, "plans").stdout
    done = pyz(built, "identity", "--enabler", "http://127.0.0.1:9", "--deadline", "1")
    assert done.returncode == 69
    assert "Traceback" not in done.stderr


def test_its_agent_calls_itself(built: Path, tmp_path: Path) -> None:
    program = tmp_path / "guest-client"
    shutil.copy2(built / "guest-client.pyz", program)
    environment = NOTHING | {
        "GUEST_CLIENT_STATE_DIR": str(tmp_path / "state"),
        "GUEST_CLIENT_ENABLER": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        ["sh", "-c", TRIGGER, "trigger", sys.executable, "-I", "-S", program],
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agent-id" in done.stdout
    assert (tmp_path / "state" / "agent-id.history").exists()


def test_an_old_python_is_told_so(built: Path, tmp_path: Path) -> None:
    claimed = tmp_path / "claimed.py"
    claimed.write_text(
        "import runpy, sys\n"
        "sys.version_info = (3, 8, 20, 'final', 0)\n"
        f"runpy.run_path({str(built / 'guest-client.pyz')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, claimed], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (69, 1), done.stderr
    assert "3.9 or later" in done.stderr
    # And it gets as far as that: the file is one that Python 3.6 can read.
    with zipfile.ZipFile(built / "guest-client.pyz") as archive:
        ast.parse(archive.read("__main__.py"), feature_version=(3, 6))
