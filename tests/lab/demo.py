"""``make demo``: the main job, for real, told step by step.

Two hosts and a guest come up; a real scanner is guarded in the guest; the guest is live-migrated in
its middle; the crossed output is discarded, and the scan repeated on the new host. In the end the
guest has a new agent ID, and a licence server has been told.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab.doorway import Doorway
from tests.lab.errors import LabError
from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.migration import migrate
from tests.lab.processes import wait_until
from tests.lab.receiver import Receiver
from tests.lab.scans import GatedScan

_BOLD, _PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")


def main() -> int:
    """Tell the story; 0 if it went as it must."""
    try:
        with Lab(hosts=2, guests=1) as lab, tempfile.TemporaryDirectory() as folder:
            licences = Receiver(Path(folder) / "events")
            with Doorway(lab.hosts, licences.address) as door:
                return _tell(lab.guests[0], *lab.hosts, licences, door.url)
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _tell(guest: Guest, a: Host, b: Host, licences: Receiver, url: str) -> int:
    _act("Two machines, each with a libvirtd and an enabler of its own")
    for host in (a, b):
        _shell(f"{host.name}# enabler identity", host.run("enabler", "identity").stdout)

    _act(f"In {guest.name}, which runs on {a.name}: who am I on?")
    _curl(guest)

    _act("The agent of a licence manager, which must not be taken for the same after a move")
    guest.write_file("/etc/guest-client/config.toml", f'[[destination]]\nurl = "{url}/events"\n')
    agent = guest.spawn(["guest-client", "agent", "run"])
    _wait(lambda: guest.run(["guest-client", "agent", "status"]).returncode == 0)
    print(f"{guest.name}# guest-client agent run &")
    old_id = _shell_in(guest, "guest-client agent-id show")

    _act("A guarded scan; it will be crossed by a live migration")
    options = ("--repeat-if-migrated", "--notify-if-migrated")
    print(
        f"{guest.name}# guest-client scan {' '.join(options)} --output … --report … -- lshw -json"
    )
    scan = GatedScan(guest, *options)
    scan.wait_begun()
    print(f"   the scanner is at work (the before-read said {_serial(a)})")
    print(f"{a.name}# virsh migrate --live {guest.name} qemu+tcp://{b.name}/system")
    migrate(guest, b)
    print(f"   {guest.name} runs on {b.name} now, and nothing inside it was told")
    scanned = scan.finish()
    print(_indented(scanned.done.stderr))

    _act("The report")
    for attempt in scanned.report["attempts"]:
        verdict = attempt["verdict"]
        what = verdict["outcome"] + (f" ({verdict['reason']})" if verdict["reason"] else "")
        before, after = (_machine(attempt[read]["identity"]) for read in ("before", "after"))
        print(f"   attempt {attempt['number']}: {before} → {after}: {what}")
    output = scanned.report["output"]
    print(f"   published: {output['published']}, {output['bytes']} bytes, {output['sha256'][:16]}…")
    print(f"   exit code: {scanned.report['exit_code']}")

    _act("The same by hand")
    _curl(guest)
    _shell(
        f"{b.name}# enabler vms",
        b.run("enabler", "vms", "--config", str(b.enabler_config)).stdout,
    )

    _act("What followed: a new agent ID, and the licence server knows")
    _wait(lambda: len(licences.events) > 0)
    new_id = _shell_in(guest, "guest-client agent-id show")
    guest.run(["guest-client", "agent", "stop"])
    agent.wait()
    events = licences.events
    _shell(f"licence server: {len(events)} event", json.dumps(events[0], indent=2))

    went_well = (
        old_id != new_id
        and len(events) == 1
        and scanned.verdicts() == [("inconsistent", "migrated"), ("consistent", None)]
    )
    if not went_well or scanned.code != 0 or scanned.output is None:
        print(f"demo: this is not how it must go: {scanned.verdicts()}", file=sys.stderr)
        return 1
    _act("Done: the crossed output was discarded, the second is the new machine's alone")
    return 0


def _wait(condition: Callable[[], bool]) -> None:
    if not wait_until(condition, 60, 0.2):
        raise LabError("the agent does not get on: see 'guest-client agent status' in the guest")


def _shell_in(guest: Guest, command: str) -> str:
    said = guest.run(command.split(), check=True).stdout.strip()
    _shell(f"{guest.name}# {command}", said)
    return said


def _curl(guest: Guest) -> None:
    url = "http://169.254.77.1:8777/v1/identity"
    answer = guest.run(["curl", "-sS", url], check=True).stdout
    _shell(f"{guest.name}# curl -s {url}", json.dumps(json.loads(answer), indent=2))


def _serial(host: Host) -> str:
    return host.machine.serial if host.machine else "no serial number"


def _machine(identity: dict[str, Any] | None) -> str:
    return str(identity["machine"]["serial_number"]) if identity else "no answer"


def _act(title: str) -> None:
    print(f"\n{_BOLD}== {title}{_PLAIN}", flush=True)


def _shell(command: str, output: str) -> None:
    print(command)
    print(_indented(output), flush=True)


def _indented(text: str) -> str:
    return textwrap.indent(text.rstrip(), "   ")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.TimeoutExpired as error:
        sys.exit(f"demo: {error}")
