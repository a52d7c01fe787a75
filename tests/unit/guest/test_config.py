from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_client.config import KEYS, Settings, load, parse_command, parse_seconds
from guest_client.endpoint import DEFAULT_ENABLER, parse_endpoint
from guest_client.errors import ConfigurationError
from guest_client.token import TokenFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("")
    return path


def test_the_defaults_are_the_designs(file: Path) -> None:
    settings = load({}, {}, file)
    assert str(settings.enabler) == DEFAULT_ENABLER == "auto"
    assert settings.enabler.base_url == "http://169.254.77.1:8777"
    assert settings.enabler.ca_file is None
    assert settings.enabler.token_file == TokenFile(Path("/etc/guest-client/token"), required=False)
    assert settings.deadline == 30
    assert settings.state_dir == Path("/var/lib/guest-client")
    assert settings.notify_program is None
    assert settings.sources == {}


def test_every_key_is_a_setting_with_its_default_documented(file: Path) -> None:
    settings = load({}, {}, file)
    for key in KEYS:
        assert key.meaning
        value = getattr(settings, key.name)
        if value in (None, ()):
            assert key.default  # in words: none, or made of another setting
        else:
            assert key.parse(key.default) == value
    assert {key.name for key in KEYS} <= set(Settings.__dataclass_fields__)


EXAMPLE = Path(__file__).parents[3] / "deploy/examples/guest-client.toml"
_COMMENTED_OUT = re.compile(r"^# (?=\w+ = |\[\[\w+\]\])", re.MULTILINE)


def test_the_example_has_the_defaults() -> None:
    settings = load({}, {}, EXAMPLE)
    assert dataclasses.replace(settings, file=None, sources={}) == Settings()
    for key in KEYS:
        if getattr(settings, key.name) not in (None, ()):
            assert key.name in settings.sources, f"{key.name} is not in {EXAMPLE.name}"


def test_the_example_has_every_key(tmp_path: Path) -> None:
    """What is commented out is right as well."""
    all_of_it = tmp_path / "all.toml"
    all_of_it.write_text(_COMMENTED_OUT.sub("", EXAMPLE.read_text()))
    settings = load({}, {}, all_of_it)
    assert set(settings.sources) == {key.name for key in KEYS}
    for key in KEYS:
        assert getattr(settings, key.name)


def test_the_environment_weighs_more_than_the_file_and_flags_most(file: Path) -> None:
    file.write_text(
        'enabler = "http://file:1"\ndeadline = 1\n'
        'state_dir = "/file"\nnotify_program = ["f", "g"]\n'
    )
    environment = {
        "GUEST_CLIENT_ENABLER": "http://environment:1",
        "GUEST_CLIENT_DEADLINE": "2.5",
        "GUEST_CLIENT_NOTIFY_PROGRAM": "e 'two words'",
        "HOME": "/root",
    }
    settings = load(
        {"enabler": parse_endpoint("http://flag:1"), "deadline": None}, environment, file
    )
    assert settings.enabler.host == "flag"
    assert settings.deadline == 2.5
    assert settings.state_dir == Path("/file")
    assert settings.notify_program == ("e", "two words")
    assert settings.file == file
    assert settings.sources == {
        "enabler": "the command line",
        "deadline": "GUEST_CLIENT_DEADLINE",
        "state_dir": str(file),
        "notify_program": "GUEST_CLIENT_NOTIFY_PROGRAM",
    }


def test_credentials_go_with_the_enabler(file: Path) -> None:
    file.write_text('token_file = "/etc/token"')
    flags = {"enabler": parse_endpoint("https://e:1")}
    enabler = load(flags, {"GUEST_CLIENT_CA_FILE": "/etc/ca.pem"}, file).enabler
    assert enabler.token_file == TokenFile(Path("/etc/token"), required=True)
    assert (enabler.ca_file, enabler.tls) == (Path("/etc/ca.pem"), True)


def test_the_environment_names_the_file(file: Path) -> None:
    file.write_text("deadline = 7")
    assert load({}, {"GUEST_CLIENT_CONFIG": str(file)}).deadline == 7


def test_an_empty_variable_is_not_set(file: Path) -> None:
    assert load({}, {"GUEST_CLIENT_ENABLER": ""}, file).sources == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("enabler = ", "is not TOML"),
        ("enabler", "is not TOML"),
        ('enabler = "http://a:1"\nenabler = "http://b:1"', "is not TOML"),
        ('enable = "x"', "unknown key 'enable'; did you mean enabler?"),
        ("dead_line = 3", "did you mean deadline?"),
        ("zzz = 3", "the keys are enabler, token_file, ca_file, deadline, state_dir, notify"),
        ("[enabler]\nurl = 1", "enabler: should be a string"),
        ('enabler = "ftp://x"', "enabler: 'ftp://x' is no address"),
        ('deadline = "soon"', "deadline: should be a number of seconds, not 'soon'"),
        ("deadline = 0", "more than 0"),
        ("deadline = -1", "more than 0"),
        ("deadline = nan", "more than 0"),
        ("deadline = inf", "more than 0"),
        ("deadline = true", "a number of seconds"),
        ("deadline = 1e9", "at most"),
        ('state_dir = "here"', "a full path"),
        ("state_dir = 5", "a string"),
        ("notify_program = []", "names no program"),
        ('notify_program = ""', "names no program"),
        ("notify_program = [1]", "array of strings"),
        ('notify_program = "a \'b"', "can't be split"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(file: Path, content: str, says: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        load({}, {}, file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 78


def test_a_file_that_is_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not TOML"):
        load({}, {}, file)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no configuration file"):
        load({}, {}, tmp_path / "none")
    with pytest.raises(ConfigurationError, match="there is no configuration file"):
        load({}, {"GUEST_CLIENT_CONFIG": str(tmp_path / "none")})


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't read"):
        load({}, {}, tmp_path)


def test_an_unknown_variable_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"GUEST_CLIENT_ENABLE; did you mean"):
        load({}, {"GUEST_CLIENT_ENABLE": "x"}, file)


def test_what_is_wrong_in_a_variable_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="GUEST_CLIENT_DEADLINE: should be"):
        load({}, {"GUEST_CLIENT_DEADLINE": "x"}, file)


_toml_like: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.sampled_from(KEYS), _toml_like)
def test_any_value_of_any_key_is_read_or_refused_with_a_word(key: Any, value: object) -> None:
    said: str | None = None
    try:
        assert key.parse(value) is not None
    except (TypeError, ValueError) as error:
        said = str(error)
    assert said is None or said


@given(st.floats() | st.text(max_size=6))
def test_seconds_are_positive_and_finite(value: object) -> None:
    try:
        seconds = parse_seconds(value)
    except ValueError:
        return
    assert 0 < seconds <= 86400


def test_a_command_is_split_as_a_shell_would() -> None:
    assert parse_command("a 'b c' d\\ e") == ("a", "b c", "d e")
