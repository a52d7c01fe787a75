"""The devices of the host-only network, in domain XML; the network and its filter, in theirs."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from enabler import devices, network_xml
from enabler.devices import Interface, Vsock

MAC = "9a:67:f3:93:0a:dd"
OTHER = """
    <interface type='network'><mac address='52:54:00:00:00:09'/>
      <source network='default'/></interface>
    <interface type='user'/>"""


def domain(*inside: str) -> str:
    return f"<domain type='kvm'><name>db01</name><devices>{''.join(inside)}</devices></domain>"


def test_what_is_attached_is_found() -> None:
    for device in (Interface(MAC), Interface(MAC, bridge="enabler0"), Interface(MAC, filter=None)):
        [found] = devices.interfaces(domain(OTHER, device.xml()))
        assert (found.mac, found.filter) == (MAC, device.filter)
        assert ElementTree.canonicalize(found.xml) == ElementTree.canonicalize(device.xml())
    assert devices.vsocks(domain(OTHER)) == []
    assert len(devices.vsocks(domain(Vsock().xml()))) == 1


def test_what_is_elsewhere_is_not() -> None:
    assert devices.interfaces(domain(OTHER)) == []
    on_bridge = domain(Interface(MAC, bridge="br1").xml())
    assert devices.interfaces(on_bridge) == []
    assert len(devices.interfaces(on_bridge, "br1")) == 1


def test_a_running_vm_s_interface_is_found_by_its_network_and_by_its_bridge() -> None:
    live = """<interface type='network'><mac address='9A:67:F3:93:0A:DD'/>
    <source network='enabler0' portid='1' bridge='enabler0'/><target dev='vnet0'/></interface>"""
    for bridge in (None, "enabler0"):
        [found] = devices.interfaces(domain(live), bridge)
        assert (found.mac, found.filter) == (MAC, None)


def test_a_defined_one_is_found_by_its_network_s_bridge() -> None:
    """A definition doesn't name the bridge, and the VM is not to be given it again."""
    assert len(devices.interfaces(domain(Interface(MAC).xml()), "enabler0")) == 1
    assert devices.interfaces(domain(Interface(MAC).xml()), "br1") == []


def test_a_filter_replaces_the_one_there_is() -> None:
    [found] = devices.interfaces(domain(Interface(MAC, filter="clean-traffic").xml()))
    changed = devices.with_filter(found, "vm-enabler-guest")
    [found] = devices.interfaces(domain(changed))
    assert found.filter == "vm-enabler-guest"
    assert changed.count("<filterref") == 1


def test_all_macs_of_a_domain() -> None:
    assert devices.macs(domain(OTHER, Interface(MAC).xml())) == {MAC, "52:54:00:00:00:09"}


# -- the network and its filter ---------------------------------------------------------------

NETWORK = network_xml.wanted("enabler0")
AS_LIBVIRT_SAYS_IT = """
<network connections='2'>
  <name>enabler0</name>
  <uuid>2b2bf7a5-3a51-4bd1-a3b6-7d1dbc0e1d4c</uuid>
  <bridge name='enabler0' stp='off' delay='0' macTableManager='libvirt'/>
  <mac address='52:54:00:77:00:01'/>
  <dns enable='no'/>
  <ip address='169.254.77.1' netmask='255.255.0.0'>
  </ip>
  <ip family='ipv6' address='fe80::77:1' prefix='64'>
  </ip>
  <port isolated='yes'/>
</network>
"""


def test_libvirt_s_word_for_the_same_network_is_the_same() -> None:
    assert network_xml.differences(AS_LIBVIRT_SAYS_IT, NETWORK) == []
    given = network_xml.with_uuid(NETWORK, "2b2bf7a5-3a51-4bd1-a3b6-7d1dbc0e1d4c")
    assert network_xml.differences(given, NETWORK) == []
    assert "2b2bf7a5" in network_xml.with_uuid(given, "2b2bf7a5-3a51-4bd1-a3b6-7d1dbc0e1d4c")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("52:54:00:77:00:01", "52:54:00:77:00:02", "its MAC"),
        ("169.254.77.1", "169.254.77.2", "its addresses"),
        ("name='enabler0' stp", "name='virbr7' stp", "the bridge's name"),
        ("<dns", "<forward mode='nat'/><dns", "it forwards"),
        ("<port isolated='yes'/>", "", "guests hear each other"),
        (" macTableManager='libvirt'", "", "its table of MACs"),
        ("<ip address='169.254.77.1' netmask='255.255.0.0'>",
         "<ip address='169.254.77.1' netmask='255.255.0.0'><dhcp/>", "it gives out addresses"),
    ],
)  # fmt: skip
def test_a_difference_is_named(old: str, new: str, named: str) -> None:
    assert old in AS_LIBVIRT_SAYS_IT
    [said] = network_xml.differences(AS_LIBVIRT_SAYS_IT.replace(old, new, 1), NETWORK)
    assert said.startswith(named)


def test_without_libvirt_s_table_of_macs() -> None:
    plain = network_xml.without_mac_table(NETWORK)
    assert "macTableManager" not in plain
    assert len(network_xml.differences(plain, NETWORK)) == 1


def test_filters_are_compared_by_what_they_do() -> None:
    ours = network_xml.wanted("vm-enabler-guest")
    said = network_xml.with_uuid(ours, "2b2bf7a5-3a51-4bd1-a3b6-7d1dbc0e1d4c")
    assert network_xml.same_filter(said, ours)
    for old, new in (("srcmacaddr", "dstmacaddr"), ('"-900"', '"100"'), ('"drop"', '"accept"')):
        assert old in said
        assert not network_xml.same_filter(said.replace(old, new, 1), ours)
    less = ElementTree.fromstring(ours)
    less.remove(less.findall("rule")[0])
    assert not network_xml.same_filter(ElementTree.tostring(less, encoding="unicode"), ours)
