"""The admin socket: the host, its VMs, and what is said to whoever asks for something else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx
import libvirt
import pytest
import yaml
from jsonschema import Draft202012Validator

from openapi.export import TARGET, document, render
from tests.api.running import DEFAULT_VM, MACHINE, Enabler, eventually

OTHER = "00000000-0000-4000-8000-000000000000"


def valid(name: str, content: object) -> None:
    """Hold a document against its schema in the contract."""
    contract = document()
    schema = {"$ref": f"#/components/schemas/{name}", "components": contract["components"]}
    Draft202012Validator(schema).validate(content)


def test_the_host(enabler: Enabler) -> None:
    host = enabler.get("/v1/host").json()
    valid("HostDocument", host)
    assert host["machine"] == MACHINE | {"type": None, "uuid": None}
    assert host["libvirt"]["connected"] is True


def test_the_component_id_can_be_recomputed_by_anybody(enabler: Enabler) -> None:
    host = enabler.get("/v1/host").json()
    canonical = json.dumps(host["machine"], sort_keys=True, separators=(",", ":"))
    assert host["component_id"] == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def test_the_vms(enabler: Enabler) -> None:
    listed = enabler.get("/v1/vms").json()
    valid("VmListDocument", listed)
    [vm] = listed["vms"]
    assert (vm["uuid"], vm["name"], vm["place"]) == (DEFAULT_VM, "test", "resident")


def test_an_identity(enabler: Enabler) -> None:
    identity = enabler.identity()
    valid("IdentityDocument", identity)
    assert identity["component_id"] == enabler.get("/v1/host").json()["component_id"]
    assert identity["vm"] == {
        "uuid": DEFAULT_VM,
        "name": "test",
        "generation_id": None,
        "vcpus": 2,
        "memory_bytes": 8 * 2**30,
    }
    assert identity["migration"] == {"state": "none"}


def test_a_uuid_may_be_in_capitals(enabler: Enabler) -> None:
    assert enabler.identity(DEFAULT_VM.upper())["vm"]["uuid"] == DEFAULT_VM


def test_etag_stands_for_the_state(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    path = f"/v1/vms/{DEFAULT_VM}/identity"
    etag = enabler.get(path).headers["etag"]
    for matching in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
        unchanged = enabler.get(path, **{"If-None-Match": matching})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == etag
    assert enabler.get(path, **{"If-None-Match": '"other"'}).status_code == 200
    domain = hypervisor.lookupByUUIDString(DEFAULT_VM)
    domain.destroy()
    domain.create()

    def changed() -> bool:  # once the event is there: no process of a VM says it sooner here
        answer = enabler.get(path, **{"If-None-Match": etag})
        return answer.status_code == 200 and answer.headers["etag"] != etag

    eventually(changed)


@pytest.mark.parametrize(
    ("method", "path", "status", "problem"),
    [
        ("GET", f"/v1/vms/{OTHER}/identity", 404, "vm-not-found"),
        ("GET", "/v1/vms/none/identity", 400, "malformed-uuid"),
        ("GET", f"/v1/vms/{{{DEFAULT_VM}}}/identity", 400, "malformed-uuid"),
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/v1/identity", 404, "not-found"),
        ("GET", "/problems/nothing", 404, "not-found"),
        ("GET", "/docs", 404, "not-found"),
        ("POST", "/v1/vms", 405, "method-not-allowed"),
        ("DELETE", f"/v1/vms/{DEFAULT_VM}/identity", 405, "method-not-allowed"),
    ],
)
def test_every_error_is_a_problem_document(
    enabler: Enabler, method: str, path: str, status: int, problem: str
) -> None:
    answer = enabler.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    valid("ProblemDocument", answer.json())
    assert answer.json()["type"] == f"/problems/{problem}"
    assert answer.json()["status"] == status
    # What the type refers to is there to be read.
    page = enabler.get(answer.json()["type"])
    assert page.status_code == 200
    assert page.text.startswith(str(status))


def test_health(enabler: Enabler) -> None:
    assert enabler.get("/healthz").json() == {"status": "ok"}
    assert enabler.get("/readyz").json() == {"status": "ok"}


def test_the_socket_is_the_admins(enabler: Enabler) -> None:
    assert enabler.socket.stat().st_mode & 0o777 == 0o660


def test_the_openapi_document_is_the_apps() -> None:
    assert TARGET.read_text() == render(), "run 'make openapi'"
    assert yaml.safe_load(TARGET.read_text()) == document()


def test_the_socket_is_taken_away_in_the_end(
    hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    running = Enabler(tmp_path)
    with running.running():
        assert running.socket.exists()
    assert not running.socket.exists()
    with pytest.raises(httpx.ConnectError):
        running.get("/healthz")
