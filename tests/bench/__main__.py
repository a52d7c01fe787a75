"""The one entry point: ``python -m tests.bench [NAME…]``."""

from __future__ import annotations

import argparse
import importlib

from tests.bench.figures import Figure, say, table, write

BENCHES = ("server", "scale", "idle", "neighbour", "client", "waits", "watch", "fleet_load")
"""Modules of this package, in the order in which they are run."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    names = parser.parse_args().names or BENCHES
    unknown = set(names) - set(BENCHES)
    if unknown:
        parser.error(f"no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    figures: list[Figure] = []
    for name in names:
        say(f"[{name}]")
        figures += importlib.import_module(f"tests.bench.{name}").run()
        write(figures)
    print(table(figures))


if __name__ == "__main__":
    main()
