from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import guest_client
from guest_client import (
    InconsistentScan,
    NoAnswer,
    Refused,
    guarded,
    guarded_modules,
    guarding,
    host_independent,
    read_identity,
)

from .documents import MIGRATED, document
from .enabler_server import EnablerServer, problem


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: object) -> Iterator[EnablerServer]:
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    config = tmp_path_factory.mktemp("config") / "config.toml"
    with EnablerServer() as running:
        config.write_text(f'enabler = "{running.url}"\ndeadline = 20\n')
        monkeypatch.setenv("GUEST_CLIENT_CONFIG", str(config))
        yield running


def _move(server: EnablerServer) -> None:
    server.document = document(MIGRATED)


def test_an_identity_from_where_the_configuration_says(server: EnablerServer) -> None:
    assert read_identity().as_dict() == document()
    assert read_identity(server.url, deadline=5).vm.name == "db01"


def test_a_quiet_block(server: EnablerServer) -> None:
    with guarding() as block:
        assert block.verdict is None
        data = 42
    assert data == 42
    assert block.verdict is not None
    assert block.verdict.consistent
    assert block.before is not None
    assert block.after is not None
    assert block.before.identity == block.after.identity


def test_a_crossed_block_raises(server: EnablerServer) -> None:
    with pytest.raises(InconsistentScan, match="moved to another host") as caught, guarding():
        _move(server)
    assert caught.value.verdict.reason == "migrated"
    assert caught.value.exit_code == 75


def test_a_crossed_block_can_be_looked_at_instead(server: EnablerServer) -> None:
    with guarding(raising=False) as block:
        _move(server)
    assert block.verdict is not None
    assert block.verdict.inconsistent


def test_without_a_trusted_answer_the_block_is_not_entered(server: EnablerServer) -> None:
    server.otherwise = problem(403, "caller-unknown")
    entered = False
    with pytest.raises(Refused), guarding(raising=False):
        entered = True
    assert not entered


def test_without_a_trusted_answer_after_it_a_block_raises(server: EnablerServer) -> None:
    with pytest.raises(NoAnswer), guarding(deadline=0.3):
        server.otherwise = problem(503, "vm-leaving")


def test_a_blocks_own_error_passes(server: EnablerServer) -> None:
    with pytest.raises(KeyError, match="mine"), guarding() as block:
        raise KeyError("mine")
    assert block.verdict is None
    assert len(server.requests) == 1


def test_a_guarded_function(server: EnablerServer) -> None:
    result = guarded(lambda a, *, b: a + b, 1, b=2)
    assert (result.value, result.attempts) == (3, 1)
    assert result.verdict.consistent


def test_a_crossed_function_is_repeated(server: EnablerServer) -> None:
    runs: list[int] = []

    def scan() -> int:
        runs.append(1)
        if len(runs) == 1:
            _move(server)
        return len(runs)

    result = guarded(scan, repeat=2)
    assert (result.value, result.attempts) == (2, 2)


def test_a_function_that_is_always_crossed_raises(server: EnablerServer) -> None:
    runs: list[int] = []

    def scan() -> None:
        runs.append(1)
        server.document = document({"residency.id": f"stay-9{len(runs)}"})

    with pytest.raises(InconsistentScan):
        guarded(scan, repeat=1)
    assert len(runs) == 2
    with pytest.raises(ValueError, match="repeat"):
        guarded(scan, repeat=-1)


def test_an_unverified_function_is_not_repeated(server: EnablerServer) -> None:
    runs: list[int] = []

    def scan() -> None:
        runs.append(1)
        server.otherwise = problem(403, "caller-unknown")

    with pytest.raises(Refused):
        guarded(scan, repeat=3)
    assert runs == [1]


def test_a_channel_serves_several_scans(server: EnablerServer) -> None:
    with guest_client.Channel(server.url) as channel:
        for _ in range(2):
            guarded(lambda: None, channel=channel)
        with guarding(channel=channel):
            pass
    assert len({peer for peer, *_ in server.requests}) == 1


