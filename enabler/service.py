"""``enabler serve``: everything put together, started, and ended in good order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import ssl
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from enabler import capacity, listen, tls
from enabler.api import admin, guest
from enabler.api.connection import Door, protocol
from enabler.api.metrics import MetricsApp
from enabler.api.state import State
from enabler.api.waiting import Holding
from enabler.api.watching import Listener
from enabler.attestation import Attestor
from enabler.callers import Callers, Way
from enabler.callers.address import ByAddress
from enabler.callers.neighbours import KernelNeighbours
from enabler.callers.token import ByToken
from enabler.callers.vsock import ByVsock
from enabler.config import Settings
from enabler.documents import CapacityDocument, HostDocument, LibvirtDocument, MachineDocument
from enabler.domains import Record
from enabler.errors import ConfigurationError, HypervisorError, SigningUnavailable
from enabler.events import Event, Lifecycle, Observation
from enabler.history import Archive
from enabler.http_server import Server, configured
from enabler.hypervisor import Hypervisor, clock
from enabler.identity import Identified, identify
from enabler.inventory import Inventory
from enabler.keys import Keys
from enabler.libvirt_host import HostFacts
from enabler.mailbox import Mailbox
from enabler.platforms import read_claims
from enabler.runs import Run, Runs, StatusFile
from enabler.systemd import Notifier, handed_over
from enabler.tally import Tally

if TYPE_CHECKING:
    from enabler.fleet.publisher import Publisher

log = logging.getLogger(__name__)

_OPEN_WITHIN = 20.0
"""Seconds that libvirt has for its first answer; its QEMU driver looks at every emulator then."""


def establish(settings: Settings, host: HostFacts) -> Identified:
    """Return which machine this is. Raises `enabler.errors.IdentityError`."""
    claims = read_claims(host.sysinfo, host.sysinfo_error)
    return identify(claims, settings.machine.model_dump(exclude_none=True))


def machine_document(identified: Identified) -> MachineDocument:
    """Return the machine identity as the contract has it."""
    machine = identified.machine
    return MachineDocument(
        manufacturer=machine.manufacturer,
        type=machine.type,
        model=machine.model,
        serial_number=machine.serial_number,
        uuid=machine.uuid,
    )


def capacity_document(host: HostFacts) -> CapacityDocument:
    """Return the host's capacity as the contract has it."""
    found = capacity.measure(host.capabilities, host.nodeinfo, host.sysinfo, host.cpuinfo)
    return CapacityDocument(
        cpu_model=found.cpu_model,
        sockets=found.sockets,
        cores_per_socket=found.cores_per_socket,
        threads_per_core=found.threads_per_core,
        memory_bytes=found.memory_bytes,
    )


