"""Write openapi/openapi.yaml (``make openapi``).

The routes are the enabler's, the webhooks what the guest's agent sends: the two parts that never
import each other meet in their contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from enabler.api import openapi
from guest_client.agent.event_schema import webhooks

TARGET = Path(__file__).with_name("openapi.yaml")

_HEAD = "# Made from the app by `make openapi`; a test keeps it equal. Do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """Writes everything out: references within YAML are not for readers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def document() -> dict[str, Any]:
    """Return the whole contract."""
    return openapi.document() | {"webhooks": webhooks()}


def render() -> str:
    """Return the document as YAML."""
    return _HEAD + yaml.dump(
        document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )


if __name__ == "__main__":
    TARGET.write_text(render())
