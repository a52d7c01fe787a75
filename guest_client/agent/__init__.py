"""The agent ID regeneration process: what follows from a migration, and nothing of it lost.

    watch.py ─▶ observe.py ─┐                            ┌─▶ programs.py (runs)
    spool.py (the scans') ──┼─▶ state.py ─▶ steps.py ────┤
    `agent trigger` ────────┘   (SQLite)     (pure)      └─▶ event.py ─▶ outbox.py (HTTP)

A trigger is in the state before anything is done about it; ``steps.py`` says what is to be done
next from the state alone; ``loop.py`` does it, and writes down that it was done before it asks
again. So the process can be killed anywhere: the next one asks the same question of the same state.

``deploy/agent.md`` is the page for users.
"""
