"""Which client this is."""

from __future__ import annotations


def client_version() -> str:
    """Give the version of the installed distribution; ``unknown`` when it is run uninstalled."""
    # Finding it means reading the installed metadata: not a price for every start.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vm-enabler")
    except PackageNotFoundError:
        return "unknown"
