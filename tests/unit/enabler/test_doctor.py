"""The doctor: whatever is wrong with a host is said, with a remedy, and nothing is raised."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enabler.checks import Check, Status, callers, hypervisor, listeners, machine, network
from enabler.checks.hypervisor import Libvirt, Nic, Vm
from enabler.checks.network import BRIDGE_ADDRESSES, BRIDGE_MAC, Link, Network
from enabler.doctor import as_json, exit_code, render_text, run_checks
from enabler.domains import TOKEN_NAMESPACE
from enabler.errors import (
    ConfigurationError,
    HypervisorDenied,
    HypervisorError,
    IdentityError,
)
from enabler.identity import Claim, MachineIdentity
from enabler.keys import Keys
from enabler.listen import HttpAddress, UnixAddress, parse
from enabler.platforms import LIBVIRT, SYSFS
from enabler.runs import Run, Runs

IDENTITY = {"manufacturer": "ACME", "serial_number": "SN77A31"}

NIC = Nic("52:54:00:00:00:01", "enabler0", "vnet0", "no-mac-spoofing")
VM = Vm("db01", has_generation_id=True, nics=(NIC,))

QEMU = Libvirt(
    driver="QEMU",
    version=10_000_000,
    sysinfo=None,
    sysinfo_error="Host SMBIOS information is not available",
    capabilities="<capabilities><guest><domain type='kvm'/></guest></capabilities>",
    node_info=("x86_64", 1024, 2, 2000, 1, 1, 2, 1),
    vms=(VM,),
)

BRIDGE = Link(
    3, "enabler0", BRIDGE_MAC, up=True, kind="bridge", master=None, addresses=BRIDGE_ADDRESSES
)
TAP = Link(4, "vnet0", "fe:54:00:00:00:01", up=True, kind="tun", master=3, addresses=())
NETWORK = Network((BRIDGE, TAP), neighbours=2)
LISTENERS = (HttpAddress("169.254.77.1", 8777), HttpAddress("fe80::77:1", 8777, "enabler0"))


def status_of(checks: list[Check], name: str) -> Status:
    return next(check.status for check in checks if check.name == name)


class TestCallers:
    LISTENING = (parse("vsock:8777"), parse("http://169.254.77.1:8777"))
    ENROLLED = replace(VM, cid=7, token_sha256="a" * 64)

    def test_ways_that_serve_nobody(self) -> None:
        assert callers.check_ways(("vsock", "token", "address"), self.LISTENING).status is Status.OK
        for ways, unserved in ((("address",), "vsock:8777"), (("vsock",), "http://169")):
            check = callers.check_ways(ways, self.LISTENING)
            assert check.status is Status.WARN
            assert unserved in check.found
        assert callers.check_ways(("token",), self.LISTENING).status is Status.OK

    def test_vsock(self, tmp_path: Path) -> None:
        vms = [self.ENROLLED, VM]
        (missing,) = callers.check_vsock(self.LISTENING, vms, tmp_path)
        assert missing.status is Status.FAIL
        assert "modprobe vhost_vsock" in (missing.remedy or "")
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/vhost-vsock").touch()
        *_, seen = callers.check_vsock(self.LISTENING, vms, tmp_path)
        assert "1 of 2 running VMs" in seen.found
        assert VM.name in seen.found
        (unheard,) = callers.check_vsock((), vms, tmp_path)
        assert unheard.status is Status.WARN
        (none,) = callers.check_vsock((), [VM], tmp_path)
        assert none.status is Status.OK

    def test_tokens_of_a_copied_domain(self) -> None:
        assert callers.check_tokens([self.ENROLLED, VM]).found == "1 of 2 VMs are enrolled"
        shared = callers.check_tokens([self.ENROLLED, replace(self.ENROLLED, name="copy")])
        assert shared.status is Status.WARN
        assert "copy, db01" in shared.found
        assert "a" * 64 not in shared.found

    def test_what_a_domain_says(self) -> None:
        token = f"<token xmlns='{TOKEN_NAMESPACE}' sha256='{'b' * 64}'/>"
        xml = f"""<domain><metadata>{token}</metadata>
        <devices><vsock><cid address='9'/></vsock></devices></domain>"""
        vm = hypervisor.parse_vm("a", xml)
        assert (vm.cid, vm.token_sha256) == (9, "b" * 64)


class TestWhole:
    def test_of_a_host_without_anything_raises_nothing_and_names_a_remedy_for_all(
        self, tmp_path: Path
    ) -> None:
        uri = f"qemu+unix:///system?socket={tmp_path}/none"
        checks = run_checks(
            uri, ["http://nonsense", "unix:/dev/null/x"], {}, Keys(tmp_path / "keys"), root=tmp_path
        )
        assert status_of(checks, "libvirt") is Status.FAIL
        assert status_of(checks, "machine identity") is Status.FAIL
        assert status_of(checks, "listen") is Status.FAIL
        assert status_of(checks, "admin listener") is Status.FAIL
        assert all(check.remedy for check in checks if check.status is not Status.OK)
        assert exit_code(checks) == 1

    def test_of_the_test_driver_has_nothing_that_fails(self, tmp_path: Path) -> None:
        checks = run_checks(
            "test:///default",
            ["http://127.0.0.1:0", f"unix:{tmp_path}/admin.sock"],
            IDENTITY,
            Keys(tmp_path / "keys"),
            root=tmp_path,
        )
        assert [check for check in checks if check.status is Status.FAIL] == []
        assert status_of(checks, "hypervisor") is Status.OK
        assert status_of(checks, "generation IDs") is Status.WARN
        found = {check.name: check.found for check in checks}
        assert found["machine identity"].startswith("ACME serial number SN77A31")
        assert found["component ID"].startswith("sha256:")
        assert "2 x 8 x 1 (sockets x cores x threads)" in found["capacity"]
        assert exit_code(checks) == 0

    def test_looks_for_a_vm_without_an_interface_on_the_bridge(self, tmp_path: Path) -> None:
        listen = ["http://[fe80::77:1%25nobridge0]:8777"]
        checks = run_checks(
            "test:///default", listen, IDENTITY, Keys(tmp_path / "keys"), root=tmp_path
        )
        member = next(check for check in checks if check.name == "VMs on the bridge")
        assert (member.status, member.found.endswith("can't ask: test")) == (Status.WARN, True)
        assert status_of(checks, "bridge nobridge0") is Status.FAIL


class TestShown:
    CHECKS = (
        Check.ok("Python", "3.11"),
        Check.warn("clock", "not kept in step", "apt install chrony"),
        Check.fail("libvirt", "no daemon", "start it"),
    )

    def test_as_text_line_by_line(self) -> None:
        assert render_text(self.CHECKS).splitlines() == [
            "ok    Python   3.11",
            "WARN  clock    not kept in step",
            "               → apt install chrony",
            "FAIL  libvirt  no daemon",
            "               → start it",
            "",
            "Of 3 checks 1 failed and 1 to look at.",
        ]
        assert render_text(self.CHECKS[:1]).endswith("1 of 1 checks are ok.")

    @given(st.text(st.sampled_from("abc "), min_size=1, max_size=400).filter(str.strip))
    def test_as_text_without_losing_a_word(self, found: str) -> None:
        text = render_text([Check.ok("name", found)])
        assert text.split()[2 : 2 + len(found.split())] == found.split()

    def test_as_json_with_the_worst_status(self) -> None:
        for count, status in ((1, "ok"), (2, "warn"), (3, "fail")):
            shown = json.loads(json.dumps(as_json(self.CHECKS[:count])))
            assert shown["status"] == status
        assert shown["checks"][2] == {
            "name": "libvirt",
            "status": "fail",
            "found": "no daemon",
            "remedy": "start it",
        }
        assert shown["checks"][0]["remedy"] is None

    def test_exit_code_is_1_for_failures_only(self) -> None:
        assert [exit_code(self.CHECKS[:count]) for count in (0, 1, 2, 3)] == [0, 0, 0, 1]

    def test_an_error_is_split_into_what_and_remedy(self) -> None:
        check = Check.failed("x", IdentityError("no serial (a: b; c: d); write one"))
        assert (check.found, check.remedy) == ("no serial (a: b; c: d)", "write one")
        assert Check.failed("x", IdentityError("bad")).found == "bad"


class TestMachine:
    def test_smbios_missing_matters_only_where_nothing_else_serves(self) -> None:
        claims = [Claim(LIBVIRT, note="not available"), Claim(SYSFS, note="absent")]
        _, identified = machine.check_identity(claims, IDENTITY)
        assert identified is not None
        assert machine.check_smbios(claims, identified, dmidecode=False).status is Status.OK
        without = machine.check_smbios(claims, None, dmidecode=False)
        assert without.status is Status.WARN
        assert "apt install dmidecode" in str(without.remedy)
        assert "dmidecode" not in str(machine.check_smbios(claims, None, dmidecode=True).remedy)
        fine = [Claim(LIBVIRT, serial_number="SN77A31")]
        assert machine.check_smbios(fine, None, dmidecode=True).status is Status.OK

    def test_identity_names_its_sources(self) -> None:
        claims = [Claim(LIBVIRT, manufacturer="ACME", serial_number="SN77A31")]
        checks, _ = machine.check_identity(claims, {"model": "Rocket"})
        assert checks[0].found == (
            "ACME Rocket serial number SN77A31, no UUID, "
            "by libvirt getSysinfo and configuration (model)"
        )

    @pytest.mark.parametrize(
        ("manufacturer", "model", "status"),
        [
            ("QEMU", "Standard PC (Q35 + ICH9, 2009)", Status.WARN),
            ("Microsoft Corporation", "Virtual Machine", Status.WARN),
            (None, "IBM pSeries (emulated by qemu)", Status.WARN),
            ("Dell Inc.", "PowerEdge R750", Status.OK),
            (None, None, Status.OK),
        ],
    )
    def test_a_virtual_machine_as_host_is_told(
        self, manufacturer: str | None, model: str | None, status: Status
    ) -> None:
        identity = MachineIdentity("SN77A31", manufacturer=manufacturer, model=model)
        assert machine.check_real(identity).status is status

    def test_a_package_that_is_missing_fails(self) -> None:
        check = machine.check_package("no-such-package", purpose="nothing")
        assert check.status is Status.FAIL
        assert machine.check_package("libvirt-python", purpose="x").status is Status.OK

    def test_the_clock(self) -> None:
        statuses = [machine.check_clock(state).status for state in (True, False, None)]
        assert statuses == [Status.OK, Status.WARN, Status.OK]
        assert machine.clock_is_synchronised() in (True, False, None)

    def test_the_unit_of_libvirt_is_the_one_installed(self, tmp_path: Path) -> None:
        assert machine.libvirt_unit(tmp_path) is None
        units = tmp_path / "lib/systemd/system"
        units.mkdir(parents=True)
        (units / "libvirtd.socket").touch()
        assert machine.libvirt_unit(tmp_path) == "libvirtd.socket"

    def test_capacity_that_libvirt_does_not_tell_fails(self) -> None:
        check = machine.check_capacity("<capabilities/>", (), None, None)
        assert check.status is Status.FAIL
        assert "virsh capabilities" in str(check.remedy)


class TestLibvirt:
    def test_is_asked_for_real(self) -> None:
        found = hypervisor.ask("test:///default", within=20)
        assert (found.driver, [vm.name for vm in found.vms]) == ("TEST", ["test"])
        assert found.vms[0].nics[0].mac.count(":") == 5

    @pytest.mark.parametrize(
        ("uri", "error"),
        [
            ("qemu+ssh://elsewhere/system", ConfigurationError),
            ("rubbish", ConfigurationError),
            ("qemu+unix:///system?socket=/nonexistent/sock", HypervisorError),
        ],
    )
    def test_that_can_not_be_asked_is_an_error_of_ours(
        self, uri: str, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            hypervisor.ask(uri, within=20)

    def test_that_hangs_is_given_up_on(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / "sock"))
            silent.listen()
            with pytest.raises(HypervisorError, match="did not answer"):
                hypervisor.ask(f"qemu+unix:///system?socket={tmp_path}/sock", within=0.2)

    @pytest.mark.parametrize(
        ("error", "unit", "remedy"),
        [
            (
                HypervisorError("Failed to connect socket; look"),
                "virtqemud.socket",
                "--now virtqemud",
            ),
            (HypervisorError("Failed to connect socket; look"), None, "apt install libvirt-daemon"),
            (HypervisorDenied("refused; join the group"), "libvirtd.socket", "join the group"),
            (ConfigurationError("elsewhere; use qemu:///system"), None, "use qemu:///system"),
            (HypervisorError("did not answer; restart it"), "libvirtd.socket", "restart it"),
        ],
    )
    def test_has_a_remedy_for_this_host(
        self, error: HypervisorError, unit: str | None, remedy: str
    ) -> None:
        check = hypervisor.check_failed(error, unit)
        assert check.status is Status.FAIL
        assert remedy in str(check.remedy)

    @pytest.mark.parametrize(
        ("version", "status"),
        [(10_000_000, Status.OK), (8_000_000, Status.WARN), (1_003_002, Status.FAIL)],
    )
    def test_is_new_enough(self, version: int, status: Status) -> None:
        checks = hypervisor.check_driver("qemu:///system", replace(QEMU, version=version))
        assert checks[0].status is status
        assert "qemu:///system" in checks[0].found

    def test_is_qemu_with_kvm_or_that_is_said(self) -> None:
        for found, status in (
            (QEMU, Status.OK),
            (replace(QEMU, capabilities="<capabilities/>"), Status.WARN),
            (replace(QEMU, driver="LXC"), Status.OK),
            (replace(QEMU, driver="Xen"), Status.WARN),
        ):
            assert hypervisor.check_driver("x:///", found)[1].status is status


class TestVms:
    XML = """
    <domain type='kvm' id='1'><name>db01</name>{genid}<devices>
      <interface type='network'>
        <mac address='52:54:00:AA:00:01'/>
        <source network='internal' bridge='enabler0'/><target dev='vnet3'/>
        <filterref filter='clean-traffic'><parameter name='IP' value='10.0.0.1'/></filterref>
      </interface>
      <interface type='user'/>
    </devices></domain>
    """

    def test_are_read_from_their_live_xml(self) -> None:
        vm = hypervisor.parse_vm("db01", self.XML.format(genid="<genid>x</genid>"))
        first, second = vm.nics
        assert vm.has_generation_id
        assert first == Nic("52:54:00:aa:00:01", "enabler0", "vnet3", "clean-traffic")
        assert second == Nic("", None, None, None)
        assert not hypervisor.parse_vm("db01", self.XML.format(genid="")).has_generation_id
        assert hypervisor.parse_vm("x", "<broken").nics == ()

    def test_without_a_generation_id_are_listed(self) -> None:
        old = replace(VM, name="old", has_generation_id=False)
        check = hypervisor.check_generation_ids([VM, old])
        assert (check.status, check.found.endswith(": old")) == (Status.WARN, True)
        assert hypervisor.check_generation_ids([VM]).status is Status.OK
        assert hypervisor.check_generation_ids([old], "LXC").status is Status.OK

    def test_without_an_interface_on_the_bridge_are_listed(self) -> None:
        by_tap = replace(VM, name="tapped", nics=(replace(NIC, bridge=None, tap="vnet9"),))
        alone = replace(VM, name="alone", nics=(replace(NIC, bridge="virbr0", tap="vnet1"),))
        check = hypervisor.check_bridge_members(
            [VM, by_tap, alone], "enabler0", frozenset({"vnet9"})
        )
        assert (check.status, check.found.endswith(": alone")) == (Status.WARN, True)
        fine = hypervisor.check_bridge_members([VM], "enabler0", frozenset())
        assert fine.status is Status.OK

    def test_that_could_forge_a_mac_address_are_listed(self) -> None:
        unfiltered = replace(VM, name="free", nics=(replace(NIC, filter=None),))
        elsewhere = replace(VM, name="off", nics=(Nic("52:54:00:00:00:09", "virbr0", "v", None),))
        check = hypervisor.check_spoofing([VM, unfiltered, elsewhere], "enabler0", frozenset())
        assert (check.status, check.found.endswith(": free")) == (Status.WARN, True)
        assert hypervisor.check_spoofing([VM], "enabler0", frozenset()).status is Status.OK

    def test_that_share_a_mac_address_fail(self) -> None:
        twin = replace(VM, name="twin")
        check = hypervisor.check_macs([VM, twin], BRIDGE_MAC)
        assert (check.status, "(db01, twin)" in check.found) == (Status.FAIL, True)
        like_the_bridge = replace(VM, nics=(replace(NIC, mac=BRIDGE_MAC),))
        assert hypervisor.check_macs([like_the_bridge], BRIDGE_MAC).status is Status.FAIL
        two_nics = replace(VM, nics=(NIC, NIC))
        assert hypervisor.check_macs([two_nics], None).status is Status.OK

    def test_many_are_not_listed_to_the_last(self) -> None:
        many = [replace(VM, name=f"vm{n:02}", has_generation_id=False) for n in range(12)]
        assert hypervisor.check_generation_ids(many).found.endswith("vm09 and 2 more")

    def test_processes_are_looked_for(self, tmp_path: Path) -> None:
        class Seen(Runs):
            def of_process(self, name: str) -> Run | None:
                return Run(name)

        class Gone(Runs):
            def of_process(self, name: str) -> Run | None:
                return None

        assert hypervisor.check_runs(QEMU, Seen).status is Status.OK
        assert hypervisor.check_runs(QEMU, Gone).status is Status.FAIL
        unreadable = hypervisor.check_runs(QEMU, lambda: Runs(pid_files=tmp_path))
        assert unreadable.status is Status.FAIL
        assert "db01.pid" in unreadable.found
        assert hypervisor.check_runs(QEMU, lambda: Runs(tmp_path)).status is Status.FAIL
        assert hypervisor.check_runs(replace(QEMU, driver="LXC"), Gone).status is Status.FAIL
        assert hypervisor.check_runs(replace(QEMU, driver="TEST"), Gone).status is Status.OK


class TestBridge:
    def test_that_is_as_it_should_be(self) -> None:
        assert network.check_bridge(NETWORK, "enabler0", LISTENERS).status is Status.OK

    @pytest.mark.parametrize(
        ("link", "remedy"),
        [
            (
                replace(BRIDGE, name="other"),
                f"ip link add enabler0 address {BRIDGE_MAC} type bridge",
            ),
            (replace(BRIDGE, kind=None), "another name"),
            (replace(BRIDGE, up=False), "ip link set enabler0 up"),
            (replace(BRIDGE, mac="52:54:00:77:00:02"), f"address {BRIDGE_MAC}"),
            (
                replace(BRIDGE, addresses=("169.254.77.1/24", "fe80::77:1/64")),
                "ip address add 169.254.77.1/16 dev enabler0",
            ),
            (
                replace(BRIDGE, addresses=("169.254.77.1/16",)),
                "ip address add fe80::77:1/64 dev enabler0 nodad",
            ),
        ],
    )
    def test_that_is_wrong_fails_with_the_command_that_mends_it(
        self, link: Link, remedy: str
    ) -> None:
        check = network.check_bridge(Network((link,), 0), "enabler0", LISTENERS)
        assert check.status is Status.FAIL
        assert remedy in str(check.remedy)

    def test_without_an_address_that_nobody_listens_on_is_a_warning(self) -> None:
        bare = Network((replace(BRIDGE, addresses=("169.254.77.1/16",)),), 0)
        assert network.check_bridge(bare, "enabler0", LISTENERS[:1]).status is Status.WARN

    def test_is_the_one_that_is_listened_on(self) -> None:
        other = replace(BRIDGE, name="br7", addresses=("10.7.0.1/24",))
        known = Network((other, TAP), 0)
        assert network.bridge_of(known, [HttpAddress("10.7.0.1", 1)]) == "br7"
        assert network.bridge_of(known, [HttpAddress("fe80::1", 1, "br8")]) == "br8"
        assert network.bridge_of(known, [HttpAddress("169.254.77.1", 1)]) == "enabler0"
        assert network.bridge_of(known, [HttpAddress("127.0.0.1", 1)]) is None
        assert network.bridge_of(known, []) is None

    def test_has_the_taps_as_ports(self) -> None:
        assert NETWORK.ports(BRIDGE) == {"vnet0"}

    def test_is_seen_in_a_real_network_namespace(self) -> None:
        script = f"""
