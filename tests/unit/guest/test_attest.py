"""Attested scans and their verification: the honest one is proven, each cheat refused for its own
reason. The scans are real ones; the host is a stand-in that signs.
"""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from guest_client.attest import payload
from guest_client.output import Digest
from guest_client.verify.keyring import Keyring
from guest_client.verify.refusal import Refusal
from guest_client.verify.scan_report import Demands, Proof, verify

from .conftest import Guest
from .documents import MIGRATED, document
from .enabler_server import EnablerServer, answering, problem
from .hosts import ATTESTATION, SigningHost, by_hmac, by_none

OUTPUT = b"found\n"
NONCE = "the-auditors-own-nonce"
ANOTHER_VM = "22222222-0000-4000-8000-000000000002"


@dataclass
class Case:
    """Reports of real scans on one host, and what a cheat has at hand."""

    host: SigningHost
    report: dict[str, Any]
    later: dict[str, Any]
    crossed: dict[str, Any]
    of_another_vm: dict[str, Any]
    output: bytes = OUTPUT

    def demands(self) -> Demands:
        digest = Digest(hashlib.sha256(self.output).hexdigest(), len(self.output))
        return Demands(at=self.host.now + 60, output=digest)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    host = SigningHost()
    with EnablerServer() as server:
        server.attest = host.attest
        guest = Guest(tmp_path_factory.mktemp("guest"), server)
        found: list[dict[str, Any]] = []
        for line in ("echo found", "echo found", f"echo found; {guest.moving()}"):
            guest.say(document())
            guest.scan(line, "--attest", "--output", "out")
            found.append(guest.report)
        guest.say(document({"vm.uuid": ANOTHER_VM, "vm.name": "db02"}))
        guest.scan("echo found", "--attest", "--output", "out")
        yield Case(host, *found, guest.report)


