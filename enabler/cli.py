"""The ``enabler`` command: arguments in, exit codes out; the work is done elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from enabler import fleet_arguments
from enabler.errors import EnablerError

if TYPE_CHECKING:
    from enabler.attach import Outcome, Wish
    from enabler.config import Settings
    from enabler.keys import Keys

_EX_USAGE = 64

_EPILOG = """\
exit codes: 0 done; 1 doctor or fleet audit found something wrong, or fleet knows no such VM; 64
wrong usage; 69 something needed is not available (libvirt, an address to listen on, the admin
socket, the fleet's servers); 77 permission denied; 78 the configuration, or this machine's
identity, can't be used
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(_EX_USAGE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (``sysexits.h``)."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except EnablerError as error:
        print(f"enabler: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough of it (`enabler vms | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="enabler",
        description="Tells each virtual machine on this host which real machine it runs on.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"enabler {version('vm-enabler')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    configured = _Parser(add_help=False)
    configured.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: /etc/enabler/enabler.toml)"
    )
    common = _Parser(add_help=False, parents=[configured])
    common.add_argument(
        "--libvirt-uri", metavar="URI", help="this host's hypervisor (default: qemu:///system)"
    )
    printing = _Parser(add_help=False)
    printing.add_argument("--json", action="store_true", help="print JSON")
    listening = _Parser(add_help=False)
    listening.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help="http://ADDR:PORT or vsock:PORT for guests, unix:/PATH for the admin; repeatable, "
        "and replaces what the configuration says",
    )

    serve = commands.add_parser(
        "serve",
        parents=[common, listening, _fleet_options()],
        help="run the service",
        description="Run the service until SIGINT or SIGTERM.",
        epilog=_EPILOG,
    )
    serve.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), help="(default: info)"
    )
    serve.add_argument(
        "--log-format", choices=("text", "json"), help="json: an object a line (default: text)"
    )
    serve.add_argument(
        "--metrics",
        metavar="ADDRESS:PORT",
        help="serve GET /metrics for Prometheus there too, beside the admin socket",
    )
    serve.set_defaults(run=_serve)

    identity = commands.add_parser(
        "identity",
        parents=[common, printing],
        help="show this machine's identity",
        description="Show this machine's identity and host component ID, and where they are from. "
        "Asks libvirt and the platform, not a running service.",
    )
    identity.set_defaults(run=_identity)

    vms = commands.add_parser(
        "vms",
        parents=[common, listening, printing],
        help="show the VMs of this host, as the running service knows them",
    )
    vms.set_defaults(run=_vms)

    events = commands.add_parser(
        "events",
        parents=[common, listening],
        help="show what happens on this host, as it happens, as lines of JSON",
        description="Show each arrival, departure and migration as it happens, one line of JSON "
        "each; the first line is the state as it is.",
    )
    events.add_argument(
        "--since", metavar="ID", help="go on after the event with this ID, if it is still known"
    )
    events.set_defaults(run=_events)

    _add_ui(commands)
    _add_network(commands, common, printing)
    _add_enrolment(commands, common)
    _add_keys(commands, common)
    _add_fleet(commands, configured, printing)

    doctor = commands.add_parser(
        "doctor",
        parents=[common, listening, printing],
        help="check each thing that must be right on this host",
        description="Check each thing that must be right on this host, say what was found and how "
        "to mend it. Changes nothing. Exit code 1 if something is wrong.",
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _add_ui(commands: Any) -> None:
    ui = commands.add_parser(
        "ui",
        help="serve a status page of this host, on loopback",
        description="Serve a page that shows this host, its VMs, and what happens to them, live. "
        "It asks the running service over its admin socket, and changes nothing. It asks nobody "
        "who they are: whoever reaches it, any user of this host that is, may read it.",
    )
    ui.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: /etc/enabler/enabler.toml)"
    )
    ui.add_argument(
        "--listen",
        dest="page",
        default="127.0.0.1:8780",
        metavar="ADDRESS",
        help="where the page is: ADDRESS:PORT, or unix:/PATH for members of its group alone "
        "(default: 127.0.0.1:8780)",
    )
    ui.add_argument(
        "--admin-socket",
        type=Path,
        metavar="PATH",
        help="the service's (default: the one in the settings' listen)",
    )
    ui.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that the page is asked by, beside its address and localhost; repeatable",
    )
    ui.add_argument(
        "--expose",
        action="store_true",
        help="listen on an address that is not loopback, too: whoever reaches it may read",
    )
    ui.set_defaults(run=_ui)


