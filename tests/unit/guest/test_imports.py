"""The guest's part stays thin: what it imports, and what its distribution requires."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "guest_client"
NOT_OURS = (
    "enabler",
    "fastapi",
    "starlette",
    "uvicorn",
    "libvirt",
    "pydantic",
    "pyroute2",
    "joserfc",
)

_LOAD_ALL = """
import importlib, pkgutil, sys, guest_client
for module in pkgutil.walk_packages(guest_client.__path__, "guest_client."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def _loaded(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_all_of_it_loads_nothing_of_the_hosts_part() -> None:
    assert _loaded(_LOAD_ALL).isdisjoint(NOT_OURS)


def test_it_imports_the_standard_library_and_httpx_alone() -> None:
    for path in PACKAGE.rglob("*.py"):
        allowed = sys.stdlib_module_names | {"guest_client", "httpx", "httpcore"}
        if path.relative_to(PACKAGE) == Path("verify/keyring.py"):
            allowed |= {"joserfc"}  # the auditor's, loaded when it is needed: see below
        if path.relative_to(PACKAGE) == Path("compat.py"):
            allowed |= {"tomli"}  # for Python 3.9 and 3.10: in the packages
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                found = {(node.module or "").partition(".")[0]}
            else:
                continue
            assert found <= allowed, f"{path.name} imports {found - allowed}"


def test_the_distribution_requires_httpx_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [requirement.partition(">")[0] for requirement in project["dependencies"]] == ["httpx"]


def test_a_command_loads_nothing_asynchronous() -> None:
    code = (
        "import sys; sys.argv = ['guest-client', 'identity', '--deadline', '.1']\n"
        "sys.argv += ['--enabler', 'http://127.0.0.1:1']\n"
        "from guest_client.program import main; main()\n"
        "print(*(name for name, module in sys.modules.items() if module))"
    )
    loaded = _loaded(code)
    assert "httpcore" in loaded
    assert loaded.isdisjoint({"anyio", "trio", "asyncio", "httpx"})


@pytest.mark.parametrize(
    "code",
    [
        "import guest_client",
        "from guest_client import Verdict, judge, InconsistentScan",
        "from guest_client.cli import build_parser; build_parser().format_help()",
        "from guest_client.cli import main; main(['scan', '--no-such-flag'])",
        "from guest_client.cli import main; main(['plans'])",
    ],
)
def test_what_needs_no_network_does_not_load_httpx(code: str) -> None:
    assert "httpx" not in _loaded(f"{code}\nimport sys; print(*sys.modules)")