def edited(report: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The report with members (by dotted name) set, in its last attempt as well."""
    made = copy.deepcopy(report)
    for name, value in changes.items():
        *path, last = name.split(".")
        for place in (made, made["attempts"][-1]):
            for part in path:
                place = place.get(part) or {}
            if last in place:
                place[last] = value
    return made


def token(report: dict[str, Any], read: str) -> str:
    found: str = report[read]["attestation"]
    return found


def signed_again(case: Case, read: str, changes: dict[str, Any], **header: Any) -> dict[str, Any]:
    claims = payload(token(case.report, read)) | changes
    signed = case.host.sign(header.pop("typ", ATTESTATION), claims, **header)
    return edited(case.report, {f"{read}.attestation": signed})


def replaced(case: Case, read: str, with_token: str) -> dict[str, Any]:
    return edited(case.report, {f"{read}.attestation": with_token})


def tampered(case: Case) -> dict[str, Any]:
    """The payload of the second attestation exchanged, its signature kept."""
    head, _, signature = token(case.report, "after").split(".")
    _, other, _ = token(case.later, "after").split(".")
    return replaced(case, "after", f"{head}.{other}.{signature}")


CHEATS: dict[str, tuple[str, Callable[[Case], dict[str, Any]]]] = {
    "no report": ("malformed", lambda case: {"report_version": 2}),
    "never attested": (
        "not-attested",
        lambda case: edited(
            case.report,
            {"before.attestation": None, "after.attestation": None, "attestation": None},
        ),
    ),
    "both stripped": (
        "attestation-stripped",
        lambda case: edited(case.report, {"before.attestation": None, "after.attestation": None}),
    ),
    "the first stripped": (
        "attestation-stripped",
        lambda case: edited(case.report, {"before.attestation": None}),
    ),
    "nonsense for an attestation": ("malformed", lambda case: replaced(case, "after", "a.b.c")),
    "alg none": (
        "algorithm-refused",
        lambda case: replaced(
            case, "after", by_none(payload(token(case.report, "after")), case.host.kid)
        ),
    ),
    "HS256 with the public key": (
        "algorithm-refused",
        lambda case: replaced(
            case, "after", by_hmac(payload(token(case.report, "after")), case.host)
        ),
    ),
    "a history's entry for an attestation": (
        "wrong-type",
        lambda case: signed_again(case, "after", {}, typ="vm-enabler-stay+jwt"),
    ),
    "a key of one's own": (
        "unknown-key",
        lambda case: replaced(case, "after", SigningHost().attest(document(), {"nonce": NONCE})),
    ),
    "a key of one's own with the host's ID": (
        "bad-signature",
        lambda case: replaced(
            case,
            "after",
            SigningHost().sign(
                ATTESTATION, payload(token(case.report, "after")), kid=case.host.kid
            ),
        ),
    ),
    "an altered attestation": ("bad-signature", tampered),
    "a host that speaks for another": (
        "wrong-issuer",
        lambda case: signed_again(case, "before", {"iss": "sha256:" + "b" * 64}),
    ),
    "from the future": (
        "not-yet-valid",
        lambda case: signed_again(case, "before", {"iat": case.host.now + 86400}),
    ),
    "a first attestation of a later scan": (
        "mixed-pair",
        lambda case: replaced(case, "before", token(case.later, "before")),
    ),
    "a second attestation of a later scan": (
        "mixed-pair",
        lambda case: replaced(case, "after", token(case.later, "after")),
    ),
    "two attestations that no scan asked for": (
        "mixed-pair",
        lambda case: replaced(case, "after", token(case.report, "before")),
    ),
    "a crossed scan told as a consistent one": (
        "machine-changed",
        lambda case: edited(
            case.crossed,
            {"verdict": case.report["verdict"], "output.published": True},
        ),
    ),
    "another host named": (
        "host-swapped",
        lambda case: edited(
            case.report,
            {f"{r}.identity.machine.serial_number": "78BBBBB" for r in ("before", "after")},
        ),
    ),
    "another VM's report": (
        "another-vm",
        lambda case: edited(
            case.of_another_vm, {f"{r}.identity": document() for r in ("before", "after")}
        ),
    ),
    "fewer sockets named": (
        "identity-edited",
        lambda case: edited(case.report, {"after.identity.capacity.sockets": 1}),
    ),
    "the digest edited": (
        "output-edited",
        lambda case: edited(case.report, {"output.sha256": "0" * 64}),
    ),
    "another command named": (
        "report-edited",
        lambda case: edited(case.report, {"command": ["lshw", "-json"]}),
    ),
    "a failed scanner told as a good one": (
        "report-edited",
        lambda case: edited(case.report, {"scanner.exit_code": 3}),
    ),
    "only the top of the report edited": (
        "report-edited",
        lambda case: case.report | {"before": case.later["before"]},
    ),
    "a scan that does not stand": (
        "not-consistent",
        lambda case: edited(case.report, {"output.published": False}),
    ),
}


def test_the_honest_report_is_proven(case: Case) -> None:
    proof = verify(case.report, case.host.keyring, case.demands())
    assert isinstance(proof, Proof)
    assert proof.output.size == len(OUTPUT)
    assert "db01" in proof.sentence
    assert "78AAAAA" in proof.sentence


@pytest.mark.parametrize("name", CHEATS)
def test_each_cheat_is_refused_for_its_own_reason(case: Case, name: str) -> None:
    reason, cheat = CHEATS[name]
    with pytest.raises(Refusal) as refused:
        verify(cheat(case), case.host.keyring, case.demands())
    assert refused.value.reason == reason, refused.value.sentence


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"output": Digest(hashlib.sha256(b"edited\n").hexdigest(), 7)}, "output-edited"),
        ({"nonce": NONCE}, "replayed"),
        ({"vm": ANOTHER_VM}, "another-vm"),
        ({"max_age": 10}, "too-old"),
        ({"at": 2**33}, "expired"),
    ],
)
def test_what_the_auditor_asks_beyond(case: Case, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal) as refused:
        verify(case.report, case.host.keyring, replace(case.demands(), **changes))
    assert refused.value.reason == reason


def test_every_member_of_the_report_may_be_nonsense(case: Case) -> None:
    """No report, however mangled, brings anything but a refusal or the proof of what is sealed."""
    names = [name for name in case.report if name not in ("started", "finished", "enabler")]
    for name in [*names, *(f"attempts.-1.{inner}" for inner in case.report["attempts"][-1])]:
        for nonsense in (None, 5, "x", [], {}, [[]], {"identity": 5}):
            made = copy.deepcopy(case.report)
            place = made["attempts"][-1] if name.startswith("attempts.") else made
            place[name.rpartition(".")[2]] = nonsense
            try:
                proof = verify(made, case.host.keyring, case.demands())
            except Refusal:
                continue
            assert proof == verify(case.report, case.host.keyring, case.demands())


def test_keys_that_are_not_understood_are_passed_over(case: Case) -> None:
    ring = Keyring([{"kty": "RSA", "n": "AQAB", "e": "AQAB"}, case.host.public])
    verify(case.report, ring, case.demands())


def test_a_key_that_is_known_to_be_a_hosts_speaks_for_no_other(case: Case) -> None:
    own, other = document()["component_id"], "sha256:" + "b" * 64
    verify(case.report, Keyring([case.host.public | {"component_id": own}]), case.demands())
    ring = Keyring([case.host.public | {"component_id": other}])
    with pytest.raises(Refusal) as refused:
        verify(case.report, ring, case.demands())
    assert refused.value.reason == "wrong-issuer"
    # A key that two hosts were given speaks for both.
    both = [case.host.public | {"component_id": each} for each in (own, other)]
    verify(case.report, Keyring(both), case.demands())


# The command -------------------------------------------------------------------------------------


def test_scan_attest_then_verify(guest: Guest, server: EnablerServer, tmp_path: Path) -> None:
    host = SigningHost()
    server.attest = host.attest
    host.write_jwks(guest.home / "a.json")
    SigningHost().write_jwks(guest.home / "b.json")
    done = guest.scan("echo found", "--attest", "--attest-nonce", NONCE, "--output", "out")
    assert done.returncode == 0, done.stderr
    asked = [path for _, path, _ in server.requests]
    assert asked == ["/v1/identity/attestation"] * 2
    claims = payload(guest.report["after"]["attestation"])
    assert claims["report_digest"] == "sha256:" + hashlib.sha256(b"found\n").hexdigest()

    verified = ("verify", "report.json", "--jwks", "a.json", "b.json")
    done = guest.run(*verified)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("proven: the VM db01")
    assert "who is root in the VM" in done.stdout
    assert "name it with --output" in done.stdout
    vm = document()["vm"]["uuid"]
    strict = (*verified, "--output", "out", "--nonce", NONCE, "--vm", vm, "--json")
    found = json.loads(guest.run(*strict).stdout)
    assert (found["proven"], found["output"]["compared"], len(found["not_proven"])) == (
        True,
        True,
        1,
    )
    (guest.home / "out").write_text("edited\n")
    done = guest.run(*strict)
    assert (done.returncode, json.loads(done.stdout)["reason"]) == (1, "output-edited")
    done = guest.run("verify", "report.json", "--jwks", "b.json")
    assert (done.returncode, done.stdout[:26]) == (1, "not proven (unknown-key): ")


def test_a_crossed_scan_is_repeated_and_its_last_attempt_proven(
    guest: Guest, server: EnablerServer
) -> None:
    host = SigningHost()
    server.attest = host.attest
    host.write_jwks(guest.home / "keys.json")
    line = f"echo found; {guest.moving(MIGRATED, once=True)}"
    done = guest.scan(line, "--attest", "--repeat-if-migrated", "--output", "out")
    assert done.returncode == 0, done.stderr
    done = guest.run("verify", "report.json", "--jwks", "keys.json", "--output", "out")
    assert done.returncode == 0, done.stdout
    assert "78BBBBB" in done.stdout


def test_an_output_that_changes_after_its_scanner_has_ended_is_not_published(
    guest: Guest, server: EnablerServer
) -> None:
    host = SigningHost()

    def attest(identity: dict[str, Any], asked: dict[str, Any]) -> str:
        if "report_digest" in asked:  # the output's digest is taken: now write to it
            (guest.home / "go").touch()
            while not (guest.home / "gone").exists():
                pass
        return host.attest(identity, asked)

    server.attest = attest
    late = "(while [ ! -e go ]; do :; done; echo late; touch gone) &"
    done = guest.scan(f"echo found; {late}", "--attest", "--output", "out")
    assert done.returncode == 74
    assert "waits for what it starts" in done.stderr
    assert not (guest.home / "out").exists()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("not three parts", "not three parts"),
        ("a.b.c", "not JSON"),
        (SigningHost().attest(document(), {"nonce": "x" * 20}), "another question"),
        (SigningHost().sign(ATTESTATION, {"identity": {}}), "another question"),
    ],
)
def test_an_answer_that_is_no_attestation_of_ours_is_no_identity(
    guest: Guest, server: EnablerServer, answer: str, says: str
) -> None:
    server.attest = lambda identity, asked: answer
    done = guest.scan("echo found", "--attest")
    assert (done.returncode, done.stdout) == (69, "")
    assert says in done.stderr


def test_an_enabler_that_knows_no_attestations_and_no_histories(
    guest: Guest, server: EnablerServer
) -> None:
    server.otherwise = problem(404, "not-found")
    for command in (["history"], ["scan", "--attest", "--report", "r", "--", "true"]):
        done = guest.run(*command)
        assert done.returncode == 69
        assert "older than this client" in done.stderr


def test_a_history_is_shown_as_it_was_sent(guest: Guest, server: EnablerServer) -> None:
    document = {"vm_uuid": "v", "checkpoint": None, "entries": [], "statement": "x", "new": 1}
    server.otherwise = answering(json.dumps(document).encode())
    done = guest.run("history", "--json")
    assert json.loads(done.stdout) == document
    server.otherwise = answering(b'"nothing"')
    done = guest.run("history")
    assert (done.returncode, done.stdout[:24]) == (1, "not proven (malformed): ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["scan", "--attest", "--", "true"], 64, "--report"),
        (["scan", "--attest-nonce", "n" * 20, "--report", "r", "--", "true"], 64, "--attest"),
        (["scan", "--attest-nonce", "n", "--attest", "--", "true"], 64, "16 to 256"),
        (
            ["scan", "--attest", "--report", "r", "--plan", "facts", "--output", "d"],
            64,
            "one command",
        ),
        (["verify", "report.json"], 64, "--jwks"),
        (["verify", "none.json", "--jwks", "keys.json"], 66, "none.json"),
        (["verify", "report.json", "--jwks", "none.json"], 66, "enabler keys export"),
        (["verify", "report.json", "--jwks", "report.json"], 78, "no Ed25519 key"),
        (["verify", "keys.json", "--jwks", "keys.json"], 1, ""),
        (["verify", "keys.json", "--jwks", "keys.json", "--max-age", "1y"], 64, "90d"),
        (["verify", "keys.json", "--jwks", "keys.json", "--at", "noon"], 64, "2026-"),
    ],
)
def test_what_goes_wrong_is_said(guest: Guest, arguments: list[str], code: int, says: str) -> None:
    SigningHost().write_jwks(guest.home / "keys.json")
    (guest.home / "report.json").write_text("{}")
    done = guest.run(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_without_joserfc_the_auditor_is_told_what_to_install(guest: Guest) -> None:
    SigningHost().write_jwks(guest.home / "keys.json")
    code = (
        "import sys; sys.modules['joserfc'] = None;"
        "from guest_client.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", "report.json", "--jwks", "keys.json"],
        cwd=guest.home,
        env=guest.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert "vm-enabler[audit]" in done.stderr
