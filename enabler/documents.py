"""The documents of the contract, as pydantic models: what goes over the wire, and the OpenAPI
document made from it.

Times are RFC 3339 in UTC with milliseconds. Readers must ignore members they do not know: new ones
may come.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from enabler.changes import EventKind
from enabler.events import ArrivedBy
from enabler.residency import MigrationState, Place


def timestamp(at: datetime) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds, such as ``2026-11-23T02:37:29.304Z``."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(timestamp, return_type=str, when_used="json")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MachineDocument(_Document):
    """Which real machine this is: all and only the facts that say so."""

    manufacturer: str | None = Field(examples=["IBM"])
    type: str | None = Field(
        description="Machine type, where the maker has one (IBM, Lenovo).", examples=["9040"]
    )
    model: str | None = Field(examples=["MR9"])
    serial_number: str = Field(examples=["78ABCDE"])
    uuid: str | None = Field(examples=["aaaaaaaa-0000-4000-8000-000000000001"])


class CapacityDocument(_Document):
    """What licences count: of the real machine, never part of the component ID."""

    cpu_model: str | None = Field(examples=["Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"])
    sockets: int = Field(ge=1, examples=[2])
    cores_per_socket: int = Field(ge=1, examples=[12])
    threads_per_core: int = Field(ge=1, examples=[8])
    memory_bytes: int = Field(gt=0, examples=[1099511627776])


class VmDocument(_Document):
    """The virtual machine and what is allotted to it."""

    uuid: str = Field(examples=["11111111-0000-4000-8000-000000000001"])
    name: str = Field(examples=["db01"])
    generation_id: str | None = Field(
        description="The VM generation ID (`<genid>`): changes when the VM is cloned or reverted "
        "to a snapshot, stays in a live migration. Null where the domain has none.",
        examples=["23540000-0000-4000-8000-000000000001"],
    )
    vcpus: int = Field(ge=1, description="Virtual CPUs online.", examples=[4])
    memory_bytes: int = Field(
        gt=0, description="Memory allotted, whatever the balloon holds.", examples=[8589934592]
    )


class ResidencyDocument(_Document):
    """One unbroken stay of one VM on one host."""

    id: str = Field(
        description="Opaque. New at every arrival, also back on a former host; "
        "the same for the whole stay.",
        examples=["5b6c0a46-5e0b-5d8c-9c56-2f6a7d1c1f0e"],
    )
    since: Timestamp = Field(
        description="When the stay began; if nobody saw it begin, a moment by which it had.",
        examples=["2026-11-23T02:37:29.304Z"],
    )
    arrived_by: ArrivedBy = Field(examples=["migration"])


class MigrationDocument(_Document):
    """Whether the VM is being moved just now."""

    state: MigrationState = Field(
        description="`outgoing`: in progress, the VM still runs here. "
        "`postcopy`: it runs here, its memory is still arriving.",
        examples=["none"],
    )


class IdentityState(_Document):
    """All of an identity document that changes only with the VM's or the host's state."""

    component_id: str = Field(
        pattern="^sha256:[0-9a-f]{64}$",
        description="The host component ID: a digest of `machine` in canonical form.",
        examples=["sha256:3f0c1d0f8f1c2b7a5e4d3c2b1a09f8e7d6c5b4a392817060504030201000f0e0"],
    )
    machine: MachineDocument
    capacity: CapacityDocument
    vm: VmDocument
    residency: ResidencyDocument
    migration: MigrationDocument


class IdentityDocument(IdentityState):
    """A VM's own view: the real machine under it, and since when."""

    observed_at: Timestamp = Field(
        description="When the hypervisor last confirmed this state.",
        examples=["2026-11-23T02:40:00.120Z"],
    )


class AttestationRequest(_Document):
    """What an attestation shall be bound to."""

    nonce: str = Field(
        pattern=r"^[A-Za-z0-9_.~+/=-]{16,256}$",
        description="Chosen by the asker, and never twice: random, or a digest. "
        "It comes back in the attestation.",
        examples=["Zl2i1Jq4nZ3mJc8pQy0t5w"],
    )
    report_digest: str | None = Field(
        None,
        pattern="^sha256:[0-9a-f]{64}$",
        description="The digest of a scan's output.",
        examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )


class AttestationClaims(_Document):
    """What an attestation's payload says, once its signature is verified."""

    iss: str = Field(description="The host component ID of the host that signed it.")
    iat: int = Field(description="When: seconds since 1970.", examples=[1795689600])
    exp: int = Field(description="Until when it is good.", examples=[1830249600])
    jti: str = Field(description="The attestation's own ID.")
    nonce: str
    report_digest: str | None = Field(None, description="Not there if none was given.")
    identity: IdentityDocument


