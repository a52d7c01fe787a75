"""What ``guest-client verify`` and ``history`` do, once their arguments are read."""

from __future__ import annotations

import argparse
import hashlib
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

from guest_client.config import Settings
from guest_client.errors import InputError
from guest_client.guard import describe_machine
from guest_client.output import Digest
from guest_client.text import printable, size_in_words
from guest_client.verify.arguments import now_unless
from guest_client.verify.history import History, read_history
from guest_client.verify.keyring import Keyring
from guest_client.verify.refusal import Refusal
from guest_client.verify.scan_report import Demands, Proof, verify

LARGEST_FILE = 64 << 20
"""Bytes of a report or a history."""
_REFUSED = 1


def verify_report(options: argparse.Namespace) -> int:
    """Verify a report, and say what was found; 0 if it is proven."""
    keyring = Keyring.load(options.jwks)
    demands = Demands(
        at=now_unless(options.at),
        max_age=options.max_age,
        nonce=options.nonce,
        vm=options.vm,
        output=None if options.output is None else _digest(options.output),
    )
    try:
        proof = verify(read_json(options.report), keyring, demands)
    except Refusal as refusal:
        tell_refusal(refusal, as_json=options.json)
        return _REFUSED
    print(json.dumps(proof.as_dict(), indent=2) if options.json else _in_words(proof))
    return 0


def history(options: argparse.Namespace, settings: Callable[[], Settings]) -> int:
    """Show, and perhaps verify, where a VM has been."""
    keyring = Keyring.load(options.jwks) if options.verify else None
    try:
        file: Path | None = options.file
        document = _ask_for_history(settings()) if file is None else read_json(file)
        found = read_history(document, keyring)
    except Refusal as refusal:
        tell_refusal(refusal, as_json=options.json)
        return _REFUSED
    if options.json:
        print(json.dumps(found.as_dict() if options.verify else document, indent=2))
    else:
        print(_as_table(found, verified=options.verify))
    return _REFUSED if options.verify and found.findings else 0


def _ask_for_history(settings: Settings) -> object:
    from guest_client.commands import open_channel
    from guest_client.signals import SignalCatcher

    with SignalCatcher(), open_channel(settings) as channel:
        return channel.history(settings.deadline)


def _as_table(found: History, *, verified: bool) -> str:
    rows = [("HOST", "FROM", "UNTIL", "ARRIVED BY", "SIGNED WITH")]
    if found.dropped:
        rows.append((f"({found.dropped} older entries, dropped)", "", "", "", ""))
    for stay in found.stays:
        until = stay.until or "-"
        if stay.until_told_by == "latest":
            until = f"by {until}"
        key = (stay.signed_with or "nobody known")[:12]
        rows.append((stay.host, stay.since, printable(until), printable(stay.arrived_by), key))
    if not verified:
        rows = [(*row[:4], "") for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    stays = "1 stay" if len(found.stays) == 1 else f"{len(found.stays)} stays"
    if verified and not found.findings:
        lines += ["", f"verified: {stays}, without a gap"]
    elif verified:
        lines += ["", "not whole:"]
        lines += [_wrapped("  - ", f"{each.reason}: {each.sentence}") for each in found.findings]
    return "\n".join(lines)


def read_json(file: Path) -> object:
    """Read a file; raises :class:`InputError`, or :class:`Refusal` if it is not JSON."""
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise _cannot_read(file, error) from error
    if len(content) > LARGEST_FILE:
        raise Refusal("malformed", f"{file} has more than {size_in_words(LARGEST_FILE)}")
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal("malformed", f"{printable(str(file))} is not JSON") from error
    return document


def tell_refusal(refusal: Refusal, *, as_json: bool) -> None:
    """Print why something is not proven."""
    if as_json:
        found = {"proven": False, "reason": refusal.reason, "sentence": refusal.sentence}
        print(json.dumps(found, indent=2))
    else:
        print(_wrapped(f"not proven ({refusal.reason}): ", printable(refusal.sentence, 2000)))


def _digest(file: Path) -> Digest:
    try:
        with file.open("rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
            return Digest(digest.hexdigest(), stream.tell())
    except OSError as error:
        raise _cannot_read(file, error) from error


def _cannot_read(file: Path, error: OSError) -> InputError:
    return InputError(
        f"can't read {printable(str(file))}: {error.strerror}; name a file that you may read"
    )


def _in_words(proof: Proof) -> str:
    identity = proof.after.identity
    stay = identity.residency
    compared = "compared, the same" if proof.demands.output else "not compared"
    rows = [
        ("virtual machine", f"{identity.vm.name} ({identity.vm.uuid})"),
        ("real machine", describe_machine(identity)),
        ("host component ID", identity.component_id),
        ("residency", f"{stay.id} since {stay.since} (by {stay.arrived_by})"),
        ("from", f"{proof.before.when}, the first attestation"),
        ("until", f"{proof.after.when}, the second"),
        ("scanner", f"{' '.join(proof.command)}, which ended with {proof.exit_code}"),
        ("output", f"sha256:{proof.output.sha256}, {proof.output.size} bytes ({compared})"),
        ("signed with", ", ".join(sorted({proof.before.signed.kid, proof.after.signed.kid}))),
    ]
    lines = [_wrapped("proven: ", proof.sentence), ""]
    lines += [f"  {name:<18} {printable(value)}" for name, value in rows]
    lines += ["", "not proven:"]
    lines += [_wrapped("  - ", text) for text in proof.not_proven]
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(
        text,
        100,
        initial_indent=head,
        subsequent_indent=" " * len(head) if len(head) < 12 else "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
