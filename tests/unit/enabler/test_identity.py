"""Machine identity: canonical form, fillers, component ID, and what is said when there is none."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enabler.errors import IdentityError
from enabler.identity import (
    CONFIGURATION,
    FIELDS,
    Claim,
    MachineIdentity,
    canonical,
    canonical_uuid,
    identify,
)

POWER = MachineIdentity(
    manufacturer="IBM",
    type="9040",
    model="MR9",
    serial_number="78ABCDE",
    uuid="aaaaaaaa-0000-4000-8000-000000000001",
)
DELL = Claim(
    "SMBIOS",
    manufacturer="Dell Inc.",
    model="PowerEdge R750",
    serial_number="J70FG53",
    uuid="4c4c4544-0037-3010-8046-ca4f47353300",
)

serials = st.text(
    st.sampled_from("ABCDEFGHJKLMNPQRSTUVWXYZ23456789"), min_size=7, max_size=12
).filter(lambda text: len(set(text)) > 2 and not text.startswith(("ABCD", "9876")))


class TestCanonicalForm:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            ("CZJ6320B5T      ", "CZJ6320B5T"),
            ("  Dell \t Inc.\n", "Dell Inc."),
            ("J70\x00FG\x0753", "J70FG53"),
            ("\ufeffJ70FG53\u200b", "J70FG53"),
            ("Mu\u0308ller", "M\u00fcller"),
            ("", None),
            (" \t\x00 ", None),
            (None, None),
        ],
    )
    def test_of_text(self, raw: str | None, expected: str | None) -> None:
        assert canonical(raw) == expected

    @given(st.text())
    def test_is_idempotent_and_clean(self, raw: str) -> None:
        once = canonical(raw)
        assert canonical(once) == once
        if once is not None:
            assert once == once.strip()
            assert "  " not in once
            assert unicodedata.is_normalized("NFC", once)
            once.encode("utf-8")

    @given(st.uuids(), st.booleans(), st.sampled_from(["{}", "{{{}}}", " {}\n"]))
    def test_of_a_uuid_has_one_spelling(self, value: uuid.UUID, upper: bool, around: str) -> None:
        text = around.format(str(value).upper() if upper else str(value))
        assert canonical_uuid(text) == str(value)

    @pytest.mark.parametrize(
        "text", ["", "Not Settable", "4c4c4544-0037-3010-8046", "g" * 32, None]
    )
    def test_of_what_is_no_uuid_is_nothing(self, text: str | None) -> None:
        assert canonical_uuid(text) is None


class TestComponentId:
    def test_is_the_digest_of_the_five_members_as_anybody_can_write_them(self) -> None:
        text = (
            '{"manufacturer":"IBM","model":"MR9","serial_number":"78ABCDE","type":"9040",'
            '"uuid":"aaaaaaaa-0000-4000-8000-000000000001"}'
        )
        assert POWER.component_id == "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def test_is_pinned(self) -> None:
        """The ID of a machine must outlive every version of this code."""
        assert POWER.component_id == (
            "sha256:a1d98f39f138b5b045af22fa7acd48f0040ba11b1cdbd23410d11ddf36cea670"
        )

    def test_writes_what_is_unknown_as_null_and_other_scripts_as_they_are(self) -> None:
        machine = MachineIdentity(serial_number='7"\\', manufacturer="株式会社")
        assert machine.canonical_json.decode() == (
            '{"manufacturer":"株式会社","model":null,"serial_number":"7\\"\\\\","type":null,"uuid":null}'
        )
        assert set(json.loads(machine.canonical_json)) == set(FIELDS)

    @given(serials, serials)
    def test_differs_exactly_when_the_serial_number_does(self, one: str, other: str) -> None:
        ids = [
            identify([replace(DELL, serial_number=serial)]).machine.component_id
            for serial in (one, other)
        ]
        assert (ids[0] == ids[1]) == (one == other)

    @given(st.sampled_from(FIELDS), serials)
    def test_differs_exactly_when_any_fact_does(self, field: str, value: str) -> None:
        text = str(uuid.uuid5(uuid.NAMESPACE_DNS, value)) if field == "uuid" else value
        other = replace(POWER, **{field: text})
        assert (other.component_id == POWER.component_id) == (other == POWER)

    @given(serials, st.sampled_from([" {}", "{}  ", "{}\n", "\t{}\x00"]))
    def test_is_blind_to_padding(self, serial: str, padding: str) -> None:
        plain = identify([replace(DELL, serial_number=serial)])
        padded = identify([replace(DELL, serial_number=padding.format(serial))])
        assert padded.machine == plain.machine


class TestFillers:
    @pytest.mark.parametrize(
        "serial",
        [
            "To be filled by O.E.M.",
            "To Be Filled By O.E.M",
            "to_be_filled_by_OEM",
            "Default string",
            "Not Specified",
            "System Serial Number",
            "None",
            "N/A",
            "..............",
            "-",
            "0",
            "00000000",
            "1111",
            "XXXXXXXXXXXX",
            "FFFFFFFF",
            "0000-0000-0000",
            "12345",
            "123456789",
            "0123456789",
            "1234567890123456",
            "0123456789ABCDEF",
            "SN-1234567890",
            "9876543210",
        ],
    )
    def test_are_no_serial_numbers(self, serial: str) -> None:
        with pytest.raises(IdentityError, match=re.escape(repr(serial))):
            identify([replace(DELL, serial_number=serial)])

    @pytest.mark.parametrize(
        "serial",
        ["77A", "0000123", "1112", "1234", "12346", "10000000abcdef01", "02-ABCDE", "VMware-56 4d"],
    )
    def test_leave_real_serial_numbers_alone(self, serial: str) -> None:
        assert identify([replace(DELL, serial_number=serial)]).machine.serial_number == serial

    @given(st.text(st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"), min_size=1), st.data())
    def test_of_one_repeated_character_only_when_all_are_the_same(
        self, text: str, data: st.DataObject
    ) -> None:
        char = text[0]
        assert _is_filler(char * len(text))
        other = data.draw(st.sampled_from([c for c in "QWJ" if c != char]))
        assert not _is_filler(other + char * len(text) + other + "7Z")

    @pytest.mark.parametrize(
        "value",
        [
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "FEFEFEFE-FEFE-FEFE-FEFE-FEFEFEFEFEFE",
            "01010101-0101-0101-0101-010101010101",
            "03000200-0400-0500-0006-000700080009",
            "00020003-0004-0005-0006-000700080009",
            "12345678-1234-5678-90ab-cddeefaabbcc",
            "78563412-3412-7856-90AB-CDDEEFAABBCC",
            "50FB9712-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "4C4C4544-0000-2010-8020-80C04F202020",
            "Not Settable",
            "Not Present",
        ],
    )
    def test_are_no_uuids(self, value: str) -> None:
        assert identify([replace(DELL, uuid=value)]).machine.uuid is None

    @given(st.uuids(version=4))
    def test_leave_random_uuids_alone(self, value: uuid.UUID) -> None:
        assert identify([replace(DELL, uuid=str(value))]).machine.uuid == str(value)

    def test_leave_uuids_made_from_a_mac_alone(self) -> None:
        value = "00000000-0000-0000-0000-ac1f6b4d5e6f"
        assert identify([replace(DELL, uuid=value)]).machine.uuid == value

    def test_are_no_manufacturers_and_no_models(self) -> None:
        claim = replace(DELL, manufacturer="System manufacturer", model="System Product Name")
        machine = identify([claim]).machine
        assert (machine.manufacturer, machine.model) == (None, None)
        assert machine.serial_number == DELL.serial_number


class TestChoice:
    def test_takes_the_first_trustworthy_serial_number_and_its_source_whole(self) -> None:
        junk = Claim("first", manufacturer="ACME", model="Rocket", serial_number="Default string")
        bare = Claim("second", manufacturer="Dell Inc.", serial_number="J70FG53")
        found = identify([junk, bare, DELL])
        assert found.source == "second"
        assert found.machine == MachineIdentity("J70FG53", manufacturer="Dell Inc.")

    def test_lets_the_configuration_override_fact_by_fact(self) -> None:
        found = identify([DELL], {"serial_number": " B7654 ", "model": None, "type": ""})
        assert found.machine == replace(identify([DELL]).machine, serial_number="B7654")
        assert (found.source, found.configured) == ("SMBIOS", ("serial_number",))

    def test_keeps_the_other_facts_when_only_the_serial_number_is_configured(self) -> None:
        claim = replace(DELL, serial_number="To be filled by O.E.M.")
        found = identify([Claim("empty", note="nothing"), claim], {"serial_number": "J70FG53"})
        assert found.machine == identify([DELL]).machine

    def test_is_content_with_the_configuration_alone(self) -> None:
        found = identify([], {"serial_number": "J70FG53", "manufacturer": "Dell Inc."})
        assert found.source == CONFIGURATION
        assert found.machine == MachineIdentity("J70FG53", manufacturer="Dell Inc.")

    def test_takes_a_uuid_in_place_of_a_manufacturer(self) -> None:
        machine = identify([replace(DELL, manufacturer=None)]).machine
        assert (machine.manufacturer, machine.uuid) == (None, DELL.uuid)

    def test_gives_one_id_to_a_machine_whether_all_or_only_the_first_source_answers(self) -> None:
        again = replace(DELL, source="sysfs", uuid="4C4C4544-0037-3010-8046-CA4F47353300")
        gone = Claim("SMBIOS", note="no dmidecode")
        assert identify([gone, again]).machine == identify([DELL, again]).machine


class TestRefusal:
    def test_names_each_source_what_it_said_and_what_to_write(self) -> None:
        claims = [
            Claim("libvirt", note="Host SMBIOS information is not available"),
            Claim("sysfs", manufacturer="ASUS", serial_number="System Serial Number"),
            Claim("tree", withheld=frozenset({"serial_number", "uuid"})),
            Claim("empty"),
        ]
        with pytest.raises(IdentityError) as caught:
            identify(claims)
        text = str(caught.value)
        assert "libvirt: Host SMBIOS information is not available" in text
        assert "sysfs: serial number 'System Serial Number' is a filler" in text
        assert "tree: serial number and UUID readable by root only" in text
        assert "empty: no serial number" in text
        assert "/etc/enabler/enabler.toml, under [machine], as serial_number = " in text
        assert "ENABLER_MACHINE__SERIAL_NUMBER" in text
        assert "\n" not in text

    def test_of_a_serial_number_with_neither_maker_nor_uuid(self) -> None:
        claim = Claim("tree", serial_number="77A", uuid="garbage", manufacturer="O.E.M.")
        with pytest.raises(IdentityError, match="ENABLER_MACHINE__MANUFACTURER") as caught:
            identify([claim])
        assert "UUID 'garbage' is no UUID" in str(caught.value)
        assert identify([claim], {"manufacturer": "ACME"}).machine.manufacturer == "ACME"

    def test_when_facts_are_withheld_that_another_run_would_see(self) -> None:
        """Root's ID and another user's must not differ: without the UUID it would be another."""
        claim = replace(
            DELL, serial_number=None, uuid=None, withheld=frozenset({"serial_number", "uuid"})
        )
        with pytest.raises(IdentityError, match="UUID; run the enabler as root"):
            identify([claim], {"serial_number": "J70FG53"})
        told = {"serial_number": DELL.serial_number, "uuid": DELL.uuid}
        assert identify([claim], told).machine == identify([DELL]).machine

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("serial_number", "To be filled by O.E.M."),
            ("manufacturer", "System manufacturer"),
            ("uuid", "03000200-0400-0500-0006-000700080009"),
            ("uuid", "yes"),
        ],
    )
    def test_of_configured_nonsense(self, field: str, value: str) -> None:
        with pytest.raises(IdentityError, match=f"machine.{field}"):
            identify([DELL], {field: value})


def _is_filler(serial: str) -> bool:
    try:
        identify([replace(DELL, serial_number=serial)])
    except IdentityError:
        return True
    return False
