"""The agent ID: kept whole, regenerated once for each trigger, readable by anyone."""

from __future__ import annotations

import json
import multiprocessing
import uuid
from pathlib import Path

import pytest

from guest_client.agent import agent_id
from guest_client.errors import StateError

from .conftest import AgentHome


def test_the_first_is_made_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "agent-id"
    first = agent_id.show(file)
    assert uuid.UUID(first.id).version == 4
    assert file.read_text() == f"{first.id}\n"
    assert agent_id.show(file) == first
    assert file.stat().st_mode & 0o777 == 0o644


def test_each_regeneration_makes_a_new_one_and_keeps_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "agent-id"
    first = agent_id.show(file)
    second = agent_id.regenerate(file, None)
    third = agent_id.regenerate(file, None)
    assert len({first.id, second.id, third.id}) == 3
    assert (second.previous, third.previous) == (first.id, second.id)
    assert agent_id.show(file) == third


def test_for_one_trigger_there_is_one_new_id(tmp_path: Path) -> None:
    file = tmp_path / "agent-id"
    old = agent_id.show(file)
    made = agent_id.regenerate(file, "k1")
    assert agent_id.regenerate(file, "k1") == made
    assert agent_id.id_before(file, "k1") == old.id
    assert agent_id.id_before(file, "k2") == made.id
    other = agent_id.regenerate(file, "k2")
    assert other.previous == made.id


def test_a_crash_between_the_two_files_is_made_good(tmp_path: Path) -> None:
    file = tmp_path / "agent-id"
    old = agent_id.show(file)
    made = agent_id.regenerate(file, "k1")
    file.write_text(f"{old.id}\n")  # as if killed before the second was written
    assert agent_id.regenerate(file, "k1") == made
    assert agent_id.read_id(file) == made.id
    file.unlink()
    assert agent_id.show(file) == made


def test_a_damaged_history_is_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / "agent-id"
    old = agent_id.show(file)
    (tmp_path / "agent-id.history").write_text("{")
    assert agent_id.show(file).id == old.id
    assert agent_id.regenerate(file, "k1").previous == old.id


def test_another_products_file_is_read_by_its_first_line(tmp_path: Path) -> None:
    file = tmp_path / "id"
    assert agent_id.read_id(file) is None
    file.write_text("")
    assert agent_id.read_id(file) is None
    file.write_bytes(b"  METER-0042 \nmore\n")
    assert agent_id.read_id(file) == "METER-0042"
    file.write_bytes(b"\x1b[31mred\n")
    assert agent_id.read_id(file) == "\\x1b[31mred"


def test_many_at_once_agree_for_one_trigger(tmp_path: Path) -> None:
    file = tmp_path / "agent-id"
    agent_id.show(file)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        made = pool.starmap(_regenerate, [(file, "k1")] * 8)
    assert len(set(made)) == 1
    assert agent_id.read_id(file) == made[0]


def _regenerate(file: Path, trigger: str) -> str:
    return agent_id.regenerate(file, trigger).id


def test_a_place_that_cant_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--file"):
        agent_id.regenerate(tmp_path / "file" / "agent-id", None)
    (tmp_path / "folder" / "agent-id").mkdir(parents=True)
    with pytest.raises(StateError):
        agent_id.regenerate(tmp_path / "folder" / "agent-id", None)


def test_the_commands(home: AgentHome) -> None:
    first = home.run("agent-id", "show").strip()
    assert (home.state_dir / "agent-id").read_text().strip() == first
    second = home.run("agent-id", "regenerate", env={"TRIGGER_KEY": "k1"}).strip()
    assert second != first
    assert home.run("agent-id", "regenerate", env={"TRIGGER_KEY": "k1"}).strip() == second
    file = home.home / "elsewhere"
    third = home.run("agent-id", "regenerate", "--file", str(file)).strip()
    assert file.read_text().strip() == third
    shown = home.json("agent-id", "show")
    assert (shown["id"], shown["previous"], shown["trigger"]) == (second, first, "k1")
    assert json.loads((home.state_dir / "agent-id.history").read_text())["id"] == second
