"""Words from outside, made fit to be shown on a terminal or put into an environment. Pure."""

from __future__ import annotations


def printable(text: str, limit: int = 300) -> str:
    """Escape what is not printable (terminal codes, line breaks), and cut what is too long."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def size_in_words(size: int) -> str:
    """Say a size in bytes as people do."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