class Calls:
    """Functions that tell of their calls; the one named ``crossed`` moves the VM, once."""

    def __init__(self, server: EnablerServer, crossed: str | None = None) -> None:
        self.made: list[str] = []
        self._server = server
        self._crossed = crossed

    def of(self, name: str) -> Callable[[], str]:
        def function() -> str:
            self.made.append(name)
            if name == self._crossed and self.made.count(name) == 1:
                _move(self._server)
            return f"{name} {self.made.count(name)}"

        return function


def test_quiet_modules_cost_a_read_more_than_there_are(server: EnablerServer) -> None:
    calls = Calls(server)
    result = guarded_modules({name: calls.of(name) for name in "abc"})
    assert result.values == {"a": "a 1", "b": "b 1", "c": "c 1"}
    assert result.verdict.consistent
    assert result.identity.as_dict() == document()
    assert len(server.requests) == 4


def test_modules_that_a_migration_made_untrue_are_called_again(server: EnablerServer) -> None:
    calls = Calls(server, crossed="disks")
    packages = host_independent(calls.of("packages"))
    result = guarded_modules(
        {
            "cpu": calls.of("cpu"),
            "packages": packages,
            "disks": calls.of("disks"),
            "pci": calls.of("pci"),
        },
        repeat=1,
    )
    assert calls.made == ["cpu", "packages", "disks", "cpu", "disks", "pci"]
    assert result.runs == (
        ("cpu", None),
        ("packages", None),
        ("disks", None),
        ("cpu", "machine-changed"),
        ("disks", "crossed"),
        ("pci", None),
    )
    assert list(result.values.items()) == [
        ("cpu", "cpu 2"),
        ("packages", "packages 1"),
        ("disks", "disks 2"),
        ("pci", "pci 1"),
    ]
    assert result.identity.as_dict() == document(MIGRATED)
    assert len(server.requests) == 7


def test_without_repeats_crossed_modules_raise(server: EnablerServer) -> None:
    calls = Calls(server, crossed="a")
    with pytest.raises(InconsistentScan) as caught:
        guarded_modules({name: calls.of(name) for name in "ab"})
    assert caught.value.verdict.reason == "migrated"
    assert calls.made == ["a"]


def test_modules_without_a_trusted_answer_raise(server: EnablerServer) -> None:
    calls = Calls(server)

    def refused() -> str:
        server.otherwise = problem(403, "caller-unknown")
        return "never seen"

    with pytest.raises(Refused):
        guarded_modules({"a": refused, "b": calls.of("b")}, repeat=3)
    with pytest.raises(Refused):
        guarded_modules({"b": calls.of("b")})
    assert calls.made == []


def test_a_modules_own_error_passes(server: EnablerServer) -> None:
    def broken() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        guarded_modules({"a": broken}, repeat=3)
    assert len(server.requests) == 1


def test_modules_wrongly_given(server: EnablerServer) -> None:
    with pytest.raises(ValueError, match="one module or more"):
        guarded_modules({})
    with pytest.raises(ValueError, match="repeat"):
        guarded_modules({"a": lambda: 1}, repeat=-1)
    assert server.requests == []


def test_host_independent_is_a_decorator_too() -> None:
    @host_independent
    def packages() -> int:
        """Count them."""
        return 3

    assert packages() == 3
    assert packages.__doc__ == "Count them."


@pytest.mark.parametrize("wrong", [{"enabler": "nowhere"}, {"deadline": -1}])
def test_wrong_arguments_are_a_configuration_error(
    server: EnablerServer, wrong: dict[str, object]
) -> None:
    with pytest.raises(guest_client.ConfigurationError):
        read_identity(**wrong)  # type: ignore[arg-type]


def test_every_name_of_the_face_is_there() -> None:
    for name in guest_client.__all__:
        assert getattr(guest_client, name).__name__ == name
        assert name in dir(guest_client)
    with pytest.raises(AttributeError, match="no_such_name"):
        guest_client.no_such_name  # noqa: B018 - asking is the test
