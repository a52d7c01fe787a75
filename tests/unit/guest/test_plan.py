from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_client.errors import ConfigurationError, ScannerError, ScannerNotFound, UsageError
from guest_client.plan import (
    Plan,
    PlannedModule,
    choose,
    command_line_modules,
    joined,
    load_plan,
    plan_of,
    ready_made_names,
    ready_made_text,
    without,
)


def _load(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return load_plan(str(path))


def test_a_module_has_defaults_on_the_safe_side(tmp_path: Path) -> None:
    plan = _load(tmp_path, '[[module]]\nname = "cpu"\ncommand = "lscpu --json -e=\'a b\'"')
    assert plan.modules == (
        PlannedModule(
            name="cpu",
            command=("lscpu", "--json", "-e=a b"),
            output="cpu.out",
            host_dependent=True,
            ok_exit_codes=frozenset({0}),
            optional=False,
            description="",
        ),
    )
    assert plan.name == str(tmp_path / "plan.toml")


def test_every_key_of_a_module(tmp_path: Path) -> None:
    plan = _load(
        tmp_path,
        """
        description = "all"
        [[module]]
        name = "packages"
        command = ["dpkg-query", "--show", "$HOME; *"]
        output = "packages.txt"
        host_dependent = false
        ok_exit_codes = [1, 2]
        optional = true
        description = "Installed packages"
        """,
    )
    assert plan.description == "all"
    assert plan.modules == (
        PlannedModule(
            "packages",
            ("dpkg-query", "--show", "$HOME; *"),
            "packages.txt",
            False,
            frozenset({0, 1, 2}),
            True,
            "Installed packages",
        ),
    )


def test_modules_keep_their_order_and_follow_those_included(tmp_path: Path) -> None:
    plan = _load(
        tmp_path,
        """
        include = ["facts", "sbom"]
        [[module]]
        name = "z"
        command = "z"
        [[module]]
        name = "a"
        command = "a"
        """,
    )
    assert [module.name for module in plan.modules] == ["facter", "syft", "z", "a"]


_NAMED = '[[module]]\nname = "a"\ncommand = "a"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no [[module]] in it"),
        ("include = []", "there is no [[module]] in it"),
        ("[[module]", "is not TOML"),
        ("module = 5", "begun with [[module]]"),
        ("module = [5]", "begun with [[module]]"),
        ('[module]\nname = "a"\ncommand = "a"', "with two brackets"),
        ("modules = []\n" + _NAMED, "unknown key 'modules'; did you mean module?"),
        ("description = 5\n" + _NAMED, "description: should be a string"),
        ('include = "hardware"\n' + _NAMED, "include: should be an array of names"),
        ("include = [1]\n" + _NAMED, "include: should be an array of names"),
        ('include = ["hardwear"]\n' + _NAMED, "did you mean hardware?"),
        ('include = ["./mine.toml"]\n' + _NAMED, "is no ready-made plan"),
        ('include = ["facts", "facts"]', "two modules have the name 'facter'"),
        ("[[module]]", "[[module]] 1: name is missing"),
        ('[[module]]\ncommand = "a"', "[[module]] 1: name is missing"),
        ('[[module]]\nname = "a"', "[[module]] 1 (a): command is missing"),
        (_NAMED + '[[module]]\nname = "b"', "[[module]] 2 (b): command is missing"),
        (_NAMED + "outputs = 1", "[[module]] 1 (a): unknown key 'outputs'; did you mean output?"),
        (_NAMED + "host_dependent = 1", "host_dependent: should be true or false"),
        (_NAMED + 'optional = "no"', "optional: should be true or false"),
        (_NAMED + "description = []", "description: should be a string"),
        *(
            (_NAMED + f"ok_exit_codes = {codes}", "ok_exit_codes: should be an array of exit codes")
            for codes in ("1", '["1"]', "[-1]", "[256]", "[true]", "[1.0]")
        ),
        *(
            (_NAMED + f'output = "{name}"', "is no output's name")
            for name in (
                "",
                "a/b",
                "/etc/passwd",
                "..",
                ".hidden",
                "a b",
                "ä",
                "x" * 129,
                "a\\u0000",
            )
        ),
        (_NAMED + "output = 5", "output: should be a string"),
        (_NAMED + 'output = "manifest.json"', "is the set's own"),
        (_NAMED + 'output = "Manifest.JSON"', "is the set's own"),
        *(
            (f'[[module]]\nname = "{name}"\ncommand = "a"', "is no module's name")
            for name in ("", "a/b", "-a", ".a", "a b", "a=b", "x" * 65, "a\\n")
        ),
        ('[[module]]\nname = 5\ncommand = "a"', "name: should be a string"),
        ('[[module]]\nname = "a"\ncommand = ""', "command: names no program"),
        ('[[module]]\nname = "a"\ncommand = []', "command: names no program"),
        ('[[module]]\nname = "a"\ncommand = [""]', "command: names no program"),
        ('[[module]]\nname = "a"\ncommand = 5', "command: should be an array of strings"),
        ('[[module]]\nname = "a"\ncommand = "a \'"', "command: can't be split into words"),
        (_NAMED + _NAMED, "two modules have the name 'a'"),
        (_NAMED + '[[module]]\nname = "A"\ncommand = "a"', "two modules have the name 'A'"),
        (
            _NAMED + '[[module]]\nname = "b"\ncommand = "b"\noutput = "A.out"',
            "two modules have the output 'A.out'",
        ),
        ("x = " + "[" * 100_000, "plan.toml"),
    ],
)
def test_what_is_wrong_in_a_plan_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, text)
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 78


