"""``enabler ui``: listens, and serves until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from enabler import listen
from enabler.errors import ConfigurationError
from enabler.http_server import Server, configured
from enabler.systemd import Notifier
from enabler.ui.app import Ui
from enabler.ui.source import Source

log = logging.getLogger(__name__)

_MODE = 0o660


def address(text: str, *, expose: bool = False) -> listen.HttpAddress | listen.UnixAddress:
    """Return where the page shall be. ``expose``: also where others than this host reach it.

    Raises `ConfigurationError`.
    """
    plain = text if ":/" in text else f"http://{text}"
    found = listen.parse(plain)
    if isinstance(found, listen.UnixAddress):
        return found
    if not isinstance(found, listen.HttpAddress) or found.secure:
        raise ConfigurationError(
            f"--listen {text!r}: the page is at ADDRESS:PORT or unix:/PATH; for TLS put a reverse "
            "proxy in front of it"
        )
    if not ip_address(found.host).is_loopback and not expose:
        raise ConfigurationError(
            f"--listen {text!r} is not loopback, and the page asks nobody who they are; from a "
            "workstation use 'ssh -L 8780:127.0.0.1:8780 HOST', or say --expose if whoever "
            "reaches that address may see this host and its VMs"
        )
    return found


def serve(
    at: listen.HttpAddress | listen.UnixAddress, admin: Path, hosts: Iterable[str] = ()
) -> None:
    """Serve the page until SIGINT or SIGTERM. Raises `ListenError`."""
    asyncio.run(_serve(at, admin, hosts))


async def _serve(
    at: listen.HttpAddress | listen.UnixAddress, admin: Path, hosts: Iterable[str]
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    bound = listen.bind(at, _MODE, None)
    source = Source(admin)
    ui = Ui(source)
    names = list(hosts)
    if isinstance(at, listen.HttpAddress):
        names.append(f"[{at.host}]" if ":" in at.host else at.host)
        if not ip_address(at.host).is_loopback:
            log.warning("%s is not loopback: whoever reaches it sees this host and its VMs", at)
    server = Server(configured(ui.app(names)))
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([bound]))
            log.info("the page is at %s", at)
            Notifier().tell(READY="1", STATUS=f"the page is at {at}")
            await stop.wait()
            ui.end()
            server.end()
    finally:
        await source.close()
        bound.close()
        if isinstance(at, listen.UnixAddress):
            at.path.unlink(missing_ok=True)
