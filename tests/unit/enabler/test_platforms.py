"""Sources of a machine's identity, read from trees of files and from libvirt's documents."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enabler.errors import IdentityError
from enabler.identity import Claim, MachineIdentity, identify
from enabler.platforms import (
    DEVICE_TREE,
    LIBVIRT,
    S390,
    SYSFS,
    as_dmidecode_prints,
    from_device_tree,
    from_s390,
    from_sysfs,
    from_sysinfo,
    read_claims,
    read_cpuinfo,
)

SYSINFO = """
<sysinfo type='smbios'>
  <bios>
    <entry name='vendor'>Dell Inc.</entry>
    <entry name='version'>{bios}</entry>
    <entry name='date'>{date}</entry>
  </bios>
  <system>
    <entry name='manufacturer'>{manufacturer}</entry>
    <entry name='product'>{product}</entry>
    <entry name='version'>{version}</entry>
    <entry name='serial'>{serial}</entry>
    <entry name='uuid'>{uuid}</entry>
    <entry name='sku'>{sku}</entry>
    <entry name='family'>{family}</entry>
  </system>
  <baseBoard><entry name='serial'>.J70FG53.BOARD.</entry></baseBoard>
</sysinfo>
"""
R750 = {
    "bios": "1.6.5",
    "date": "04/15/2022",
    "manufacturer": "Dell Inc.",
    "product": "PowerEdge R750",
    "version": "Not Specified",
    "serial": "J70FG53",
    "uuid": "4C4C4544-0037-3010-8046-CA4F47353300",
    "sku": "SKU=090E;ModelName=PowerEdge R750",
    "family": "PowerEdge",
}
R750_IDENTITY = MachineIdentity(
    serial_number="J70FG53",
    manufacturer="Dell Inc.",
    model="PowerEdge R750",
    uuid="4c4c4544-0037-3010-8046-ca4f47353300",
)

# What libvirt answers on Power, out of /proc/cpuinfo: "serial" is the model.
POWER_SYSINFO = """
<sysinfo type='smbios'>
  <system>
    <entry name='version'>PowerNV 8247-22L</entry>
    <entry name='serial'>8247-22L</entry>
    <entry name='family'>PowerNV</entry>
  </system>
  <processor><entry name='type'>POWER8 (raw)</entry></processor>
</sysinfo>
"""
S390_SYSINFO = """
<sysinfo type='smbios'>
  <system>
    <entry name='manufacturer'>IBM</entry>
    <entry name='serial'>00000000000ABCDE</entry>
    <entry name='family'>8561</entry>
  </system>
</sysinfo>
"""
S390_PROC = """\
Manufacturer:         IBM
Type:                 8561
LIC Identifier:       1b2c3d4e5f607182
Model:                {capacity}              T01
Sequence Code:        00000000000ABCDE
Plant:                02
Model Capacity:       {capacity}              00000000

CPUs Total:           40
CPUs Configured:      8

LPAR Number:          47
LPAR Name:            LNXKVM1
LPAR UUID:            11111111-2222-4333-8444-555555555555