class Service:
    """The enabler as a running service.

    It is the hypervisor's listener, and hands what it hears to the inventory.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._notifier = Notifier()
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[tuple[HostFacts, frozenset[str]]] = self._loop.create_future()
        self._hypervisor = Hypervisor(
            settings.libvirt_uri,
            self,
            Mailbox(self._loop).post,
            Runs.of_uri(settings.libvirt_uri),
        )
        self._keys = Keys(settings.keys_directory, settings.signing_key)
        self._attestor: Attestor | None = None
        self._archive: Archive | None = None
        self._publisher: Publisher | None = None
        self._inventory: Inventory | None = None
        self._identified: Identified | None = None
        self._door: Door | None = None
        self._tally = Tally()

    def reload(self) -> None:
        """Read the certificate anew; what can't be used is logged, and the old one stays."""
        if self._door is None or self._door.tls is None:
            log.info("nothing to read anew: no certificate is in use")
            return
        try:
            self._door.tls = self._tls_context()
        except ConfigurationError as error:
            log.error("%s; the old certificate stays in use", error)
        else:
            log.info("new connections use %s as it is now", self._settings.tls_certificate)

    def _tls_context(self) -> ssl.SSLContext | None:
        if not any(
            isinstance(each, listen.HttpAddress) and each.secure
            for each in self._settings.addresses
        ):
            return None
        return tls.context(self._settings.tls_certificate, self._settings.tls_key)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``. Raises `enabler.errors.EnablerError` if it can't begin."""
        # What needs nobody's answer comes first: a wrong address is told at once.
        with contextlib.ExitStack() as stack:
            tls_context = self._tls_context()
            guests, admins = self._bind(stack)
            scraped = self._bind_metrics(stack)
            self._hypervisor.start()
            stack.callback(self._hypervisor.stop)
            inventory = await self._begin(stop)
            if inventory is None:
                return
            if self._publisher is not None:
                self._publisher.start()
                stack.callback(self._publisher.stop)
            with KernelNeighbours() as neighbours:
                callers = self._callers(inventory, neighbours)
                interfaces = {
                    _key(address): neighbours.interface_of(address.host, address.zone)
                    for address, _ in guests
                    if isinstance(address, listen.HttpAddress)
                }
                assert self._attestor is not None
                assert self._archive is not None
                secure = {
                    (_key(each), each.port)
                    for each, _ in guests
                    if isinstance(each, listen.HttpAddress) and each.secure
                }
                door = self._door = Door(
                    self._settings.limits, interfaces, secure, tls_context, self._tally
                )
                everything = State(
                    inventory,
                    callers,
                    door,
                    self._host_document,
                    self._attestor,
                    self._archive,
                    tally=self._tally,
                    fleet=None if self._publisher is None else self._publisher.counters,
                )
                everything.figures.state = everything
                guests_app = guest.app(everything, self._settings.allowed_hosts)
                servers = [
                    Server(
                        configured(
                            Listener("guest", guests_app, self._tally),
                            http=protocol(door, guests_app.ready),
                            timeout_keep_alive=self._settings.limits.idle_seconds,
                        )
                    ),
                    Server(
                        configured(Listener("admin", Holding(admin.app(everything)), self._tally))
                    ),
                ]
                sockets = [[each for _, each in guests], [each for _, each in admins]]
                if scraped is not None:
                    app = MetricsApp(everything.figures)
                    servers.append(Server(configured(Listener("metrics", app, self._tally))))
                    sockets.append([scraped])
                await self._serve(servers, sockets, stop)

    def _callers(self, inventory: Inventory, neighbours: KernelNeighbours) -> Callers:
        ways: list[Way] = [
            ByVsock(inventory),
            ByToken(inventory),
            ByAddress(inventory, neighbours),
        ]
        by_name = {way.name: way for way in ways}
        ways = [by_name[name] for name in self._settings.callers]
        return Callers(ways, lambda: inventory.callers_version, inventory.recognised)

    def _bind(
        self, stack: contextlib.ExitStack
    ) -> tuple[
        list[tuple[listen.HttpAddress | listen.VsockAddress, socket.socket]],
        list[tuple[listen.UnixAddress, socket.socket]],
    ]:
        guests: list[tuple[listen.HttpAddress | listen.VsockAddress, socket.socket]] = []
        admins: list[tuple[listen.UnixAddress, socket.socket]] = []
        mode = int(self._settings.admin_mode, 8)
        given = handed_over(self._settings.addresses)
        for address in self._settings.addresses:
            bound = given.get(address) or listen.bind(address, mode, self._settings.admin_group)
            stack.callback(bound.close)
            if isinstance(address, listen.UnixAddress):
                if address not in given:  # else it is systemd's, and stays
                    stack.callback(_remove, address.path)
                admins.append((address, bound))
            else:
                guests.append((address, bound))
        return guests, admins

    def _bind_metrics(self, stack: contextlib.ExitStack) -> socket.socket | None:
        address = self._settings.metrics_address
        if address is None:
            return None
        bound = listen.bind(address, 0, None)
        stack.callback(bound.close)
        return bound

    async def _begin(self, stop: asyncio.Event) -> Inventory | None:
        stopped = asyncio.ensure_future(stop.wait())
        opened = asyncio.ensure_future(self._opened)
        stopped.add_done_callback(lambda _: opened.cancel())
        try:
            async with asyncio.timeout(_OPEN_WITHIN):
                host, running = await opened
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
            return None
        except TimeoutError:
            raise HypervisorError(
                f"libvirt at {self._settings.libvirt_uri} did not answer "
                f"within {_OPEN_WITHIN:g} s; is libvirtd hung? See 'systemctl status libvirtd'"
            ) from None
        finally:
            stopped.cancel()
        self._identified = establish(self._settings, host)
        machine = self._identified.machine
        document = machine_document(self._identified)
        self._attestor = self._make_attestor(machine.component_id)
        self._archive = Archive(machine.component_id, document.model_dump(), self._attestor.sign)
        self._publisher = self._make_publisher(host, document, machine.component_id)
        inventory = Inventory(
            machine.component_id,
            document,
            capacity_document(host),
            self._hypervisor,
            clock,
            archive=self._archive,
            witness=self._publisher,
        )
        self._inventory = inventory
        inventory.connected(running)
        # What is there now stays: without this, each full collection looks at all of it, and
        # requests wait tens of milliseconds meanwhile.
        gc.collect()
        gc.freeze()
        return inventory

    def _make_publisher(
        self, host: HostFacts, machine: MachineDocument, component_id: str
    ) -> Publisher | None:
        if not self._settings.fleet.servers:
            return None
        from enabler.fleet.publisher import Host, Publisher

        # Keys are for one thread, and it has one of its own.
        keys = Keys(self._settings.keys_directory, self._settings.signing_key)
        keys.component_id = component_id
        word = Host(
            uuid=self._settings.fleet.host or host.uuid or machine.uuid or _made_up(component_id),
            name=socket.gethostname(),
            component_id=component_id,
            machine=machine.model_dump(),
            capacity=capacity_document(host).model_dump(),
            version=version("vm-enabler"),
        )
        log.info("this host is %s in the fleet", word.uuid)
        return Publisher(self._settings.fleet, word, keys)

    async def _tell_what_is_here(self) -> None:
        """Tell the fleet once that all VMs have been looked at: what is not here has left."""
        assert self._inventory is not None
        assert self._publisher is not None
        while True:
            with contextlib.suppress(HypervisorError):
                await self._inventory.ready()
                break
            await asyncio.sleep(1)
        stays = {
            (each.uuid, each.residency.id)
            for each in self._inventory.summaries()
            if each.residency is not None
        }
        self._publisher.settled(frozenset(stays))

    def _make_attestor(self, component_id: str) -> Attestor:
        self._keys.component_id = component_id
        good_for = timedelta(days=self._settings.attestation_days)
        attestor = Attestor(self._keys, component_id, good_for)
        # Identity needs no key: without one, attestations are refused until there is, and no more.
        with contextlib.suppress(SigningUnavailable):
            attestor.public_keys()
        return attestor

    async def _serve(
        self, servers: list[Server], sockets: list[list[socket.socket]], stop: asyncio.Event
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            for server, bound in zip(servers, sockets, strict=True):
                tasks.create_task(server.serve(bound))
            for address in self._settings.addresses:
                log.info("listening on %s", address)
            if self._settings.metrics is not None:
                log.info("metrics are at http://%s/metrics", self._settings.metrics)
            assert self._identified is not None
            machine = self._identified.machine
            log.info(
                "this machine is %s (%s)", machine.component_id, machine.canonical_json.decode()
            )
            self._notifier.tell(READY="1", STATUS=f"this machine is {machine.component_id}")
            beside = [tasks.create_task(self._give_signs_of_life())]
            if self._publisher is not None:
                beside.append(tasks.create_task(self._tell_what_is_here()))
            await stop.wait()
            self._notifier.tell(STOPPING="1")
            for task in beside:
                task.cancel()
            log.info("ending")
            assert self._inventory is not None
            self._inventory.feed.close()
            for server in servers:
                server.end()

    async def _give_signs_of_life(self) -> None:
        """Tell systemd's watchdog, for as long as this loop and libvirt's threads go round.

        A libvirtd that hangs is no reason to be restarted: what guests are told then is true.
        """
        while self._notifier.watchdog is not None:
            self._hypervisor.round_trip(self._notifier.alive)
            await asyncio.sleep(self._notifier.watchdog / 4)

    def _host_document(self) -> HostDocument:
        inventory, identified = self._inventory, self._identified
        assert inventory is not None
        assert identified is not None
        failure = inventory.failure
        return HostDocument(
            component_id=inventory.component_id,
            machine=inventory.machine,
            machine_source=", ".join([identified.source, *_given(identified)]),
            capacity=inventory.capacity,
            version=version("vm-enabler"),
            libvirt=LibvirtDocument(
                uri=self._settings.libvirt_uri,
                connected=failure is None,
                detail=None if failure is None else str(failure),
                confirmed_at=inventory.observed_at,
            ),
        )

    # The hypervisor's listener ---------------------------------------------------------------

    def connected(self, host: HostFacts, running: frozenset[str]) -> None:
        """Take in a new connection."""
        if self._inventory is None:
            if not self._opened.done():
                self._opened.set_result((host, running))
            return
        self._inventory.set_capacity(capacity_document(host))
        self._inventory.connected(running)

    def listed(self, host: HostFacts, running: frozenset[str]) -> None:
        """Take in a look at the whole."""
        if self._inventory is not None:
            self._inventory.set_capacity(capacity_document(host))
            self._inventory.listed(running)

    def disconnected(self, error: HypervisorError) -> None:
        """Take in that libvirt can't be asked. Before the first answer that is the end."""
        if self._inventory is not None:
            self._inventory.disconnected(error)
        elif not self._opened.done():
            self._opened.set_exception(error)

    def confirmed(self, asked: datetime, asked_at: float) -> None:
        """Take in a sign of life."""
        if self._inventory is not None:
            self._inventory.confirmed(asked, asked_at)

    def event(self, event: Event) -> None:
        """Take in an event. What came before the inventory is in the list it begins with."""
        if self._inventory is not None:
            if isinstance(event, Lifecycle):
                lag = (datetime.now(event.at.tzinfo) - event.at).total_seconds()
                self._tally.lag.add(max(0.0, lag))  # the clock may have been set
            self._inventory.event(event)

    def observation(
        self, observation: Observation, run: Run | None, status: StatusFile | None
    ) -> None:
        """Take in an answer about a VM."""
        if self._inventory is not None:
            self._inventory.observation(observation, run, status)

    def unanswered(self, vm_uuid: str, error: HypervisorError) -> None:
        """Take in that there is none."""
        if self._inventory is not None:
            self._inventory.unanswered(vm_uuid, error)

    def recorded(self, vm_uuid: str, record: Record, error: HypervisorError | None) -> None:
        """Take in what came of a record."""
        if self._inventory is not None:
            self._inventory.recorded(vm_uuid, record, error)


def _key(address: listen.HttpAddress) -> str:
    return address.host if address.host not in ("0.0.0.0", "::") else "*"  # noqa: S104  compared, not bound


def _made_up(component_id: str) -> str:
    """Return a UUID for a host whose hypervisor has none for it (libvirt's test driver)."""
    return str(uuid5(NAMESPACE_URL, f"urn:vm-enabler:host:{component_id}"))


def _given(identified: Identified) -> list[str]:
    return [f"{field} from the configuration" for field in identified.configured]


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def serve(settings: Settings) -> None:
    """Run the service until SIGINT or SIGTERM; SIGHUP has the certificate read anew.

    Raises `enabler.errors.EnablerError`.
    """
    asyncio.run(_until_signalled(settings))


async def _until_signalled(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service = Service(settings)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reload)
    await service.run(stop)
