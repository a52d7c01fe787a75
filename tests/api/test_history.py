"""A VM's history, as the running service writes it into domain metadata and tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt

from enabler.history import NAMESPACE
from guest_client.verify.history import History, read_history
from guest_client.verify.keyring import Keyring
from tests.api.running import DEFAULT_VM, Enabler, eventually
from tests.api.test_admin import OTHER, valid

PATH = f"/v1/vms/{DEFAULT_VM}/history"


def kept(domain: libvirt.virDomain, flags: int) -> str:
    try:
        found: str = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        return ""
    return found


def told(enabler: Enabler) -> History:
    """What the service tells, verified with the keys that it publishes."""
    answer = enabler.get(PATH)
    assert answer.status_code == 200, answer.text
    valid("HistoryDocument", answer.json())
    keys = enabler.get("/.well-known/jwks.json").json()["keys"]
    return read_history(answer.json(), Keyring(keys))


def stays(enabler: Enabler) -> list[str]:
    found = told(enabler)
    assert found.findings == []
    return [stay.residency_id for stay in found.stays]


def default_domain(hypervisor: libvirt.virConnect) -> libvirt.virDomain:
    return hypervisor.lookupByUUIDString(DEFAULT_VM)


def test_a_stay_is_told_at_once_and_kept_with_the_domain(
    enabler: Enabler, hypervisor: libvirt.virConnect
) -> None:
    identity = enabler.identity()
    [stay] = told(enabler).stays
    assert stay.residency_id == identity["residency"]["id"]
    assert stay.component_id == identity["component_id"]
    assert stay.machine == identity["machine"]
    assert stay.since == identity["residency"]["since"]
    domain = default_domain(hypervisor)
    live, config = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    eventually(lambda: kept(domain, live) and kept(domain, config))
    assert kept(domain, live) == kept(domain, config)


def test_a_restarted_enabler_writes_nothing_twice(
    hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    written: list[str] = []

    def on_metadata(*arguments: Any) -> None:
        written.append(arguments[3])

    callback = hypervisor.domainEventRegisterAny(
        None, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, on_metadata, None
    )
    domain = default_domain(hypervisor)
    found = []
    for _ in range(3):
        running = Enabler(tmp_path)
        with running.running():
            eventually(lambda: kept(domain, libvirt.VIR_DOMAIN_AFFECT_LIVE))
            found.append(stays(running))
    hypervisor.domainEventDeregisterAny(callback)
    assert found[0] == found[1] == found[2]
    assert written.count(NAMESPACE) <= 2, "one for the live domain, one for the persistent one"


def test_a_power_off_is_a_departure_and_the_next_start_goes_on(
    enabler: Enabler, hypervisor: libvirt.virConnect
) -> None:
    domain = default_domain(hypervisor)
    config = libvirt.VIR_DOMAIN_AFFECT_CONFIG
    eventually(lambda: kept(domain, config))
    first = stays(enabler)
    domain.destroy()
    eventually(lambda: kept(domain, config).count("<entry>") == 2)
    domain.create()
    eventually(lambda: len(stays(enabler)) == 2)
    assert stays(enabler)[0] == first[0]
    ended, began = told(enabler).stays
    assert ended.until_told_by == "departure"
    assert ended.until is not None
    assert ended.since <= ended.until <= began.since


def test_a_chain_that_does_not_hold_is_left_behind_and_said_so(
    hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    domain = default_domain(hypervisor)
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        "<history><entry>bnVsbA.bnVsbA.bnVsbA</entry></history>",
        "any",
        NAMESPACE,
        libvirt.VIR_DOMAIN_AFFECT_LIVE,
    )
    running = Enabler(tmp_path)
    with running.running():
        eventually(lambda: [each.reason for each in told(running).findings] == ["begun-anew"])


def test_an_entry_that_somebody_takes_away_is_written_again(
    enabler: Enabler, hypervisor: libvirt.virConnect
) -> None:
    domain = default_domain(hypervisor)
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    eventually(lambda: kept(domain, live))
    before = stays(enabler)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, "any", NAMESPACE, live)
    eventually(lambda: kept(domain, live))
    assert stays(enabler) == before


def test_of_a_vm_that_does_not_run_here_there_is_none(enabler: Enabler) -> None:
    assert enabler.get(f"/v1/vms/{OTHER}/history").status_code == 404
    assert enabler.get("/v1/vms/none/history").status_code == 400


def test_without_a_key_nothing_is_told_and_with_one_it_goes_on(enabler: Enabler) -> None:
    key = enabler.settings.keys_directory / "signing.jwk"
    key.chmod(0o644)
    assert enabler.get(PATH).status_code == 503
    key.chmod(0o600)
    assert len(stays(enabler)) == 1