def _add_network(
    commands: Any, common: argparse.ArgumentParser, printing: argparse.ArgumentParser
) -> None:
    trying = _Parser(add_help=False)
    trying.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    network = commands.add_parser(
        "network",
        parents=[common, printing, trying],
        help="make the host-only network by which guests ask, in libvirt",
        description="Define the network enabler0 and the guests' nwfilter in libvirt, start the "
        "network, and have it started with libvirt. What is there already stays.",
    )
    network.add_argument(
        "--remove", action="store_true", help="take both out again, if no VM is on the network"
    )
    network.add_argument(
        "--no-mac-table",
        action="store_true",
        help="leave the bridge's table of MACs to the kernel: for kernels whose bridges have no "
        "VLAN filtering",
    )
    network.set_defaults(run=_network)

    devices = _Parser(add_help=False, parents=[common, printing, trying])
    devices.add_argument("vm", metavar="VM", help="its name or UUID")
    kind = devices.add_mutually_exclusive_group()
    kind.add_argument(
        "--interface",
        action="store_true",
        help="an interface on the host-only network (this is what is meant without it)",
    )
    kind.add_argument("--vsock", action="store_true", help="a vsock device, which needs no network")
    kind.add_argument(
        "--bridge",
        metavar="NAME",
        help="an interface on a bridge that is there without libvirt",
    )
    devices.add_argument(
        "--only",
        choices=("live", "config"),
        help="the running VM alone, or its definition alone, for its next start (default: both, as "
        "far as there are both)",
    )
    attach = commands.add_parser(
        "attach",
        parents=[devices],
        help="give a VM the interface or the vsock device by which it asks",
        description="Give a VM an interface on the host-only network, now if it runs, and in its "
        "definition. Its MAC is made from the VM's UUID, the same on every host.",
    )
    attach.set_defaults(run=_attach)
    detach = commands.add_parser(
        "detach",
        parents=[devices],
        help="take that device from a VM",
        description="Take the interface on the host-only network, or the vsock device, from a VM.",
    )
    detach.set_defaults(run=_detach)


def _add_enrolment(commands: Any, common: argparse.ArgumentParser) -> None:
    enroll = commands.add_parser(
        "enroll",
        parents=[common],
        help="make a token for a VM, by which it is known on every host it moves to",
        description="Make a token for a VM and hand it to the guest through its guest agent; where "
        "that does not answer, print it, once. Only its hash is kept, in the VM's libvirt "
        "metadata, and moves with the VM. An earlier token is void from then on.",
    )
    enroll.add_argument("vm", metavar="VM", help="its name or UUID")
    enroll.add_argument(
        "--print",
        action="store_true",
        dest="print_token",
        help="print the token and leave the guest alone",
    )
    enroll.set_defaults(run=_enroll)

    revoke = commands.add_parser(
        "revoke", parents=[common], help="make a VM's token void, from now on"
    )
    revoke.add_argument("vm", metavar="VM", help="its name or UUID")
    revoke.set_defaults(run=_revoke)


def _add_keys(commands: Any, common: argparse.ArgumentParser) -> None:
    keys = commands.add_parser(
        "keys",
        help="the key that this host signs with: show it, export it, replace it",
        description="The key that this host signs attestations and histories with. Needs no "
        "running service; one that runs takes a new key with its next signature.",
    )
    acts = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, act, about in (
        ("list", _keys_list, "show every key that signs, or ever signed, here"),
        ("export", _keys_export, "print the public keys as a JWK set, for `guest-client verify`"),
        ("rotate", _keys_rotate, "make a new key; the old one's public half stays, to verify with"),
    ):
        parser = acts.add_parser(name, parents=[common], help=about, description=f"{about}.")
        parser.add_argument("--json", action="store_true", help="print JSON (export always does)")
        parser.set_defaults(run=act)


