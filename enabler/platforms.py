"""Where a machine keeps its identity: SMBIOS through libvirt, sysfs, the device tree, s390x.

Each source becomes one `Claim`, in this order; `enabler.identity.identify` chooses.

==================  ============================================================================
libvirt getSysinfo  SMBIOS, on x86-64 and server-class ARM; libvirtd reads it for us, as root
sysfs DMI           SMBIOS as the kernel read it, where libvirt has no dmidecode; the serial number
                    and the UUID are for root only
device tree         IBM Power (``system-id``, ``model``), other ARM and RISC-V (``serial-number``)
/proc/sysinfo       s390x
==================  ============================================================================

On Power, on s390x and on ARM without SMBIOS, libvirt's getSysinfo answers too, out of
``/proc/cpuinfo`` and ``/proc/sysinfo``. Its ``serial`` is then the *model* on Power and ARM
(``virSysinfoParsePPCSystem``), the same for every machine of that model, and on s390x the model and
the plant are missing. So getSysinfo is believed only where it is SMBIOS, which always shows as a
product name or a UUID.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

from enabler import safexml
from enabler.identity import Claim, canonical

LIBVIRT = "libvirt getSysinfo"
SYSFS = "sysfs DMI"
DEVICE_TREE = "device tree"
S390 = "/proc/sysinfo"

_MAX_BYTES = 65536
"""More than any of these files says of the machine; what is behind it (of /proc/cpuinfo, the other
processors) is not read."""

_SYSFS_FILES = {
    "manufacturer": "sys_vendor",
    "model": "product_name",
    "serial_number": "product_serial",
    "uuid": "product_uuid",
}

# "System x3650 M5 -[8871AC1]-": IBM's and Lenovo's x86 servers put type and model in brackets.
_BRACKETED = re.compile(r".*-\[(?P<type>[0-9A-Z]{4})(?P<model>[0-9A-Z]{2,})\]-")
# "IBM,9040-MR9", and without the maker on PowerNV: "8247-22L".
_POWER_MODEL = re.compile(r"(?:IBM,)?(?P<type>[0-9A-Z]{4})-(?P<model>[0-9A-Z]{3})")
# "IBM,0278ABCDE": two digits of the plant, then the serial number on the machine's label.
_POWER_SERIAL = re.compile(r"IBM,[0-9]{2}(?P<serial>[0-9A-Z]{7})")
# "vendor,model", as the Devicetree Specification (2.3.1, 2.3.2) has it.
_VENDOR_MODEL = re.compile(r"(?P<vendor>[a-zA-Z0-9.+_-]+),(?P<model>.+)")


def read_claims(
    sysinfo: str | None, sysinfo_error: str | None = None, *, root: Path | None = Path("/")
) -> list[Claim]:
    """What every source says, in the order in which they are believed.

    ``sysinfo`` is what ``virConnectGetSysinfo`` returned, or None with libvirt's message in
    ``sysinfo_error``. ``root`` is where this machine's file systems are seen; None when libvirt is
    not on this machine (``qemu+ssh://…``), whose own sources then say nothing of the one that is
    meant.
    """
    claims = [from_sysinfo(sysinfo, sysinfo_error)]
    if root is not None:
        claims += [from_sysfs(root), from_device_tree(root), from_s390(root)]
    return claims


def from_sysinfo(xml: str | None, error: str | None = None) -> Claim:
    """The claim of libvirt's getSysinfo (https://libvirt.org/formatdomain.html, SMBIOS)."""
    if xml is None:
        return Claim(LIBVIRT, note=error or "not asked")
    try:
        system = safexml.parse(xml).find("system")
    except safexml.UnsafeXmlError as refused:
        return Claim(LIBVIRT, note=str(refused))
    if system is None:
        return Claim(LIBVIRT, note="no <system> block")
    product, uuid = entry(system, "product"), entry(system, "uuid")
    if product is None and uuid is None:
        return Claim(LIBVIRT, note="no SMBIOS on this platform, only what /proc says of processors")
    return with_machine_type(
        Claim(
            LIBVIRT,
            manufacturer=entry(system, "manufacturer"),
            model=product,
            serial_number=entry(system, "serial"),
            uuid=uuid,
        )
    )


def from_sysfs(root: Path = Path("/")) -> Claim:
    """The claim of ``/sys/class/dmi/id``."""
    folder = root / "sys/class/dmi/id"
    if not folder.is_dir():
        return Claim(SYSFS, note="/sys/class/dmi/id does not exist")
    values: dict[str, str] = {}
    withheld: set[str] = set()
    for field, name in _SYSFS_FILES.items():
        try:
            raw = _read(folder / name)
        except PermissionError:
            withheld.add(field)
        else:
            if raw is not None:
                values[field] = as_dmidecode_prints(raw)
    return with_machine_type(
        Claim(
            SYSFS,
            manufacturer=values.get("manufacturer"),
            model=values.get("model"),
            serial_number=values.get("serial_number"),
            uuid=values.get("uuid"),
            withheld=frozenset(withheld),
        )
    )


def from_device_tree(root: Path = Path("/")) -> Claim:
    """The claim of the device tree's root node."""
    folder = _first_folder(root, "proc/device-tree", "sys/firmware/devicetree/base")
    if folder is None:
        return Claim(DEVICE_TREE, note="no device tree")
    try:
        node = {
            name: _strings(_read(folder / name))
            for name in ("model", "compatible", "system-id", "serial-number")
        }
    except PermissionError as error:
        return Claim(
            DEVICE_TREE,
            withheld=frozenset({"serial_number"}),
            note=f"{Path(error.filename).name} may not be read",
        )
    model = next(iter(node["model"]), None)
    serial = next(iter(node["system-id"]), None) or next(iter(node["serial-number"]), None)
    claim = Claim(DEVICE_TREE, model=model, serial_number=serial)
    if power := _power(claim, node["compatible"]):
        return power
    vendor = _VENDOR_MODEL.fullmatch(model or "")
    if vendor:
        return replace(claim, manufacturer=vendor["vendor"], model=vendor["model"])
    maker = _VENDOR_MODEL.fullmatch(next(iter(node["compatible"]), ""))
    return replace(claim, manufacturer=maker["vendor"] if maker else None)


def from_s390(root: Path = Path("/")) -> Claim:
    """The claim of ``/proc/sysinfo``: its first block alone, the machine's.

    The blocks of the LPAR and of z/VM that follow say what this system is a part of, or a guest of.
    The line ``Model`` has the capacity model first, which a capacity upgrade changes on the running
    machine, and then, since z9, the hardware's; only the latter is taken
    (``arch/s390/kernel/sysinfo.c``). A sequence code is unique within its plant, so both make the
    serial number, as IBM writes it: ``02-ABCDE``.
    """
    try:
        raw = _read(root / "proc/sysinfo")
    except PermissionError:
        return Claim(S390, withheld=frozenset({"serial_number"}), note="may not be read")
    if raw is None:
        return Claim(S390, note="does not exist")
    lines: dict[str, str] = {}
    for line in raw.decode("ascii", "replace").splitlines():
        if not line.strip():
            break
        name, colon, value = line.partition(":")
        if colon and value.strip():
            lines.setdefault(name.strip(), value.strip())
    models = lines.get("Model", "").split()
    serial = lines.get("Sequence Code", "").lstrip("0")
    plant = lines.get("Plant")
    if serial:
        serial = serial.rjust(5, "0")
        serial = f"{plant}-{serial}" if plant else serial
    return Claim(
        S390,
        manufacturer=lines.get("Manufacturer"),
        type=lines.get("Type"),
        model=models[1] if len(models) > 1 else None,
        serial_number=serial or None,
        note=None if serial else "no sequence code",
    )


def with_machine_type(claim: Claim) -> Claim:
    """`claim` with type and model taken out of an IBM or Lenovo x86 product name; others as they
    are."""
    maker = (canonical(claim.manufacturer) or "").casefold()
    if not maker.startswith(("ibm", "lenovo")):
        return claim
    match = _BRACKETED.fullmatch(canonical(claim.model) or "")
    return replace(claim, type=match["type"], model=match["model"]) if match else claim


def as_dmidecode_prints(raw: bytes) -> str:
    """An SMBIOS string as dmidecode prints it: each byte that is not printable ASCII is a dot.

    The kernel passes such bytes on as they are. Read alike, the machine is the same whether libvirt
    was asked or sysfs.
    """
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in raw.removesuffix(b"\n"))