class KeyDocument(BaseModel):
    """A public key (RFC 7517, RFC 8037)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str = Field(examples=["11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"])
    kid: str = Field(
        description="Its thumbprint (RFC 7638).",
        examples=["kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"],
    )
    use: Literal["sig"]
    alg: Literal["EdDSA"]
    iat: int | None = Field(None, description="When it was made, if that is known.")


class KeySetDocument(_Document):
    """A set of public keys (JWKS, RFC 7517)."""

    keys: list[KeyDocument]


class HistoryDocument(_Document):
    """Where a VM has been: each host's own word, chained, as it travels with the VM.

    All but `vm_uuid` are JWS in compact form (RFC 7515), algorithm EdDSA. Each entry's `previous`
    is the SHA-256, in hex, of the entry before it.
    """

    vm_uuid: str
    checkpoint: str | None = Field(
        description="In place of older entries (`typ` `vm-enabler-checkpoint+jwt`): `dropped`, how "
        "many they were, and `last`, the SHA-256 of the last of them."
    )
    entries: list[str] = Field(
        description="Oldest first (`typ` `vm-enabler-stay+jwt`): `iss`, `iat`, `vm`, `seq`, "
        "`previous`, `event` (`arrival` or `departure`), `residency`, and with an arrival `machine`"
        " and perhaps `gap`, with a departure `until`."
    )
    statement: str = Field(
        description="This host's word on the whole, now (`typ` `vm-enabler-history+jwt`): "
        "`residency`, the present one, `count` of the entries, and `last`, the SHA-256 of the last."
    )


class HostDocument(_Document):
    """The host, for its admin."""

    component_id: str
    machine: MachineDocument
    machine_source: str = Field(
        description="Where the machine identity was read.", examples=["libvirt sysinfo"]
    )
    capacity: CapacityDocument
    version: str = Field(description="The enabler's version.")
    libvirt: LibvirtDocument


class LibvirtDocument(_Document):
    """The state of the connection to libvirt."""

    uri: str
    connected: bool
    detail: str | None = Field(description="What is wrong, when it is not connected.")
    confirmed_at: Timestamp | None = Field(description="When libvirt last answered.")


class AllocationDocument(_Document):
    """What is allotted to a VM."""

    generation_id: str | None
    vcpus: int
    memory_bytes: int


class VmSummary(_Document):
    """One VM in the admin's list."""

    uuid: str
    name: str | None
    place: Place
    residency: ResidencyDocument | None = Field(description="Null unless the VM is resident.")
    migration: MigrationDocument
    allocation: AllocationDocument | None = Field(
        description="As it was last seen; null if it was not."
    )
    known_by: tuple[str, ...] = Field(
        description="The ways by which the VM was known when it last came to ask: `vsock`, "
        "`token`, `address`. Empty if it has not asked this enabler.",
        examples=[["vsock"]],
    )


class VmListDocument(_Document):
    """The VMs this host knows."""

    vms: list[VmSummary]


class EventVmDocument(_Document):
    """Whom an event is about."""

    uuid: str
    name: str


class EventDocument(_Document):
    """One event of `GET /v1/events`. What does not apply to its kind is left out."""

    kind: EventKind
    at: Timestamp = Field(description="When libvirt was seen to say so.")
    vm: EventVmDocument | None = None
    residency: ResidencyDocument | None = Field(
        default=None, description="The stay that begins, goes on or ends."
    )
    migration: MigrationDocument | None = None
    allocation: AllocationDocument | None = None
    capacity: CapacityDocument | None = Field(
        default=None, description="Of the host, now: in `state` and `capacity-changed`."
    )
    vms: list[VmSummary] | None = Field(
        default=None, description="Every VM that is known here: in `state`."
    )
    detail: str | None = Field(
        default=None, description="For people: why libvirt was lost, why a reader must begin anew."
    )

    def line(self) -> str:
        """Return it as one line of JSON."""
        return self.model_dump_json(exclude_defaults=True)


class KeptEventDocument(EventDocument):
    """An event that has happened, with the ID by which a stream goes on after it."""

    id: str = Field(examples=["5f0c11d2-7"])


class EventListDocument(_Document):
    """The last events of this host, the oldest of them first."""

    last_event_id: str = Field(
        description="For `Last-Event-ID` of `GET /v1/events`: what follows is what came since. "
        "There is one also where nothing has happened yet.",
        examples=["5f0c11d2-7"],
    )
    events: list[KeptEventDocument]


class HealthDocument(_Document):
    """The enabler runs, or is ready."""

    status: Literal["ok"] = "ok"


class ProblemDocument(BaseModel):
    """A problem (RFC 9457)."""

    type: str = Field(
        description="A reference to the problem's description, served by the enabler itself.",
        examples=["/problems/vm-arriving"],
    )
    title: str
    status: int
    detail: str


HostDocument.model_rebuild()
