"""Runs programs of the machine that the lab is on, with errors a person can act on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.errors import CommandFailed

#: The environment of everything that the lab runs: nothing leaks in from the caller's.
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}


#: Put before a command that mounts or runs long: it then ends, with all its children and
#: mounts, when the thread that started it does, even by SIGKILL.
CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
)


def execute(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | None = None,
    extra_env: Mapping[str, str] | None = None,
    inherit_env: bool = False,
    cwd: Path | None = None,
) -> str:
    """Run a program to its end and return what it printed on stdout.

    Raises:
        CommandFailed: it is missing, or it ended with another code than 0.
    """
    env = {**os.environ, **ENVIRONMENT} if inherit_env else dict(ENVIRONMENT)
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
            env={**env, **(extra_env or {})},
            cwd=cwd,
        )
    except FileNotFoundError:
        raise CommandFailed(
            f"{argv[0]} is not installed: install the packages that tests/lab/packages.txt lists"
        ) from None
    if done.returncode != 0:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-12:])
        raise CommandFailed(f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{said}")
    return done.stdout