def test_a_plan_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name, says in [
        (str(tmp_path / "none.toml"), "there is no plan"),
        ("none.toml", "there is no plan"),
        (str(tmp_path), "can't read the plan"),
        (str(tmp_path / "bytes.toml"), "is not TOML"),
        ("a/\0", "can't read the plan"),
    ]:
        with pytest.raises(ConfigurationError, match=says):
            load_plan(name)


@pytest.mark.parametrize("name", ["inventry", "", "nonsense", ".."])
def test_a_bare_name_is_a_ready_made_plan(name: str) -> None:
    with pytest.raises(UsageError, match="there is no ready-made plan"):
        load_plan(name)


_toml_like: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(
    st.sampled_from(["name", "command", "output", "host_dependent", "ok_exit_codes", "optional"]),
    _toml_like,
)
def test_any_value_of_any_key_is_read_or_refused_with_a_word(key: str, value: object) -> None:
    said: str | None = None
    try:
        plan = plan_of({"module": [{"name": "a", "command": "a"} | {key: value}]}, "x")
        assert re.fullmatch(r"[A-Za-z0-9._+-]+", plan.modules[0].output)
    except ValueError as error:
        said = str(error)
    assert said is None or said


# From the command line.


def test_modules_of_the_command_line() -> None:
    made = command_line_modules(["cpu=lscpu -e='a b'", "pkg=dpkg-query --show=x=y"], ["pkg"])
    assert made == (
        PlannedModule("cpu", ("lscpu", "-e=a b"), "cpu.out"),
        PlannedModule("pkg", ("dpkg-query", "--show=x=y"), "pkg.out", host_dependent=False),
    )


