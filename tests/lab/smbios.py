"""Writes SMBIOS tables, so that every host of the lab is a machine of its own.

The layout is that of the System Management BIOS Reference Specification (DMTF DSP0134) 3.0:
a 64-bit entry point ("_SM3_"), then structures, each a header (type, length, handle), a
fixed part and its strings. The file begins with the entry point and has the table at
offset 0x20, as `dmidecode --from-dump` reads it.
"""

from __future__ import annotations

import struct
import uuid as uuid_module
from dataclasses import dataclass

_TABLE_OFFSET = 0x20
_NO_HANDLE = 0xFFFF
_NO_ERROR_INFORMATION = 0xFFFE


@dataclass(frozen=True, slots=True)
class Machine:
    """What the firmware of one machine says of it."""

    manufacturer: str
    product: str
    serial: str
    uuid: str
    bios_vendor: str = "IBM Corp."
    bios_version: str = "-[VVE142AUS-2.10]-"
    bios_date: str = "11/22/2013"
    processor: str = "Intel(R) Xeon(R) CPU E5-2640 0 @ 2.50GHz"
    memory_mib: int = 28672  # more than this machine can have: capacity then rests on SMBIOS alone


_X3650 = "System x3650 M4: -[7915AC1]-"
_X3850 = "System x3850 X5: -[7143AC1]-"

#: The machines of hosts a, b, c …: a and b are the same model and differ in serial and UUID
#: alone, c is another model.
MACHINES: tuple[Machine, ...] = (
    Machine("IBM", _X3650, "06DXK41", "3d4f2c1a-6a0b-11e3-8e5b-5cf3fc2b7d10"),
    Machine("IBM", _X3650, "06DXK57", "7b90e6d4-6a0c-11e3-9c21-5cf3fc2b81a8"),
    Machine(
        "IBM",
        _X3850,
        "06ARH93",
        "c2ab5e70-2f4d-11e1-bb0d-e41f13e8a4c4",
        bios_version="-[G0E179BUS-1.79]-",
        bios_date="07/10/2013",
        processor="Intel(R) Xeon(R) CPU E7- 4870 @ 2.40GHz",
        memory_mib=32768,
    ),
    Machine("IBM", _X3850, "06ARH98", "d81c93f6-2f4e-11e1-a6f2-e41f13e8b05c"),
    Machine("IBM", _X3650, "06DXL02", "0e6bd2f8-6a0d-11e3-b7a4-5cf3fc2b9c34"),
    Machine("IBM", _X3650, "06DXL19", "91c40aee-6a0d-11e3-8f35-5cf3fc2ba0f0"),
)


class _Table:
    """Structures, one after the other, with handles that count up."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._next_handle = 0x0001

    def add(self, kind: int, fixed: bytes, strings: tuple[str, ...] = ()) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self.data += struct.pack("<BBH", kind, 4 + len(fixed), handle) + fixed
        for text in strings:
            self.data += text.encode("ascii") + b"\0"
        self.data += b"\0" if strings else b"\0\0"
        return handle


def dump(machine: Machine) -> bytes:
    """The whole file for `dmidecode --from-dump`."""
    table = _Table()
    _bios(table, machine)
    _system(table, machine)
    chassis = _chassis(table, machine)
    _board(table, machine, chassis)
    _processor(table, machine)
    _memory(table, machine)
    table.add(127, b"")
    return _entry_point(len(table.data)).ljust(_TABLE_OFFSET, b"\0") + bytes(table.data)


def _entry_point(table_length: int) -> bytes:
    def fields(checksum: int) -> bytes:
        return struct.pack(
            "<5sBBBBBBBIQ", b"_SM3_", checksum, 0x18, 3, 0, 0, 1, 0, table_length, _TABLE_OFFSET
        )

    return fields(-sum(fields(0)) & 0xFF)  # all bytes of the entry point add up to zero


def _bios(table: _Table, machine: Machine) -> None:
    fixed = struct.pack(
        "<BBHBBQBBBBBB",
        1,  # vendor
        2,  # version
        0xE000,  # start segment
        3,  # release date
        0xFF,  # ROM size: 16 MB
        0x0000_0000_0001_0A80,  # PCI, upgradeable, selectable boot
        0x03,  # ACPI, USB legacy
        0x0C,  # boot specification, UEFI
        2,
        10,
        0xFF,  # no embedded controller
        0xFF,
    )
    table.add(0, fixed, (machine.bios_vendor, machine.bios_version, machine.bios_date))


def _system(table: _Table, machine: Machine) -> None:
    # From SMBIOS 2.6 on, the first three fields of the UUID are little-endian.
    identifier = uuid_module.UUID(machine.uuid).bytes_le
    fixed = struct.pack("<BBBB16sBBB", 1, 2, 3, 4, identifier, 0x06, 0, 5)
    strings = (machine.manufacturer, machine.product, "05", machine.serial, "System x")
    table.add(1, fixed, strings)


def _chassis(table: _Table, machine: Machine) -> int:
    rack_mount, safe, unknown = 0x17, 0x03, 0x02
    fixed = struct.pack(
        "<BBBBBBBBBIBBBBB", 1, rack_mount, 0, 2, 0, safe, safe, safe, unknown, 0, 2, 2, 0, 0, 0
    )
    return table.add(3, fixed, (machine.manufacturer, machine.serial))


def _board(table: _Table, machine: Machine, chassis: int) -> None:
    hosting, motherboard = 0x09, 0x0A
    fixed = struct.pack("<BBBBBBBHBB", 1, 2, 0, 3, 0, hosting, 0, chassis, motherboard, 0)
    # The board's serial number is not the machine's: who mixes them up is found out.
    table.add(2, fixed, (machine.manufacturer, "00Y8499", f"Y014UN{machine.serial[-4:]}"))


def _processor(table: _Table, machine: Machine) -> None:
    central, xeon, enabled = 0x03, 0xB3, 0x41
    fixed = struct.pack(
        "<BBBBQBBHHHBBHHHBBBBBBHH",
        1,  # socket
        central,
        xeon,
        2,  # manufacturer
        0xBFEBFBFF_000206D7,
        3,  # version
        0x8C,  # 1.2 V
        100,
        4000,
        2500,
        enabled,
        0x2B,
        _NO_HANDLE,
        _NO_HANDLE,
        _NO_HANDLE,
        0,
        0,
        0,
        6,
        6,
        12,
        0x0004,
        xeon,
    )
    table.add(4, fixed, ("Node 1 Socket 1", "Intel(R) Corporation", machine.processor))


def _memory(table: _Table, machine: Machine) -> None:
    motherboard, system, multi_bit_ecc = 0x03, 0x03, 0x06
    array = table.add(
        16,
        struct.pack(
            "<BBBIHH",
            motherboard,
            system,
            multi_bit_ecc,
            machine.memory_mib * 1024,
            _NO_ERROR_INFORMATION,
            1,
        ),
    )
    dimm, ddr3, synchronous = 0x09, 0x18, 0x0080
    size = machine.memory_mib if machine.memory_mib < 0x7FFF else 0x7FFF
    fixed = struct.pack(
        "<HHHHHBBBBBHHBBBBBI",
        array,
        _NO_ERROR_INFORMATION,
        72,
        64,
        size,
        dimm,
        0,
        1,
        2,
        ddr3,
        synchronous,
        1600,
        3,
        4,
        0,
        5,
        0,
        machine.memory_mib,
    )
    strings = ("DIMM 1", "Bank 1", "Samsung", f"{machine.serial[-4:]}8F01", "M393B2G70QH0")
    table.add(17, fixed, strings)
