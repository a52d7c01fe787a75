"""What the publisher counts, for whoever shows it (``GET /metrics``). Read from any thread."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Totals since the start, and how it stands now."""

    connected: bool = False
    published: int = 0
    """Events that the stream has."""
    duplicates: int = 0
    """Of them, those it had already: sent again, as no answer had come."""
    failed: int = 0
    """Attempts to publish or to write that got no answer, or an error."""
    refused: int = 0
    """Attempts that the servers refused: this host may not write there."""
    claims: int = 0
    """Events written to the bucket of the VMs."""
    outdated: int = 0
    """Events that were not, as the bucket had a later stay's."""
    conflicts: int = 0
    """Writes to the bucket that somebody else's came before, and that were decided anew."""
    unsigned: int = 0
    """Events that went out without a signature, for want of a key."""
    lost: int = 0
    """Events that were given up, as the spool was full."""
    waiting: int = 0
    """Events in the spool."""
    waiting_bytes: int = 0
    most_bytes: int = 0
    """How many the spool holds; then its oldest events make room."""
    oldest: float | None = None
    """When the oldest event in the spool happened: seconds since 1970. None: there is none."""

    def lag(self, now: float) -> float:
        """Return for how many seconds the oldest event has waited; 0 if none does."""
        return 0.0 if self.oldest is None else max(0.0, now - self.oldest)