@pytest.mark.parametrize(
    ("given", "independent", "says"),
    [
        (["cpu"], [], "should be NAME=COMMAND"),
        (["=lscpu"], [], "is no module's name"),
        (["a/b=lscpu"], [], "is no module's name"),
        (["cpu="], [], "names no program"),
        (["cpu='"], [], "can't be split"),
        (["cpu=lscpu"], ["pkg"], "--host-independent pkg: there is no --module of that name"),
        ([], ["pkg"], "write host_dependent = false"),
    ],
)
def test_wrong_modules_of_the_command_line(
    given: list[str], independent: list[str], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        command_line_modules(given, independent)
    assert says in str(caught.value)


def test_modules_are_added_to_a_plan() -> None:
    more = command_line_modules(["mine=true"], [])
    plan = joined(load_plan("facts"), more)
    assert [module.name for module in plan.modules] == ["facter", "mine"]
    assert plan.name == "facts"
    assert joined(None, more).name is None
    with pytest.raises(UsageError, match="two modules have the name 'facter'"):
        joined(load_plan("facts"), command_line_modules(["facter=true"], []))


def test_modules_are_left_out_of_a_plan() -> None:
    plan = without(load_plan("hardware"), ["lshw", "lscpu"])
    assert [module.name for module in plan.modules] == ["dmidecode"]
    assert [left.module.name for left in plan.left_out] == ["lshw", "lscpu"]
    assert without(plan, []).modules == plan.modules
    for names, says in [
        (["lscpi"], "did you mean lscpu"),
        (["lshw", "dmidecode", "lscpu"], "fewer"),
    ]:
        with pytest.raises(UsageError, match=says):
            without(load_plan("hardware"), names)


# What is installed.


def _module(name: str, command: str, *, optional: bool) -> PlannedModule:
    return PlannedModule(name, (command,), f"{name}.out", optional=optional)


def test_optional_modules_are_left_out_where_they_can_not_be_run(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    here = _module("here", "sh", optional=True)
    missing = _module("missing", "no-such-scanner", optional=True)
    data = _module("data", str(tmp_path / "data"), optional=True)
    chosen, left_out = choose(Plan("p", (missing, here, data)))
    assert chosen == (here,)
    assert [left.module for left in left_out] == [missing, data]
    assert "no such program on PATH" in left_out[0].why
    assert "is not executable" in left_out[1].why


def test_a_module_that_is_not_optional_must_be_there(tmp_path: Path) -> None:
    here = _module("here", "sh", optional=False)
    with pytest.raises(ScannerNotFound, match="the missing module's program no-such-scanner"):
        choose(Plan("p", (here, _module("missing", "no-such-scanner", optional=False))))
    with pytest.raises(ScannerError, match="is a directory"):
        choose(Plan("p", (here, _module("folder", str(tmp_path), optional=False))))


def test_a_plan_of_which_nothing_is_installed() -> None:
    plan = Plan("p", tuple(_module(f"m{n}", "no-such-scanner", optional=True) for n in range(3)))
    with pytest.raises(ScannerNotFound, match=r"install one of no-such-scanner$"):
        choose(plan)


# The ready-made ones.


def test_the_ready_made_plans() -> None:
    assert ready_made_names() == ["facts", "hardware", "inventory", "osquery", "packages", "sbom"]
    for name in ready_made_names():
        plan = load_plan(name)
        assert plan.name == name
        assert plan.description
        assert ready_made_text(name)
        for module in plan.modules:
            assert module.optional
            assert module.description


def test_the_inventory_has_all_that_the_others_have() -> None:
    others = [name for name in ready_made_names() if name != "inventory"]
    modules = {module for name in others for module in load_plan(name).modules}
    assert set(load_plan("inventory").modules) == modules


def test_what_the_ready_made_modules_find_depends_on_the_machine_or_does_not() -> None:
    about = {module.name: module.host_dependent for module in load_plan("inventory").modules}
    assert about == {
        "lshw": True,
        "dmidecode": True,
        "lscpu": True,
        "dpkg": False,
        "rpm": False,
        "apk": False,
        "osquery-system": True,
        "osquery-platform": True,
        "osquery-pci": True,
        "osquery-os": False,
        "osquery-users": False,
        "osquery-services": False,
        "facter": True,
        "syft": False,
    }


def test_plans_are_files_of_the_package() -> None:
    import guest_client

    folder = Path(guest_client.__file__).parent / "plans"
    assert {path.stem for path in folder.glob("*.toml")} == set(ready_made_names())
