"""The address plan."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enabler.addresses import link_local, mac_of


@given(st.uuids())
def test_a_mac_is_local_unicast_and_none_of_the_hosts_own(uuid: object) -> None:
    mac = mac_of(str(uuid))
    first, *others = (int(octet, 16) for octet in mac.split(":"))
    assert len(others) == 5
    assert first & 0b11 == 0b10
    assert first != 0xFE


def test_a_mac_never_changes() -> None:
    """It is in the definitions of the VMs of fleets: this is how it was from the beginning."""
    assert mac_of("11111111-0000-4000-8000-000000000001") == "9a:67:f3:93:0a:dd"
    assert mac_of("11111111-0000-4000-8000-000000000001".upper()) == "9a:67:f3:93:0a:dd"


def test_what_libvirt_keeps_for_itself_is_gone_around() -> None:
    assert not any(mac_of(f"{number:032x}").startswith("fe:") for number in range(2000))


@given(st.uuids(), st.uuids())
def test_two_vms_have_two(one: object, other: object) -> None:
    assert (mac_of(str(one)) == mac_of(str(other))) == (one == other)


def test_a_link_local_address_is_that_of_rfc_4291() -> None:
    # The example of its appendix A, with the universal bit inverted.
    assert link_local("34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde"
    assert link_local("52:54:00:77:01:01") == "fe80::5054:ff:fe77:101"


@given(st.uuids())
def test_it_is_link_local(uuid: object) -> None:
    assert IPv6Address(link_local(mac_of(str(uuid)))).is_link_local


@pytest.mark.parametrize("mac", ["", "52:54:00:77:01", "52:54:00:77:01:01:02", "zz:54:00:77:01:01"])
def test_what_is_no_mac_is_refused(mac: str) -> None:
    with pytest.raises(ValueError):
        link_local(mac)


def test_what_is_no_uuid_is_refused() -> None:
    with pytest.raises(ValueError):
        mac_of("vm1")
