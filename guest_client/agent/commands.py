"""The commands ``guest-client agent …`` and ``guest-client agent-id …``: what each does."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guest_client.agent import agent_id, views
from guest_client.agent.control import ask
from guest_client.agent.facts import KEY_VARIABLE
from guest_client.agent.lock import AgentLock, holder
from guest_client.agent.model import Known, NewTrigger
from guest_client.agent.observe import observe
from guest_client.agent.phases import MANUAL, Phase
from guest_client.agent.schema import FILE as STATE_FILE
from guest_client.agent.settings import Program
from guest_client.agent.state import State
from guest_client.channel import Channel
from guest_client.config import Settings
from guest_client.console import say
from guest_client.errors import AgentNotRunning, UsageError
from guest_client.identity import Identity
from guest_client.process import find_program
from guest_client.text import printable
from guest_client.times import rfc3339, utc_now

NOT_RUNNING = 3
"""Exit code of `agent status` when none runs: what `systemctl status` and LSB scripts say."""
HAND = "hand"
_LAST_BREATH = 5.0
"""Seconds that an agent may take to be gone when it has done all that it does."""
_LONGEST_LOOK = 5.0
"""Seconds that a trigger by hand waits for the present identity."""


def run(
    options: argparse.Namespace,
    settings: Settings,
    open_state: Callable[[Path], State] = State,
) -> int:
    """Live as the agent until told to stop."""
    from guest_client.agent.loop import Agent, Orders

    orders = Orders(
        state_dir=settings.state_dir,
        enabler=settings.enabler,
        deadline=settings.deadline,
        interval=settings.watch_interval,
        programs=_programs(options.register, settings),
        destinations=settings.destination,
        agent_id_file=_agent_id_file(settings),
        watch=options.watch,
        once=options.once,
    )
    if settings.program is None:
        agent_id.show(orders.agent_id_file)  # so that there is an old one when it is regenerated
    with (
        AgentLock(settings.state_dir, rfc3339(utc_now())),
        open_state(settings.state_dir) as state,
    ):

        async def live() -> int:
            return await Agent(orders, state, say).run()

        return asyncio.run(live())


def stop(options: argparse.Namespace, settings: Settings) -> int:
    """Tell the agent to end, and wait until it has."""
    try:
        ask(settings.state_dir, "stop", to_the_end=True)
    except AgentNotRunning:
        if holder(settings.state_dir) is not None:
            raise
        say(f"no agent runs on {settings.state_dir}")
    end = time.monotonic() + _LAST_BREATH
    while holder(settings.state_dir) is not None and time.monotonic() < end:
        time.sleep(0.02)  # it has hung up, and is about to be gone
    return 0


def register(options: argparse.Namespace, settings: Settings) -> int:
    """Register a program, for good."""
    if not options.command:
        raise UsageError(
            "put the program after --, as in `guest-client agent register NAME -- /opt/meter/reset`"
        )
    if options.user is not None:
        try:
            pwd.getpwnam(options.user)
        except KeyError:
            raise UsageError(f"--user: there is no user {printable(options.user)} here") from None
    # It will be run from another folder, and with another PATH: say now what is meant.
    command = (str(Path(find_program(options.command[0], "program")).absolute()),)
    program = Program(
        name=options.name,
        command=(*command, *options.command[1:]),
        phases=options.on,
        timeout=options.timeout,
        tries=options.tries,
        user=options.user,
    )
    with State(settings.state_dir) as state:
        replaced = state.registry.register(program)
    _wake(settings.state_dir)
    how = "registered anew" if replaced else "registered"
    say(f"{program.name} is {how} for: {', '.join(program.phases)}")
    return 0


def deregister(options: argparse.Namespace, settings: Settings) -> int:
    """Deregister a program, and call off what it was still to be run for."""
    with _existing(settings.state_dir) as state:
        found = state.registry.deregister(options.name)
        names = ", ".join(r.program.name for r in state.registry.all())
    if found is None:
        raise UsageError(f"no {options.name} is registered; registered are: {names or 'none'}")
    registration, cancelled = found
    _wake(settings.state_dir)
    say(
        f"{options.name} is deregistered" + (f"; {cancelled} due runs are off" if cancelled else "")
    )
    if registration.owner == "run":
        say("it is the configuration's, or built in: the next agent will register it again")
    return 0


def list_programs(options: argparse.Namespace, settings: Settings) -> int:
    """Print the registered programs."""
    with _existing(settings.state_dir) as state:
        registrations = state.registry.all()
    if options.json:
        _print_json([views.registration(r) for r in registrations])
    else:
        print(views.registrations_text(registrations))
    return 0


def status(options: argparse.Namespace, settings: Settings) -> int:
    """Print how things stand; 0 if an agent runs, 3 if none does."""
    held = holder(settings.state_dir)
    answer: dict[str, Any] = {}
    if held is not None:
        answer = {**held, **ask(settings.state_dir, "status")}
    with _existing(settings.state_dir) as state:
        found = views.status(
            settings.state_dir, held is not None, answer, state, _agent_id_file(settings)
        )
    if options.json:
        _print_json(found)
    else:
        print(views.status_text(found))
    return 0 if held is not None else NOT_RUNNING


def trigger(options: argparse.Namespace, settings: Settings) -> int:
    """Record a trigger by hand; or what has really happened, if the agent does not know it yet."""
    present = _present(settings)
    with State(settings.state_dir) as state:
        known = state.known()
        key = _record(state, known, present, options)
    _wake(settings.state_dir)
    recorded = key is not None
    if options.json:
        _print_json({"recorded": recorded, "key": key or options.key})
    if holder(settings.state_dir) is None:
        say("no agent runs: it will be acted on when one does")
    return 0


def _record(
    state: State, known: Known | None, present: Identity | None, options: argparse.Namespace
) -> str | None:
    """Record what there is to record; gives its key, ``None`` if it was there already."""
    if present is not None and known is not None and options.phase is None:
        standing, news = observe(known, present, utc_now(), HAND)
        if any(trigger.phase.told for trigger in news):
            new = state.observed(standing, news)
            for found in new:
                say(f"recorded: {found.sentence}")
            return new[0].key if new else None
    before = None if known is None else known.identity.as_dict()
    wanted = NewTrigger(
        key=options.key or secrets.token_hex(16),
        phase=options.phase or Phase.MIGRATED,
        reason=MANUAL,
        changes=(),
        sentence=printable(options.reason or "triggered by hand"),
        detected_at=rfc3339(utc_now()),
        source=HAND,
        before=before,
        after=before if present is None else present.as_dict(),
    )
    if not state.record(wanted):
        say(f"a trigger with the key {wanted.key} is recorded already: nothing is done")
        return None
    say(f"recorded: {wanted.sentence} ({wanted.phase})")
    return wanted.key


def history(options: argparse.Namespace, settings: Settings) -> int:
    """Print the latest triggers and what became of them."""
    with _existing(settings.state_dir) as state:
        entries = [views.entry(state, found) for found in state.latest(options.limit)]
    if options.json:
        _print_json(entries)
    else:
        print(views.history_text(entries))
    return 0


def outbox(options: argparse.Namespace, settings: Settings) -> int:
    """Print what waits to be delivered, or do something about it."""
    with _existing(settings.state_dir) as state:
        if options.discard is not None:
            if not (queues := state.post.discard(options.discard)):
                raise UsageError(f"no event {options.discard} waits; `agent outbox` lists them")
            say(f"event {options.discard} is discarded, for {queues} destinations")
        if options.retry:
            say(f"{state.post.retry()} deliveries are due now")
        waiting = state.post.events()
        roads = state.post.roads()
    if options.discard is not None or options.retry:
        _wake(settings.state_dir)
        return 0
    if options.json:
        _print_json(waiting)
    else:
        print(views.outbox_text(waiting, roads))
    return 0


def show_id(options: argparse.Namespace, settings: Callable[[], Settings]) -> int:
    """Print the agent ID."""
    return _print_id(agent_id.show(_id_file(options, settings)), options)


def regenerate_id(options: argparse.Namespace, settings: Callable[[], Settings]) -> int:
    """Make a new agent ID and print it."""
    key = os.environ.get(KEY_VARIABLE) or None
    return _print_id(agent_id.regenerate(_id_file(options, settings), key), options)


def _id_file(options: argparse.Namespace, settings: Callable[[], Settings]) -> Path:
    file: Path | None = options.file
    return _agent_id_file(settings()) if file is None else file.absolute()


def _print_id(found: agent_id.AgentId, options: argparse.Namespace) -> int:
    if options.json:
        _print_json(views.agent_id(found))
    else:
        print(found.id)
    return 0


def _programs(extra: Sequence[Program], settings: Settings) -> tuple[Program, ...]:
    """Give what this agent registers: the configuration's (or the built-in) and its own flags'."""
    configured = settings.program
    if configured is None:
        configured = (built_in_program(_agent_id_file(settings)),)
    names = [program.name for program in (*configured, *extra)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--register: there is a {twice[0]} already; choose another name")
    return (*configured, *extra)


def built_in_program(file: Path) -> Program:
    """Give the program that keeps the agent ID when the configuration has none."""
    return Program(
        name="agent-id",
        command=(*_ourselves(), "agent-id", "regenerate", "--file", str(file)),
        phases=(Phase.MIGRATED, Phase.CLONED, Phase.REVERTED),
        timeout=60.0,
    )


def _ourselves() -> tuple[str, ...]:
    """Give the command that runs this very client again."""
    # A zipapp, or a folder that a package brings, is no place that Python looks for modules in.
    home = Path(__file__).parents[2]
    if home.is_file() or (home / "__main__.py").is_file():
        return sys.executable, str(home)
    return sys.executable, "-m", "guest_client"


def _agent_id_file(settings: Settings) -> Path:
    return settings.agent_id_file or settings.state_dir / agent_id.FILE


def _present(settings: Settings) -> Identity | None:
    with Channel(settings.enabler) as channel:
        return channel.read(min(settings.deadline, _LONGEST_LOOK)).identity


def _existing(state_dir: Path) -> State:
    if not (state_dir / STATE_FILE).exists():
        raise AgentNotRunning(
            f"there is no agent's state in {state_dir} yet; `guest-client agent run` or `agent"
            " register` makes it, --state-dir names another folder"
        )
    return State(state_dir)


def _wake(state_dir: Path) -> None:
    """Wake the agent, if one runs; one that doesn't hear it looks by itself soon."""
    try:
        ask(state_dir, "wake")
    except AgentNotRunning as error:
        if holder(state_dir) is not None:
            say(f"{error}; it will see this by itself within a minute")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
