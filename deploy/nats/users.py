#!/usr/bin/env python3
"""Who may use the fleet's cluster: keys for hosts, readers and operators, and users.conf of them.

    users.py key FILE                 make a key: the secret into FILE, its public half is printed
    users.py add ROLE NAME KEY        let the owner of a key in; a host's NAME is its libvirt UUID
    users.py remove NAME [KEY]        let it in no more (with KEY: with this key)
    users.py render                   write users.conf anew (of another version of this program)

Who there is stands in the file `users`, a line each: role, name, public key. `add`, `remove` and
`render` write `users.conf` from it, for all nodes the same: copy it there and `systemctl reload
nats-server`. A name with two keys may come with either: that is how a key is rotated.

Keys are NATS' nkeys (Ed25519). Needs Python 3.9 and openssl, nothing else.
"""

import argparse
import base64
import binascii
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

# What each role may do. A publish that JetStream keeps is answered to the sender's inbox; a host
# has one of its own, so that none reads another's answers. README.md here says why it is so much,
# and what it does not keep anybody from.
ROLES = {
    # Its own events into the stream; the place of any VM, as any VM may come to it, and what is
    # there now; its own sign of life. No consumer, no stream's content, nobody else's subject.
    "host": {
        "publish": [
            "enabler.{name}.*.*",
            "$KV.enabler-vms.*",
            "$KV.enabler-hosts.{name}",
            "$JS.API.STREAM.MSG.GET.KV_enabler-vms",
        ],
        "subscribe": ["_INBOX_{name}.>"],
    },
    # All there is, by consumers and by key; writes nothing.
    "reader": {
        "publish": [
            *(
                f"$JS.API.{what}"
                for stream in ("ENABLER", "KV_enabler-vms", "KV_enabler-hosts")
                for what in (
                    f"STREAM.INFO.{stream}",
                    f"STREAM.MSG.GET.{stream}",
                    f"DIRECT.GET.{stream}",
                    f"DIRECT.GET.{stream}.>",
                    f"CONSUMER.CREATE.{stream}",
                    f"CONSUMER.CREATE.{stream}.>",
                    f"CONSUMER.INFO.{stream}.*",
                    f"CONSUMER.MSG.NEXT.{stream}.*",
                    f"CONSUMER.DELETE.{stream}.*",
                )
            ),
            "$JS.API.STREAM.NAMES",
            "$JS.ACK.>",
            "$JS.FC.>",
        ],
        "subscribe": ["_INBOX.>"],
    },
    # Makes, changes, backs up and restores the stream and the buckets; tells nothing of any VM.
    "operator": {
        "publish": ["$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$JS.SNAPSHOT.>"],
        "subscribe": ["_INBOX.>"],
    },
    # The cluster itself: NATS' system account.
    "system": {},
}

_USER, _SEED = 20 << 3, 18 << 3  # https://github.com/nats-io/nkeys: the prefixes of a U… and an S…
_KEY = re.compile("U[A-Z2-7]{55}")
_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


class Mistake(Exception):
    """What was asked for can't be done; says why."""


def make_key() -> "tuple[str, str]":
    """Return a new key: its secret (the seed, SU…) and its public half (U…)."""
    private = _openssl(b"", "genpkey", "-algorithm", "ed25519", "-outform", "DER")
    public = _openssl(private, "pkey", "-inform", "DER", "-pubout", "-outform", "DER")
    # RFC 8410: in both forms the key's own 32 bytes are the last ones.
    seed = bytes([_SEED | _USER >> 5, (_USER & 31) << 3]) + private[-32:]
    return _encode(seed), _encode(bytes([_USER]) + public[-32:])


