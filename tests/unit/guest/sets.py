"""Sets of outputs for the tests of publishing: each file says of which set it is."""

from __future__ import annotations

import json
from pathlib import Path

from guest_client.folder import MANIFEST, MANIFEST_VERSION, Part

NAMES = ("one.out", "two.out", "three.out")


def fill(part: Part, said: str, names: tuple[str, ...] = NAMES) -> bytes:
    """Write a set into a part; gives its manifest."""
    for name in names:
        spool = part.spool(name)
        spool.stream.write(said.encode())
        spool.stream.close()
    modules = [{"name": name, "output": name} for name in names]
    document = {"manifest_version": MANIFEST_VERSION, "said": said, "modules": modules}
    return json.dumps(document).encode()


def what_it_says(folder: Path, names: tuple[str, ...] = NAMES) -> str:
    """Read a set, which must be whole and of one piece."""
    said = json.loads((folder / MANIFEST).read_bytes())["said"]
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *names}
    assert {(folder / name).read_text() for name in names} == {said}
    return str(said)
