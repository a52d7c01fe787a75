"""Identity documents for the tests: two hosts, one VM, and any member changed."""

from __future__ import annotations

import copy
import json
from typing import Any

from guest_client.identity import Identity, parse_identity

HOST_A = "sha256:" + "a" * 64
HOST_B = "sha256:" + "b" * 64

_DOCUMENT: dict[str, Any] = {
    "component_id": HOST_A,
    "machine": {
        "manufacturer": "IBM",
        "type": "9040",
        "model": "MR9",
        "serial_number": "78AAAAA",
        "uuid": "aaaaaaaa-0000-4000-8000-000000000001",
    },
    "capacity": {
        "cpu_model": "POWER10",
        "sockets": 2,
        "cores_per_socket": 12,
        "threads_per_core": 8,
        "memory_bytes": 1 << 40,
    },
    "vm": {
        "uuid": "11111111-0000-4000-8000-000000000001",
        "name": "db01",
        "generation_id": "23542354-0000-4000-8000-000000000001",
        "vcpus": 4,
        "memory_bytes": 8 << 30,
    },
    "residency": {
        "id": "stay-1",
        "since": "2026-11-23T02:37:29.304Z",
        "arrived_by": "start",
    },
    "migration": {"state": "none"},
    "observed_at": "2026-11-23T02:40:00.120Z",
}

MIGRATED: dict[str, Any] = {
    "component_id": HOST_B,
    "machine.serial_number": "78BBBBB",
    "residency.id": "stay-2",
    "residency.arrived_by": "migration",
}
"""What changes when the VM goes from host A to host B."""


def document(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The document of the VM on host A, with members (by dotted name) set to other values."""
    made = copy.deepcopy(_DOCUMENT)
    for name, value in (changes or {}).items():
        *path, last = name.split(".")
        place = made
        for part in path:
            place = place[part]
        place[last] = value
    return made


def encoded(changes: dict[str, Any] | None = None) -> bytes:
    return json.dumps(document(changes)).encode()


def identity(changes: dict[str, Any] | None = None) -> Identity:
    return parse_identity(encoded(changes))
