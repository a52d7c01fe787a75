"""Programs and destinations as they are written down, and what is said about what is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from guest_client import config
from guest_client.agent.phases import Phase
from guest_client.agent.settings import (
    Destination,
    Program,
    parse_assignment,
    parse_destinations,
    parse_programs,
)
from guest_client.errors import ConfigurationError

FULL = """
watch_interval = 7
agent_id_file = "/etc/meter/id"

[[program]]
name = "meter"
command = ["/opt/meter/bin/reset", "--now"]
on = ["migrated", "cloned"]
timeout = 60
tries = 3
user = "meter"

[[program]]
name = "short"
command = "/bin/echo 'one word'"

[[destination]]
url = "https://licences.example.org/events"
ca_file = "/etc/guest-client/ca.pem"
secret_file = "/etc/guest-client/secret"
"""


def test_the_whole_of_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(FULL)
    settings = config.load({}, {}, file)
    assert settings.program == (
        Program(
            "meter",
            ("/opt/meter/bin/reset", "--now"),
            (Phase.MIGRATED, Phase.CLONED),
            60.0,
            3,
            "meter",
        ),
        Program("short", ("/bin/echo", "one word")),
    )
    assert settings.destination == (
        Destination(
            "https://licences.example.org/events",
            Path("/etc/guest-client/ca.pem"),
            Path("/etc/guest-client/secret"),
        ),
    )
    assert settings.watch_interval == 7
    assert settings.agent_id_file == Path("/etc/meter/id")


def test_the_environment_has_short_forms() -> None:
    settings = config.load(
        {},
        {
            "GUEST_CLIENT_PROGRAM": "meter=/opt/reset --now",
            "GUEST_CLIENT_DESTINATION": "http://one.example/ http://two.example/",
        },
    )
    assert settings.program == (Program("meter", ("/opt/reset", "--now")),)
    assert [d.url for d in settings.destination] == ["http://one.example/", "http://two.example/"]


def test_none_at_all_is_not_the_same_as_none_said(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("program = []")
    assert config.load({}, {}, file).program == ()
    file.write_text("")
    assert config.load({}, {}, file).program is None


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ("program = [1]", "array of tables"),
        ("[[program]]\ncommand = ['true']", "name is missing"),
        ("[[program]]\nname = 'a'", "command is missing"),
        ("[[program]]\nname = 'a b'\ncommand = ['true']", "no name"),
        ("[[program]]\nname = 'a'\ncommand = []", "names no program"),
        ("[[program]]\nname = 'a'\ncommand = \"it's\"", "split into words"),
        ("[[program]]\nname = 'a'\ncommand = 7", "array of strings"),
        ("[[program]]\nname = 'a'\ncommand = ['true']\non = ['moved']", "the phases are"),
        ("[[program]]\nname = 'a'\ncommand = ['true']\non = 7", "array of phases"),
        ("[[program]]\nname = 'a'\ncommand = ['true']\ntimeout = 0", "more than 0"),
        ("[[program]]\nname = 'a'\ncommand = ['true']\ntimeout = true", "number of seconds"),
        ("[[program]]\nname = 'a'\ncommand = ['true']\ntries = 0", "1 to 100"),
        ("[[program]]\nname = 'a'\ncommand = ['true']\ntries = 1.5", "whole number"),
        ("[[program]]\nname = 'a'\ncommand = ['true']\nwhen = 'now'", "unknown key 'when'"),
        ("[[program]]\nname = 'a'\ncommand = ['true']\n" * 2, "two programs"),
        ("[[destination]]\nurl = 'ftp://x/'", "http:// or https://"),
        ("[[destination]]\nurl = 'http://me:pw@x/'", "secret_file"),
        ("[[destination]]\nurl = 'http://x/'\nca_file = 'ca.pem'", "full path"),
        ("[[destination]]\nurl = 'http://x/'\n" * 2, "twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, toml: str, why: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(toml)
    tomllib.loads(toml)  # it is TOML; what is wrong is what it says
    with pytest.raises(ConfigurationError, match=why) as caught:
        config.load({}, {}, file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["", "a", "a=", "=b", "a b=c"])
def test_an_assignment_needs_both_sides(text: str) -> None:
    with pytest.raises(ValueError):
        parse_assignment(text)


def test_text_is_read_too() -> None:
    assert parse_programs("a=true now") == (Program("a", ("true", "now")),)
    assert parse_destinations("") == ()