def _openssl(content: bytes, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["openssl", *arguments], input=content, capture_output=True)
    except FileNotFoundError:
        raise Mistake("openssl is not here; apt install openssl") from None
    if done.returncode:
        raise Mistake(f"openssl can't make a key: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _encode(content: bytes) -> str:
    checked = content + binascii.crc_hqx(content, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def check(role: str, name: str, key: str) -> "tuple[str, str, str]":
    """Return a user as it is written down; raises `Mistake`."""
    if role not in ROLES:
        raise Mistake(f"there is no role {role}; there are {', '.join(ROLES)}")
    if role == "host":
        try:
            name = str(uuid.UUID(name))
        except ValueError:
            raise Mistake(
                f"{name} is no UUID; a host goes by that which `virsh capabilities` has in "
                "<host><uuid>"
            ) from None
    elif not _NAME.fullmatch(name):
        raise Mistake(f"{name!r} is no name; letters, digits, _ and -, please")
    if not _KEY.fullmatch(key) or _encode(base64.b32decode(key)[:-2]) != key:
        hint = "that is the secret half; show it to nobody" if key.startswith("S") else "mistyped?"
        raise Mistake(f"this is not the public half of a user's key (U…): {hint}")
    return role, name, key


def load(file: Path) -> "list[tuple[str, tuple[str, str, str] | None]]":
    """Read who there is: each line, and the user it names, if any. Raises `Mistake`."""
    found = []
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], 1):
        words = line.split("#")[0].split()
        if words and len(words) != 3:
            raise Mistake(f"{file}, line {number}: a role, a name and a key, please, not {line!r}")
        try:
            found.append((line, check(*words) if words else None))
        except Mistake as mistake:
            raise Mistake(f"{file}, line {number}: {mistake}") from None
    return found


def render(users: "list[tuple[str, str, str]]") -> str:
    """Return users.conf."""
    accounts = {"ENABLER": [], "SYS": []}
    for role, name, key in users:
        lines = [f"# {role} {name}", f"{{ nkey: {key}"]
        if ROLES[role]:
            lines.append("  permissions: {")
            for right, subjects in ROLES[role].items():
                allowed = ", ".join(f'"{subject.format(name=name)}"' for subject in subjects)
                lines.append(f"    {right}: {{ allow: [{allowed}] }}")
            lines.append("  }")
        lines.append("}")
        accounts["SYS" if role == "system" else "ENABLER"] += [f"      {each}" for each in lines]
    text = ["# Written by users.py from the file `users`; edit that.", "", "accounts {"]
    for account, lines in accounts.items():
        text += [f"  {account} {{"]
        text += ["    jetstream: enabled"] if account == "ENABLER" else []
        text += ["    users: [", *lines, "    ]", "  }"]
    return "\n".join([*text, "}", "system_account: SYS", ""])


def _write(file: Path, text: str, mode: int) -> None:
    new = file.with_name(f"{file.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    new.rename(file)


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked for; raises `Mistake`."""
    if arguments.command == "key":
        if arguments.file.exists():
            raise Mistake(f"{arguments.file} is there already; name another, or remove it first")
        seed, public = make_key()
        _write(arguments.file, f"{seed}\n", 0o600)
        print(public)
        return
    file = arguments.directory / "users"
    lines = load(file)
    if arguments.command == "add":
        new = check(arguments.role, arguments.name, arguments.key)
        users = [user for _, user in lines if user]
        if any(user[2] == new[2] and user != new for user in users):
            raise Mistake("this key is somebody else's already; make one for each")
        if new not in users:
            lines.append((" ".join(new), new))
    elif arguments.command == "remove":
        before = len(lines)
        lines = [each for each in lines if not _meant(each[1], arguments.name, arguments.key)]
        if len(lines) == before:
            raise Mistake(f"{file} has no such user")
    users = [user for _, user in lines if user]
    if arguments.command != "render":
        _write(file, "".join(f"{line}\n" for line, _ in lines), 0o644)
    _write(file.with_name("users.conf"), render(users), 0o644)
    print(f"{file.with_name('users.conf')}: {len(users)} users", file=sys.stderr)


def _meant(user: "tuple[str, str, str] | None", name: str, key: "str | None") -> bool:
    return user is not None and user[1].lower() == name.lower() and key in (None, user[2])


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="where users and users.conf are (here)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("key").add_argument("file", type=Path)
    add = commands.add_parser("add")
    add.add_argument("role", choices=ROLES)
    add.add_argument("name")
    add.add_argument("key")
    remove = commands.add_parser("remove")
    remove.add_argument("name")
    remove.add_argument("key", nargs="?")
    commands.add_parser("render")
    try:
        run(parser.parse_args())
    except (Mistake, OSError) as error:
        print(f"users.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
