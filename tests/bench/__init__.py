"""What the software costs, each figure against a baseline in the same run. ``make bench``.

    python -m tests.bench              all of it (takes some minutes; needs root and wrk)
    python -m tests.bench server idle  these alone

To add one: a module in this folder with ``def run() -> list[Figure]`` (``figures.py``), its name in
``__main__.BENCHES``. Its baseline runs in the same call, by turns with what is measured, several
times; the medians count. It prints nothing but progress (`figures.say`) and leaves nothing behind.
"""