def entry(parent: Element, name: str) -> str | None:
    """The text of ``<entry name='NAME'>`` in a block of libvirt's sysinfo, or None."""
    for element in parent.findall("entry"):
        if element.get("name") == name:
            return element.text
    return None


def read_cpuinfo(root: Path = Path("/")) -> str | None:
    """``/proc/cpuinfo``, or None when it can't be read."""
    try:
        raw = _read(root / "proc/cpuinfo")
    except PermissionError:
        return None
    return None if raw is None else raw.decode("utf-8", "replace")


def _power(claim: Claim, compatible: list[str]) -> Claim | None:
    """`claim` as an IBM Power machine's, or None when it is none."""
    match = _POWER_MODEL.fullmatch(claim.model or "")
    ibm = (claim.model or "").startswith("IBM,") or "ibm,powernv" in compatible
    if not (match and ibm):
        return None
    serial = _POWER_SERIAL.fullmatch(claim.serial_number or "")
    return replace(
        claim,
        manufacturer="IBM",
        type=match["type"],
        model=match["model"],
        serial_number=serial["serial"] if serial else claim.serial_number,
    )


def _read(path: Path) -> bytes | None:
    """The file's beginning, or None when there is none. Raises PermissionError."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except PermissionError:
        raise
    except OSError:
        return None


def _strings(raw: bytes | None) -> list[str]:
    """A device tree property's NUL-terminated strings, without the empty ones."""
    return [part.decode("utf-8", "replace") for part in (raw or b"").split(b"\0") if part.strip()]


def _first_folder(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
