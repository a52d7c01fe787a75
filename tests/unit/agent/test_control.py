"""The agent's door, and what is installed around it: the socket, the lock, systemd's units."""

from __future__ import annotations

import configparser
import json
import socket
from pathlib import Path

import pytest

from guest_client.agent import systemd
from guest_client.agent.control import ask
from guest_client.agent.lock import AgentLock, holder
from guest_client.cli import build_parser
from guest_client.config import DEFAULT_STATE_DIR
from guest_client.errors import AgentNotRunning, AgentRunning

from .conftest import AgentHome

UNITS = Path(__file__).parents[3] / "deploy" / "systemd"


def send(home: AgentHome, content: bytes) -> bytes:
    """Say something to the agent, and give all that it answers."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(home.state_dir / "agent.sock"))
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(4096), b""))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"no JSON\n", b"[]\n", b'{"do": ["stop"]}\n', b'{"do": "dance"}\n',
     b"x" * 200_000 + b"\n", b'{"do": "status"'],
)  # fmt: skip
def test_nonsense_gets_no_more_than_an_error_and_harms_nobody(
    home: AgentHome, content: bytes
) -> None:
    running = home.ready_agent()
    try:
        answer = send(home, content)
    except (BrokenPipeError, ConnectionResetError):
        answer = b""  # it did not even read to the end
    assert answer in (b"", json.dumps({"error": "unknown request"}).encode() + b"\n")
    assert ask(home.state_dir, "status")["pid"] == running.process.pid
    assert running.stop() == 0


def test_the_door_is_for_whoever_may_write_there(home: AgentHome) -> None:
    home.ready_agent()
    assert (home.state_dir / "agent.sock").stat().st_mode & 0o777 == 0o600
    home.run("agent", "stop")
    assert not (home.state_dir / "agent.sock").exists()


def test_a_deep_folder_is_no_obstacle(home: AgentHome) -> None:
    home.state_dir = home.home.joinpath(*["a-folder-with-a-long-name"] * 8)
    home.environment["GUEST_CLIENT_STATE_DIR"] = str(home.state_dir)
    home.ready_agent()
    assert home.json("agent", "status")["running"]
    home.run("agent", "stop")


def test_a_socket_that_a_dead_agent_left_is_no_agent(home: AgentHome) -> None:
    home.ready_agent().kill()
    assert (home.state_dir / "agent.sock").exists()
    with pytest.raises(AgentNotRunning, match="no agent runs"):
        ask(home.state_dir, "status")
    home.run("agent", "stop")
    home.ready_agent()
    assert home.json("agent", "status")["running"]


def test_the_lock_is_one_agents_and_says_whose(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with AgentLock(tmp_path, "then"):
        found = holder(tmp_path)
        assert found is not None
        assert found["started_at"] == "then"
        with pytest.raises(AgentRunning, match=f"process {found['pid']}, since then"):
            AgentLock(tmp_path, "now")
    assert holder(tmp_path) is None
    with AgentLock(tmp_path, "now"):
        pass


def test_a_service_manager_is_told_by_path_and_by_abstract_name(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    for address, name in ((path, path), ("@vm-enabler-test", "\0vm-enabler-test")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(name)
            systemd.Notifier({"NOTIFY_SOCKET": address}).tell(READY="1", STATUS="here")
            assert manager.recv(100) == b"READY=1\nSTATUS=here"
    systemd.Notifier({}).tell(READY="1")
    systemd.Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell(READY="1")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_ours_or_nobodys(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert systemd.Notifier(environment).watchdog == seconds


def test_the_target_is_started_only_where_systemd_runs(tmp_path: Path) -> None:
    assert not systemd.is_booted(tmp_path / "none")
    assert systemd.is_booted(tmp_path)


def test_the_units_start_what_there_is() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.read(UNITS / "guest-client-agent.service")
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    assert program == "/usr/bin/guest-client"
    options = build_parser().parse_args(arguments)
    assert (options.agent_command, options.watch) == ("run", True)
    assert service["Type"] == "notify"
    assert Path("/var/lib", service["StateDirectory"]) == DEFAULT_STATE_DIR
    unit.read(UNITS / systemd.TARGET)
    assert unit["Unit"]["StopWhenUnneeded"] == "yes"
    assert systemd.TARGET in systemd.TARGET_PROGRAM.command
