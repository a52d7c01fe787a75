"""The guest client: reads which real machine this VM runs on, and guards scans against its change.

For programs: :func:`read_identity`, :func:`watch`, :func:`guarding`, :func:`guarded` and
:func:`guarded_modules` (see ``library.py``), the verdicts they give, and the errors they raise.
Importing this package alone loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guest_client.channel import Channel as Channel
    from guest_client.channel import Read as Read
    from guest_client.errors import ConfigurationError as ConfigurationError
    from guest_client.errors import GuestClientError as GuestClientError
    from guest_client.errors import IdentityInvalid as IdentityInvalid
    from guest_client.errors import InconsistentScan as InconsistentScan
    from guest_client.errors import NoAnswer as NoAnswer
    from guest_client.errors import Refused as Refused
    from guest_client.errors import UntrustedAnswer as UntrustedAnswer
    from guest_client.errors import Unverified as Unverified
    from guest_client.guard import Guard as Guard
    from guest_client.guard import Outcome as Outcome
    from guest_client.guard import Reason as Reason
    from guest_client.guard import Verdict as Verdict
    from guest_client.guard import judge as judge
    from guest_client.identity import Identity as Identity
    from guest_client.library import Guarded as Guarded
    from guest_client.library import GuardedBlock as GuardedBlock
    from guest_client.library import GuardedModules as GuardedModules
    from guest_client.library import guarded as guarded
    from guest_client.library import guarded_modules as guarded_modules
    from guest_client.library import guarding as guarding
    from guest_client.library import host_independent as host_independent
    from guest_client.library import read_identity as read_identity
    from guest_client.library import watch as watch
    from guest_client.modules import Again as Again

_HOMES = {
    "channel": ("Channel", "Read"),
    "errors": (
        "ConfigurationError",
        "GuestClientError",
        "IdentityInvalid",
        "InconsistentScan",
        "NoAnswer",
        "Refused",
        "UntrustedAnswer",
        "Unverified",
    ),
    "guard": ("Guard", "Outcome", "Reason", "Verdict", "judge"),
    "identity": ("Identity",),
    "library": (
        "Guarded",
        "GuardedBlock",
        "GuardedModules",
        "guarded",
        "guarded_modules",
        "guarding",
        "host_independent",
        "read_identity",
        "watch",
    ),
    "modules": ("Again",),
}

__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