def _fleet_options() -> _Parser:
    options = _Parser(add_help=False)
    options.add_argument(
        "--fleet",
        metavar="SERVERS",
        help="the fleet's NATS servers, nats://HOST:PORT or tls://HOST:PORT, separated by commas",
    )
    options.add_argument(
        "--fleet-credentials",
        type=Path,
        metavar="FILE",
        help="NATS credentials (.creds), or the seed of an nkey",
    )
    options.add_argument(
        "--fleet-ca", type=Path, metavar="FILE", help="who signs the servers' certificates (PEM)"
    )
    return options


def _add_fleet(
    commands: Any, configured: argparse.ArgumentParser, printing: argparse.ArgumentParser
) -> None:
    fleet = commands.add_parser(
        "fleet",
        help="where every VM of the fleet is, and was; from the fleet's NATS servers",
        description="What all hosts of the fleet have told (serve --fleet): where each VM is, and "
        "was at any time. Asks the fleet's servers, from any machine that may.",
        epilog=_EPILOG,
    )
    parents = [configured, _fleet_options(), printing]
    fleet_arguments.add(
        fleet.add_subparsers(title="commands", metavar="COMMAND", required=True), parents
    )
    fleet.set_defaults(run=_fleet)


def _fleet(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler.fleet import commands

    return commands.run(options, settings.fleet)


def _settings(options: argparse.Namespace) -> Settings:
    from enabler import config

    names = ("libvirt_uri", "listen", "log_level", "log_format", "metrics")
    flags: dict[str, Any] = {name: getattr(options, name, None) for name in names}
    flags |= {
        "fleet.servers": getattr(options, "fleet", None),
        "fleet.credentials": getattr(options, "fleet_credentials", None),
        "fleet.ca": getattr(options, "fleet_ca", None),
    }
    return config.load(options.config, os.environ, flags)


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler import logs, service

    logs.set_up(settings.log_level, settings.log_format)
    service.serve(settings)
    return 0


def _identity(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler import libvirt_host, service

    host = libvirt_host.ask_host(settings.libvirt_uri)
    identified = service.establish(settings, host)
    machine = service.machine_document(identified)
    capacity = service.capacity_document(host)
    if options.json:
        _print_json(
            {
                "component_id": identified.machine.component_id,
                "machine": machine.model_dump(),
                "machine_source": identified.source,
                "configured": list(identified.configured),
                "capacity": capacity.model_dump(),
            }
        )
        return 0
    rows = {"component ID": identified.machine.component_id}
    for name, value in machine.model_dump().items():
        origin = "configuration" if name in identified.configured else identified.source
        rows[name.replace("_", " ")] = "-" if value is None else f"{value}  ({origin})"
    rows["processors"] = (
        f"{capacity.sockets} sockets x {capacity.cores_per_socket} cores x "
        f"{capacity.threads_per_core} threads, {capacity.cpu_model or 'unknown model'}"
    )
    rows["memory"] = f"{capacity.memory_bytes / 2**30:.1f} GiB"
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _vms(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler import admin_client

    listed = admin_client.vms(settings.addresses)
    if options.json:
        _print_json(listed)
        return 0
    rows = [("UUID", "NAME", "PLACE", "MIGRATION", "SINCE", "ARRIVED BY", "RESIDENCY")]
    for vm in listed["vms"]:
        stay = vm["residency"] or {"since": "-", "arrived_by": "-", "id": "-"}
        place, moving = vm["place"], vm["migration"]["state"]
        known = (stay["since"], stay["arrived_by"], stay["id"])
        rows.append((vm["uuid"], vm["name"] or "-", place, moving, *known))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def _network(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler import host_network

    if options.remove:
        steps = host_network.remove(settings.libvirt_uri, dry_run=options.dry_run)
    else:
        steps = host_network.make(
            settings.libvirt_uri, mac_table=not options.no_mac_table, dry_run=options.dry_run
        )
    if options.json:
        _print_json(
            {
                "changed": any(step.changed for step in steps),
                "dry_run": options.dry_run,
                "steps": [{"what": step.what, "done": step.done} for step in steps],
            }
        )
        return 0
    for step in steps:
        would = "would be " if options.dry_run and step.changed else ""
        print(f"{step.what}: {would}{step.done}")
    return 0


def _attach(options: argparse.Namespace) -> int:
    from enabler import attach

    return _change_device(options, attach.attach)


def _detach(options: argparse.Namespace) -> int:
    from enabler import attach

    return _change_device(options, attach.detach)


def _change_device(options: argparse.Namespace, change: Callable[[str, str, Wish], Outcome]) -> int:
    settings = _settings(options)
    from enabler import attach

    where = None if options.only is None else attach.Where(options.only)
    wish = attach.Wish(options.vsock, options.bridge, where, options.dry_run)
    outcome = change(settings.libvirt_uri, options.vm, wish)
    if options.json:
        _print_json(attach.documented(outcome, dry_run=options.dry_run))
        return 0
    for line in attach.in_words(outcome, dry_run=options.dry_run):
        print(line)
    return 0


def _enroll(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler import enrolment

    made = enrolment.enroll(settings.libvirt_uri, options.vm, hand_over=not options.print_token)
    if "token" not in settings.callers:
        print("enabler: tokens don't count here: 'callers' does not name them", file=sys.stderr)
    if made.not_handed_over is None:
        print(f"VM {made.name} is enrolled; its token is in {enrolment.GUEST_FILE} inside it")
        return 0
    print(made.token)
    print(
        f"enabler: VM {made.name} is enrolled, and this is its token, shown once (not handed over: "
        f"{made.not_handed_over}); put it into the guest as {enrolment.GUEST_FILE}, owned by root "
        "and with mode 0600",
        file=sys.stderr,
    )
    return 0


def _revoke(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler import enrolment

    name = enrolment.revoke(settings.libvirt_uri, options.vm)
    print(f"VM {name} has no token any more")
    return 0


def _events(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler import admin_client

    for event in admin_client.events(settings.addresses, options.since):
        print(json.dumps(event, ensure_ascii=False), flush=True)
    return 0


def _ui(options: argparse.Namespace) -> int:
    from enabler import admin_client, logs
    from enabler.ui import serve

    at = serve.address(options.page, expose=options.expose)
    admin = options.admin_socket or admin_client.admin_socket(_settings(options).addresses)
    logs.set_up("info", "text")
    serve.serve(at, admin, options.allowed_host)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from enabler import doctor

    checks = doctor.run_checks(
        settings.libvirt_uri,
        settings.listen,
        settings.machine.model_dump(exclude_none=True),
        _keys(options),
        settings.callers,
        metrics=settings.metrics_address,
    )
    if options.json:
        _print_json(doctor.as_json(checks))
    else:
        print(doctor.render_text(checks))
    return doctor.exit_code(checks)


def _keys(options: argparse.Namespace) -> Keys:
    settings = _settings(options)
    from enabler.keys import Keys

    return Keys(settings.keys_directory, settings.signing_key)


def _keys_list(options: argparse.Namespace) -> int:
    keys = _keys(options)
    known = keys.public()
    if options.json:
        _print_json({"keys": [{**key, "signs": not at} for at, key in enumerate(known)]})
        return 0
    print(f"{'KEY ID':<43}  {'MADE':<20}  USE")
    for at, key in enumerate(known):
        made = "-"
        if isinstance(key.get("iat"), int):
            made = datetime.fromtimestamp(key["iat"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        print(f"{key['kid']:<43}  {made:<20}  {'verifies' if at else 'signs'}")
    return 0


def _keys_export(options: argparse.Namespace) -> int:
    _print_json({"keys": _keys(options).public()})
    return 0


def _keys_rotate(options: argparse.Namespace) -> int:
    kid = _keys(options).rotate()
    if options.json:
        _print_json({"kid": kid})
    else:
        print(
            f"the key is now {kid}; give the auditors what `enabler keys export` prints, and see "
            "that they have it before they get what is signed with it"
        )
    return 0


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    print()


if __name__ == "__main__":
    sys.exit(main())