from pyroute2 import IPRoute
with IPRoute() as ip:
    ip.link("add", ifname="enabler0", kind="bridge", address="{BRIDGE_MAC}")
    index = ip.link_lookup(ifname="enabler0")[0]
    ip.link("set", index=index, state="up")
    ip.addr("add", index=index, address="169.254.77.1", prefixlen=16)
    ip.link("add", ifname="tap7", kind="veth", peer="guest7")
    ip.link("set", index=ip.link_lookup(ifname="tap7")[0], master=index)
from enabler.checks import network
from enabler.listen import HttpAddress
check, found = network.check_network()
bridge = found.link("enabler0")
print(check.status, found.ports(bridge), network.bridge_of(found, [HttpAddress("169.254.77.1", 1)]))
print(network.check_bridge(found, "enabler0", [HttpAddress("169.254.77.1", 1)]).found)
"""
        mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
        seen = subprocess.run(
            ["unshare", *mapped, "--net", sys.executable, "-c", script],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        first, second = seen.stdout.splitlines()
        assert first == "ok frozenset({'tap7'}) enabler0"
        assert second == "it has no fe80::77:1/64"


class Healthy(BaseHTTPRequestHandler):
    """What an enabler says."""

    body = b'{"status":"ok"}'

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Stranger(Healthy):
    body = b"It works!"


@pytest.fixture(params=[Healthy, Stranger])
def server(request: pytest.FixtureRequest) -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), request.param) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def answer_health(listening: socket.socket) -> None:
    channel, _ = listening.accept()
    with channel:
        channel.recv(4096)
        channel.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + Healthy.body)


class TestListeners:
    def test_a_free_address_is_fine(self) -> None:
        assert listeners.check_http(HttpAddress("127.0.0.1", 0)).status is Status.OK
        assert listeners.check_http(HttpAddress("::1", 0)).status is Status.OK

    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
    def test_a_taken_port_is_fine_if_an_enabler_has_it(self, server: HTTPServer, host: str) -> None:
        check = listeners.check_http(HttpAddress(host, server.server_port))
        healthy = server.RequestHandlerClass is Healthy
        assert check.status is (Status.OK if healthy else Status.FAIL)
        if not healthy:
            assert f"ss -ltnp 'sport = :{server.server_port}'" in str(check.remedy)

    def test_a_metrics_listener_s_port_is_no_strangers(self, server: HTTPServer) -> None:
        assert listeners.check_metrics(HttpAddress("127.0.0.1", 0)).status is Status.OK
        check = listeners.check_metrics(HttpAddress("127.0.0.1", server.server_port))
        assert (check.name, check.status) == ("metrics listener", Status.FAIL)

    @pytest.mark.parametrize(
        "address", [HttpAddress("203.0.113.77", 8777), HttpAddress("fe80::77:1", 8777, "nobridge0")]
    )
    def test_an_address_of_nobody_fails(self, address: HttpAddress) -> None:
        check = listeners.check_http(address)
        assert check.status is Status.FAIL
        assert "bridge" in str(check.remedy)

    def test_a_socket_that_can_be_made_is_fine(self, tmp_path: Path) -> None:
        check = listeners.check_unix(UnixAddress(tmp_path / "new/admin.sock"))
        assert check.status is Status.OK
        assert f"{tmp_path}/new will be made" in check.found
        assert not (tmp_path / "new").exists()

    def test_a_socket_that_is_there_is_live_or_left_behind(self, tmp_path: Path) -> None:
        address = UnixAddress(tmp_path / "admin.sock")
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(str(address.path))
            live.listen()
            # As systemd has it, before there is an enabler.
            silent = listeners.check_unix(address)
            assert (silent.status, "no enabler answers" in silent.found) == (Status.WARN, True)
            live.accept()[0].close()  # that nobody had taken
            answering = threading.Thread(target=answer_health, args=(live,))
            answering.start()
            found = listeners.check_unix(address)
            answering.join()
            assert (found.status, "an enabler listens" in found.found) == (Status.OK, True)
        left = listeners.check_unix(address)
        assert (left.status, "left it behind" in left.found) == (Status.OK, True)
        assert address.path.exists()

    def test_a_file_in_the_way_and_a_path_too_long_fail(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file/under", Path("/tmp") / ("x" * 110)):
            assert listeners.check_unix(UnixAddress(path)).status is Status.FAIL


def test_libvirt_s_network_wants_dnsmasq() -> None:
    there = replace(QEMU, networks=frozenset({"default", "enabler0"}))
    [check] = hypervisor.check_dnsmasq(there, None)
    assert check.status is Status.WARN
    assert "dnsmasq-base" in (check.remedy or "")
    [check] = hypervisor.check_dnsmasq(there, "/usr/sbin/dnsmasq")
    assert check.status is Status.OK
    assert hypervisor.check_dnsmasq(QEMU, None) == []
    assert hypervisor.check_dnsmasq(replace(there, driver="LXC"), None) == []
