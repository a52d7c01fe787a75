"""The lab for people: `python -m tests.lab --help`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import libvirt

from tests.lab import state
from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.lab import Lab, take_down

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for an error of the lab, or the command's own."""
    # SIGTERM ends the lab as Ctrl-C does: everything is taken down first.
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.function(arguments)
        return code
    except (LabError, libvirt.libvirtError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description="Real hosts, a real guest and real live migrations, on this one machine.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="bring the lab up; it stays up")
    up.add_argument("--hosts", type=int, default=2, metavar="N")
    up.add_argument("--guests", type=int, default=1, metavar="N")
    up.add_argument("--no-enabler", action="store_true", help="run no enabler on the hosts")
    up.set_defaults(function=_up)

    down = commands.add_parser("down", help="take it down, or what is left of it")
    down.add_argument("--force", action="store_true", help="even while a process uses it")
    down.set_defaults(function=_down)

    status = commands.add_parser("status", help="what is up, and where the guests are")
    status.set_defaults(function=_status)

    migrate = commands.add_parser("migrate", help="migrate a guest live")
    migrate.add_argument("guest", nargs="?", default="vm1", metavar="GUEST")
    migrate.add_argument("--to", metavar="HOST", help="default: the next host")
    migrate.add_argument("--postcopy", action="store_true")
    migrate.set_defaults(function=_migrate)

    run = commands.add_parser(
        "run", help="run a command in a guest: run vm1 -- guest-client identity"
    )
    run.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    run.add_argument("guest", metavar="GUEST")
    run.add_argument("command", nargs="+", metavar="CMD")
    run.set_defaults(function=_run)

    on = commands.add_parser("on", help="run a command on a host: on host-a -- enabler vms")
    on.add_argument("host", metavar="HOST")
    on.add_argument("command", nargs="+", metavar="CMD")
    on.set_defaults(function=_on)

    shell = commands.add_parser("shell", help="a root shell in a guest (leave it with Ctrl-])")
    shell.add_argument("guest", nargs="?", default="vm1", metavar="GUEST")
    shell.set_defaults(function=_shell)

    logs = commands.add_parser("logs", help="the ends of all logs, of the last lab when none is up")
    logs.add_argument("--lines", type=int, default=10, metavar="N")
    logs.set_defaults(function=_logs)
    return parser


def _up(arguments: argparse.Namespace) -> int:
    lab = Lab(arguments.hosts, arguments.guests, enabler=not arguments.no_enabler)
    lab.up(stay=True)
    for guest in lab.guests:
        print(f"{guest.name} runs on {lab.hosts[0].name}: python -m tests.lab shell {guest.name}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    print("the lab is down" if take_down(force=arguments.force) else "no lab was up")
    return 0


def _status(_arguments: argparse.Namespace) -> int:
    lab = Lab.attach()
    record = state.recorded()
    assert record is not None
    kind = "stays up" if record.stays else "belongs to a running process, or was left behind"
    minutes = (time.time() - record.since) / 60
    print(f"up for {minutes:.0f} min, brought up by pid {record.owner}; it {kind}")
    for host in lab.hosts:
        services = (host.libvirtd, host.enabler, host.recorder)
        words = (
            f"{service.name} {'runs' if service.running else 'is off'}" for service in services
        )
        print(f"{host.name}: {', '.join(words)}")
        if host.libvirtd.running:
            _domains(host)
    return 0


def _domains(host: Host) -> None:
    for domain in host.connection.listAllDomains():
        try:
            state_now = _STATES.get(domain.state()[0], "between two states")
        except libvirt.libvirtError:
            state_now = "just left"
        print(f"  {domain.name()}: {state_now}")


def _migrate(arguments: argparse.Namespace) -> int:
    lab = Lab.attach()
    guest = lab.guest(arguments.guest)
    source, began = guest.host, time.monotonic()
    target = lab.host(arguments.to) if arguments.to else lab.other_host(guest)
    lab.migrate(guest, target, postcopy=arguments.postcopy)
    took = time.monotonic() - began
    print(f"{guest.name} moved from {source.name} to {target.name} in {took:.1f} s")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    guest = Lab.attach().guest(arguments.guest)
    stdin = None if sys.stdin.isatty() else sys.stdin.buffer.read()
    done = guest.run(arguments.command, input=stdin or None, timeout=arguments.timeout)
    sys.stdout.buffer.write(done.stdout_bytes)
    sys.stderr.buffer.write(done.stderr_bytes)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _on(arguments: argparse.Namespace) -> int:
    host = Lab.attach().host(arguments.host)
    return subprocess.run(
        host.command(*arguments.command), env=host.environment, check=False
    ).returncode


def _shell(arguments: argparse.Namespace) -> int:
    guest = Lab.attach().guest(arguments.guest)
    host = guest.host
    print(f"{guest.name} is on {host.name}; press Enter for a prompt, Ctrl-] to leave", flush=True)
    os.execvp("virsh", ["virsh", "-q", "-c", host.uri, "console", guest.name, "--force"])


def _logs(arguments: argparse.Namespace) -> int:
    root = state.ROOT if state.ROOT.exists() else state.LAST_LOGS
    logs = sorted([*root.glob("hosts/*/log/*"), *root.glob("guests/*.log")])
    if not logs:
        raise LabError("there are no logs: no lab has been up since the cache was made")
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()
        print(f"== {log}", *lines[-arguments.lines :], sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