VM00 Name:            GUEST1
VM00 Control Program: z/VM    7.2.0
"""


def tree(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def dmi(**files: bytes | str) -> dict[str, bytes | str]:
    return {f"sys/class/dmi/id/{name}": content for name, content in files.items()}


class TestSysinfo:
    def test_gives_the_system_block_alone(self) -> None:
        found = identify([from_sysinfo(SYSINFO.format(**R750))])
        assert (found.machine, found.source) == (R750_IDENTITY, LIBVIRT)

    @given(
        st.sampled_from(["bios", "date", "version", "sku", "family"]),
        st.text(st.sampled_from("ABCxyz0123456789. -/"), min_size=1),
    )
    def test_keeps_its_id_through_a_firmware_update(self, field: str, value: str) -> None:
        updated = identify([from_sysinfo(SYSINFO.format(**R750 | {field: value}))]).machine
        assert updated.component_id == R750_IDENTITY.component_id

    def test_passes_libvirts_error_on(self) -> None:
        claim = from_sysinfo(None, "Host SMBIOS information is not available")
        assert claim == Claim(LIBVIRT, note="Host SMBIOS information is not available")

    def test_has_no_system_on_the_test_driver(self) -> None:
        claim = from_sysinfo("<sysinfo type='smbios'><bios/></sysinfo>")
        assert (claim.serial_number, claim.note) == (None, "no <system> block")

    @pytest.mark.parametrize("xml", [POWER_SYSINFO, S390_SYSINFO])
    def test_is_not_believed_where_it_is_not_smbios(self, xml: str) -> None:
        claim = from_sysinfo(xml)
        assert claim.serial_number is None
        assert claim.note is not None
        assert "no SMBIOS" in claim.note

    def test_refuses_entities_and_what_is_no_xml(self) -> None:
        bomb = (
            "<!DOCTYPE s [<!ENTITY a 'J70FG53'>]><sysinfo><system>"
            "<entry name='product'>x</entry><entry name='serial'>&a;</entry></system></sysinfo>"
        )
        for xml in (bomb, "<sysinfo>", ""):
            claim = from_sysinfo(xml)
            assert (claim.serial_number, claim.model) == (None, None)
            assert claim.note

    @pytest.mark.parametrize(
        ("manufacturer", "product", "expected"),
        [
            ("IBM", "System x3650 M5 -[8871AC1]-", ("8871", "AC1")),
            ("LENOVO", "Lenovo Flex System x240 M5 Compute Node -[9532AC1]-", ("9532", "AC1")),
            ("Lenovo", "ThinkSystem SR650 -[7X06CTO1WW]- ", ("7X06", "CTO1WW")),
            ("Lenovo", "ThinkSystem SR650 V2", (None, "ThinkSystem SR650 V2")),
            ("ACME", "Rocket -[8871AC1]-", (None, "Rocket -[8871AC1]-")),
        ],
    )
    def test_splits_ibms_type_and_model(
        self, manufacturer: str, product: str, expected: tuple[str | None, str]
    ) -> None:
        facts = R750 | {"manufacturer": manufacturer, "product": product}
        machine = identify([from_sysinfo(SYSINFO.format(**facts))]).machine
        assert (machine.type, machine.model) == expected


class TestSysfs:
    FILES = dmi(
        sys_vendor="Dell Inc.\n",
        product_name="PowerEdge R750\n",
        product_serial="J70FG53  \n",
        product_uuid="4c4c4544-0037-3010-8046-ca4f47353300\n",
        product_version="\n",
        bios_version="1.6.5\n",
    )

    def test_gives_the_id_that_libvirt_gives(self, tmp_path: Path) -> None:
        claim = from_sysfs(tree(tmp_path, self.FILES))
        assert (claim.source, claim.withheld) == (SYSFS, frozenset())
        assert identify([claim]).machine == R750_IDENTITY

    @given(st.binary(max_size=20).filter(lambda raw: b"\n" not in raw and b"\0" not in raw))
    def test_spells_odd_bytes_as_dmidecode_does(self, raw: bytes) -> None:
        text = as_dmidecode_prints(raw + b"\n")
        assert len(text) == len(raw)
        assert all(32 <= ord(char) < 127 for char in text)
        assert as_dmidecode_prints(text.encode()) == text

    def test_that_is_absent_is_no_claim(self, tmp_path: Path) -> None:
        assert from_sysfs(tmp_path) == Claim(SYSFS, note="/sys/class/dmi/id does not exist")

    def test_tells_what_root_alone_may_read_from_what_is_not_there(self, tmp_path: Path) -> None:
        tree(tmp_path, dmi(sys_vendor="Dell Inc.\n", product_serial="J70FG53\n"))
        (tmp_path / "sys/class/dmi/id/product_serial").chmod(0)
        for folder in [tmp_path, *tmp_path.parents]:
            if folder == Path(tempfile.gettempdir()):
                break
            folder.chmod(0o755)
        claim = as_nobody(lambda: from_sysfs(tmp_path))
        assert claim.withheld == {"serial_number"}
        assert (claim.manufacturer, claim.uuid) == ("Dell Inc.", None)
        with pytest.raises(IdentityError, match="serial number readable by root only"):
            identify([claim])


class TestDeviceTree:
    @pytest.mark.parametrize(
        "files",
        [
            {"system-id": b"IBM,0278ABCDE\0", "model": b"IBM,9040-MR9\0"},
            {
                "system-id": b"78ABCDE\0",
                "model": b"9040-MR9\0",
                "compatible": b"ibm,powernv\0ibm,p9-openbmc\0",
            },
        ],
    )
    def test_of_ibm_power(self, tmp_path: Path, files: dict[str, bytes]) -> None:
        tree(tmp_path, {f"proc/device-tree/{name}": raw for name, raw in files.items()})
        found = identify([from_device_tree(tmp_path)])
        assert found.source == DEVICE_TREE
        assert found.machine == MachineIdentity(
            serial_number="78ABCDE", manufacturer="IBM", type="9040", model="MR9"
        )

    def test_of_an_arm_board_through_sysfs(self, tmp_path: Path) -> None:
        files = {
            "serial-number": b"10000000abcdef01\0",
            "model": b"Raspberry Pi 4 Model B Rev 1.4\0",
            "compatible": b"raspberrypi,4-model-b\0brcm,bcm2711\0",
        }
        tree(tmp_path, {f"sys/firmware/devicetree/base/{k}": v for k, v in files.items()})
        assert identify([from_device_tree(tmp_path)]).machine == MachineIdentity(
            serial_number="10000000abcdef01",
            manufacturer="raspberrypi",
            model="Raspberry Pi 4 Model B Rev 1.4",
        )

    def test_takes_the_vendor_out_of_the_model(self, tmp_path: Path) -> None:
        files = {"serial-number": b"SN77A\0", "model": b"acme,rocket-2\0"}
        claim = from_device_tree(
            tree(tmp_path, {f"proc/device-tree/{k}": v for k, v in files.items()})
        )
        assert (claim.manufacturer, claim.model) == ("acme", "rocket-2")

    def test_without_a_serial_number_is_no_identity(self, tmp_path: Path) -> None:
        tree(tmp_path, {"proc/device-tree/model": b"acme,rocket-2\0"})
        with pytest.raises(IdentityError, match="device tree: no serial number"):
            identify([from_device_tree(tmp_path)])

    def test_that_is_absent_is_no_claim(self, tmp_path: Path) -> None:
        assert from_device_tree(tmp_path) == Claim(DEVICE_TREE, note="no device tree")


class TestS390:
    def test_takes_the_machine_and_neither_lpar_nor_guest(self, tmp_path: Path) -> None:
        claim = from_s390(tree(tmp_path, {"proc/sysinfo": S390_PROC.format(capacity="704")}))
        assert claim.source == S390
        assert identify([claim]).machine == MachineIdentity(
            serial_number="02-ABCDE", manufacturer="IBM", type="8561", model="T01"
        )

    def test_keeps_its_id_through_a_capacity_upgrade(self, tmp_path: Path) -> None:
        ids = {
            identify([from_s390(tree(tmp_path, {"proc/sysinfo": text}))]).machine.component_id
            for text in (S390_PROC.format(capacity="704"), S390_PROC.format(capacity="710"))
        }
        assert len(ids) == 1

    @pytest.mark.parametrize(
        "text",
        ["", "\n", "LPAR Number: 47\n", "\nManufacturer: IBM\nSequence Code: 00000000000ABCDE\n"],
    )
    def test_without_the_machines_block_is_no_claim(self, tmp_path: Path, text: str) -> None:
        claim = from_s390(tree(tmp_path, {"proc/sysinfo": text}))
        assert claim == Claim(S390, note="no sequence code")

    def test_that_is_absent_is_no_claim(self, tmp_path: Path) -> None:
        assert from_s390(tmp_path) == Claim(S390, note="does not exist")


class TestOrder:
    def test_is_libvirt_sysfs_device_tree_s390(self, tmp_path: Path) -> None:
        claims = read_claims(None, "no SMBIOS", root=tmp_path)
        assert [claim.source for claim in claims] == [LIBVIRT, SYSFS, DEVICE_TREE, S390]

    def test_leaves_this_machines_own_sources_out_for_a_libvirt_elsewhere(self) -> None:
        claims = read_claims(SYSINFO.format(**R750), root=None)
        assert [claim.source for claim in claims] == [LIBVIRT]

    def test_gets_power_right_though_libvirt_names_its_model_a_serial(self, tmp_path: Path) -> None:
        files = {"system-id": b"IBM,0210ABCDE\0", "model": b"IBM,8247-22L\0"}
        tree(tmp_path, {f"proc/device-tree/{k}": v for k, v in files.items()})
        found = identify(read_claims(POWER_SYSINFO, root=tmp_path))
        assert (found.source, found.machine.serial_number) == (DEVICE_TREE, "10ABCDE")

    def test_on_a_machine_with_nothing_says_so_for_each(self, tmp_path: Path) -> None:
        with pytest.raises(IdentityError) as caught:
            identify(read_claims(None, "Host SMBIOS information is not available", root=tmp_path))
        for source in (LIBVIRT, SYSFS, DEVICE_TREE, S390):
            assert source in str(caught.value)


def test_cpuinfo_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert read_cpuinfo(tmp_path) is None
    tree(tmp_path, {"proc/cpuinfo": "model name\t: x\n"})
    assert read_cpuinfo(tmp_path) == "model name\t: x\n"


def as_nobody(read: Callable[[], Claim]) -> Claim:
    """What `read` returns without root's power to open any file."""
    if os.geteuid() != 0:
        return read()
    os.seteuid(65534)
    try:
        return read()
    finally:
        os.seteuid(0)
