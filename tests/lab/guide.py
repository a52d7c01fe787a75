"""``make guide``: deploy/README.md's first guarded scan, followed word for word; the transcript.

What is run is what the guide says: the lines of its section that begin with a prompt (``host-a#``,
``host-b#``, ``each-host#``, ``vm1#``), each in the shell of that host or VM. A comment in its
source marks a block that can't be run in the lab (``not in the lab: why``), or what is run there in
its place (``in the lab, …: command``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import REPOSITORY
from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.jobs import Job
from tests.lab.lab import Lab

GUIDE = REPOSITORY / "deploy" / "README.md"
_SECTION = "## A first guarded scan"
_INDENT = " " * 7
_COMMENT = re.compile(r" *<!-- (not in the lab|in the lab[^:]*): (.*) -->")
_PROMPT = re.compile(r"(host-a|host-b|each-host|vm1)# (.+)")


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the guide: who is to type what; with ``left_out``, why it is not run here."""

    where: str
    command: str
    left_out: str | None = None


class GuideFailed(LabError):
    """A command of the guide did not end with 0."""


def steps(text: str) -> Iterator[Step]:
    """The commands of the guide's section, in order.

    Raises:
        LabError: there is no such section, or a line in a block without a prompt.
    """
    _, found, section = text.partition(_SECTION)
    if not found:
        raise LabError(f"{GUIDE} has no section '{_SECTION}'")
    left_out: str | None = None
    instead: str | None = None
    for line in section.partition("\n## ")[0].splitlines():
        comment = _COMMENT.fullmatch(line)
        if comment:
            left_out = comment[2] if comment[1].startswith("not") else None
            instead = comment[2] if left_out is None else None
        elif line.startswith(_INDENT):
            said = line.strip() if instead is None else instead
            prompt = _PROMPT.fullmatch(said)
            if prompt is None and left_out is None:
                raise LabError(f"the guide does not say where to run this: {said}")
            where, command = prompt.groups() if prompt else ("anywhere", said)
            yield Step(where, command, left_out)
        elif line.strip():
            left_out = instead = None


class Follower:
    """Somebody who follows the guide: a shell on each host and in the VM."""

    def __init__(self, lab: Lab) -> None:
        self._hosts = {host.name: host for host in lab.hosts}
        self._guest = lab.guests[0]
        self._variables: dict[str, str] = {}
        self._behind: Job | None = None

    def follow(self, step: Step) -> None:
        """Do one step, and print it. Raises `GuideFailed`."""
        if step.left_out is not None:
            print(f"\n{step.where}# {step.command}\n    (not in the lab: {step.left_out})")
            return
        places = ["host-a", "host-b"] if step.where == "each-host" else [step.where]
        for place in places:
            print(f"\n{place}# {step.command}", flush=True)
            code, output = self._run(place, step.command)
            print(output, end="", flush=True)
            if code != 0:
                raise GuideFailed(f"the guide's command ended with {code}: {step.command}")

    def _run(self, place: str, command: str) -> tuple[int, str]:
        if place == "vm1":
            return self._in_guest(command)
        variable = re.fullmatch(r"(\w+)=(\S+)", command)
        if variable:
            self._variables[variable[1]] = variable[2]
            return 0, ""
        return self._on_host(self._hosts[place], command)

    def _on_host(self, host: Host, command: str) -> tuple[int, str]:
        done = host.run("sh", "-c", command, check=False, timeout=180, **self._variables)
        return done.returncode, done.stdout + done.stderr

    def _in_guest(self, command: str) -> tuple[int, str]:
        if command.endswith(" &"):
            self._behind = self._guest.spawn(["sh", "-c", command.removesuffix(" &")])
            return 0, ""
        if command == "wait":
            assert self._behind is not None, "the guide waits, and has started nothing"
            done = self._behind.wait(180)
        else:
            done = self._guest.run(["sh", "-c", command], timeout=120)
        return done.returncode, done.stdout + done.stderr


def follow(lab: Lab, guide: Path = GUIDE) -> None:
    """Follow the guide to its end. Raises `GuideFailed`."""
    follower = Follower(lab)
    for step in steps(guide.read_text()):
        follower.follow(step)


def main() -> int:
    """Follow it on a clean lab; 0 if all of it worked."""
    try:
        with Lab(hosts=2, guests=1) as lab:
            follow(lab)
    except LabError as error:
        print(f"guide: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
