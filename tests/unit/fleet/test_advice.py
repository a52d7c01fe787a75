"""Whatever the audit can find comes with what to do, on the spot and in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from enabler.fleet.advice import ADVICE

ROOT = Path(__file__).parents[3]
FINDERS = ("audit.py", "exported.py", "keyring.py")
_GIVEN = r'(?:Finding|_find|_finding|NotSigned)\(\s*"([a-z-]+)"'
_KINDS = {"refused", "events-lost"}
"""Events that are findings."""


def test_every_reason_has_its_advice_and_no_other() -> None:
    code = "".join((ROOT / "enabler" / "fleet" / file).read_text() for file in FINDERS)
    assert set(re.findall(_GIVEN, code)) | _KINDS == set(ADVICE)


def test_every_reason_is_documented() -> None:
    page = (ROOT / "deploy" / "fleet.md").read_text().partition("## What the audit finds")[2]
    heads = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([a-z-]+)`", "".join(heads))) == set(ADVICE)
