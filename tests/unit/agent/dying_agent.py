"""An agent that dies, as by kill -9, at a step of the tester's choice. No test: a program for one.

    python -m tests.unit.agent.dying_agent STEP before:1 agent run ...

Every change of the state goes through ``Database.commit``. This one counts those with the label
STEP, and dies just before, or just after, the one of that number is on disk. With ``list`` and a
file's name it lives, and writes down the labels in order.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from guest_client import config
from guest_client.agent.commands import run
from guest_client.agent.state import State
from guest_client.cli import build_parser


class DyingState(State):
    """The state, but for what happens around a commit."""

    step, point = sys.argv[1:3]
    seen = 0

    def commit(self, label: str) -> None:
        if self.step == "list":
            super().commit(label)
            with Path(self.point).open("a") as stream:
                stream.write(f"{label}\n")
            return
        DyingState.seen += label == self.step
        when, number = self.point.split(":")
        now = label == self.step and self.seen == int(number)
        if now and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit(label)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    options = build_parser().parse_args(sys.argv[3:])
    sys.exit(run(options, config.load({}), DyingState))
