"""Why something is not proven: a short word for programs, a sentence for people."""

from __future__ import annotations


class Refusal(Exception):
    """What was to be proven is not. ``reason`` is the short word."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
