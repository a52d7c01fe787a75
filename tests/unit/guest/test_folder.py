"""The folder of a set: replaced as a whole, also when the publisher dies, whenever that is."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guest_client.errors import OutputError, OutputWriteError
from guest_client.folder import MANIFEST, Exchange, FolderDestination, exchange

from .sets import NAMES, fill, what_it_says

ROOT = Path(__file__).parents[3]


def _no_exchange(one: Path, other: Path) -> bool:
    return False


SWAPS = pytest.mark.parametrize("swap", [exchange, _no_exchange])


def _publish(
    folder: Path, said: str, names: tuple[str, ...] = NAMES, *, swap: Exchange = exchange
) -> None:
    output = FolderDestination(str(folder), swap=swap)
    part = output.part()
    output.publish(part, fill(part, said, names))


def _beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def test_an_exchange_swaps_two_folders_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
        (path / "name").write_text(path.name)
    if not exchange(one, other):
        pytest.fail(
            "this file system, or C library, has no exchange: run the tests on one that has"
        )
    assert (one / "name").read_text() == "other"
    assert (other / "name").read_text() == "one"
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "none")


@SWAPS
def test_a_set_is_put_where_nothing_was_and_then_replaced(tmp_path: Path, swap: Exchange) -> None:
    folder = tmp_path / "set"
    _publish(folder, "first", swap=swap)
    assert what_it_says(folder) == "first"
    _publish(folder, "second", ("one.out",), swap=swap)
    assert what_it_says(folder, ("one.out",)) == "second"
    assert _beside(folder) == []


def test_nothing_is_seen_before_it_is_published(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    output = FolderDestination(str(folder))
    assert _beside(folder) == []
    part = output.part()
    fill(part, "new")
    assert not folder.exists()
    assert stat.S_IMODE(part.path.stat().st_mode) == 0o700
    part.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir(mode=0o750)
    _publish(folder, "new")
    assert what_it_says(folder) == "new"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    _publish(folder, "newer")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)]
)
def test_a_new_set_has_the_modes_of_the_umask(
    tmp_path: Path, umask: int, folder: int, file: int
) -> None:
    before = os.umask(umask)
    try:
        _publish(tmp_path / "set", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == folder
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "set").iterdir()}
    assert modes == {file}


def test_a_symbolic_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/set")
    for said in ("first", "second"):
        _publish(tmp_path / "link", said)
        assert (tmp_path / "link").is_symlink()
        assert what_it_says(tmp_path / "real/set") == said


def test_what_no_scan_put_there_is_not_replaced(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "diary").write_text("mine")
    with pytest.raises(OutputError, match="diary"):
        FolderDestination(str(foreign))
    folder = tmp_path / "set"
    _publish(folder, "first")
    (folder / "diary").write_text("mine")
    with pytest.raises(OutputError, match="diary"):
        FolderDestination(str(folder))
    assert (folder / "diary").read_text() == "mine"
    assert _beside(folder) == ["foreign"]


def test_what_is_put_there_meanwhile_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    _publish(folder, "first")
    output = FolderDestination(str(folder))
    part = output.part()
    (folder / "diary").write_text("mine")
    with pytest.raises(OutputError, match="diary"):
        output.publish(part, fill(part, "second"))
    part.discard()
    assert (folder / "diary").read_text() == "mine"
    assert _beside(folder) == []


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{}",
        b"[]",
        b"nonsense",
        b'{"manifest_version": 99, "modules": []}',
        b'{"manifest_version": 1}',
        b'{"manifest_version": 1, "modules": [1]}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_folder_with_another_manifest_is_somebody_elses(tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(manifest)
    with pytest.raises(OutputError, match=r"manifest\.json"):
        FolderDestination(str(tmp_path))


def test_places_that_can_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, says in [
        ("", "name one with --output DIR"),
        ("-", "name one with --output DIR"),
        ("a\0b", "name one with --output DIR"),
        ("../file", "is a file"),
        (".", "the folder that we are in"),
        ("/", "something is mounted there"),
        ("/proc", "something is mounted there"),
        ("../none/set", "make it first"),
        ("../file/set", "can't create"),
        ("/proc/set", "can't create /proc/set"),
        ("../loop", "circle"),
        ("x" * 300, "can't create"),
    ]:
        with pytest.raises(OutputError, match=says) as caught:
            FolderDestination(name)
        assert caught.value.exit_code == 73
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "here", "loop"]


def test_a_file_is_made_afresh_for_each_run(tmp_path: Path) -> None:
    """What an earlier run left behind writes to a file that is no more."""
    part = FolderDestination(str(tmp_path / "set")).part()
    straggler = part.spool("one.out").stream
    second = part.spool("one.out").stream
    straggler.write(b"of the old host")
    straggler.close()
    second.write(b"new")
    second.close()
    assert (part.path / "one.out").read_bytes() == b"new"
    part.discard()


def test_a_full_disk_is_told_and_the_earlier_set_stays(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    _publish(folder, "first")
    output = FolderDestination(str(folder))
    part = output.part()
    manifest = fill(part, "second")
    (part.path / MANIFEST).symlink_to("/dev/full")  # "xb" must not follow it
    with pytest.raises(OutputWriteError):
        output.publish(part, manifest)
    part.discard()
    assert what_it_says(folder) == "first"
    assert _beside(folder) == []


# Dying.


def _die(folder: Path, step: int, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.unit.guest.dying_publisher", str(folder), str(step), how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("how", ["exchange", "renames"])
@pytest.mark.parametrize("earlier", [True, False])
def test_dying_at_any_step_leaves_the_earlier_set_or_the_new_one(
    tmp_path: Path, how: str, earlier: bool
) -> None:
    seen: list[str] = []
    step = 0
    while True:
        folder = tmp_path / f"{step}" / "set"
        folder.parent.mkdir()
        if earlier:
            _publish(folder, "old")
        done = _die(folder, step, how)
        if done.stdout:
            assert (done.stdout, done.returncode) == ("done\n", 0)
            break
        assert done.returncode == -9, done.stderr
        seen.append(what_it_says(folder) if folder.exists() else "nothing")
        # The next scan to go there mends what is to be mended.
        output = FolderDestination(str(folder))
        mended = what_it_says(folder) if folder.exists() else "nothing"
        assert mended == (seen[-1] if seen[-1] != "nothing" or not earlier else "old")
        assert _beside(folder) == []
        part = output.part()
        output.publish(part, fill(part, "next"))
        assert what_it_says(folder) == "next"
        assert _beside(folder) == []
        step += 1
    # In order: first as it was, perhaps nothing for a step, then the new one.
    before = "old" if earlier else "nothing"
    gap = ["nothing"] if earlier and how == "renames" else []
    assert [said for n, said in enumerate(seen) if n == 0 or seen[n - 1] != said] == [
        before,
        *gap,
        "new",
    ]
    assert step > 20


def test_a_part_that_somebody_is_at_work_in_is_left_alone(tmp_path: Path) -> None:
    first = FolderDestination(str(tmp_path / "set"))
    part = first.part()
    manifest = fill(part, "first")
    second = FolderDestination(str(tmp_path / "set"))
    other = second.part()
    second.publish(other, fill(other, "second"))
    assert what_it_says(tmp_path / "set") == "second"
    first.publish(part, manifest)
    assert what_it_says(tmp_path / "set") == "first"
    assert _beside(tmp_path / "set") == []


def test_a_set_that_was_put_aside_by_somebody_alive_is_left_alone(tmp_path: Path) -> None:
    folder, aside = tmp_path / "set", tmp_path / ".set.0123456789ab.old"
    _publish(folder, "old")
    folder.rename(aside)
    lock = os.open(aside, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    FolderDestination(str(folder))
    assert not folder.exists()
    os.close(lock)
    FolderDestination(str(folder))
    assert what_it_says(folder) == "old"


@pytest.mark.parametrize(
    ("how", "says", "then"),
    [("replaced", "replaceable", "of another"), ("looked-at", "1 False", "new")],
)
def test_another_scan_at_the_worst_moment_does_no_harm(
    tmp_path: Path, how: str, says: str, then: str
) -> None:
    folder = tmp_path / "set"
    _publish(folder, "old")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.guest.meddled_publisher", str(folder), how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (says, "")
    assert json.loads((folder / MANIFEST).read_bytes())["said"] == then


def test_half_a_set_is_not_put_back(tmp_path: Path) -> None:
    """It was being removed, and then somebody removed the set that had replaced it."""
    folder, aside = tmp_path / "set", tmp_path / ".set.0123456789ab.old"
    _publish(folder, "old")
    folder.rename(aside)
    (aside / "one.out").unlink()
    FolderDestination(str(folder))
    assert not folder.exists()


def test_only_what_is_ours_is_cleaned_up(tmp_path: Path) -> None:
    names = [".set.part", ".set.0123456789ab.partly", ".sets.0123456789ab.part", ".set.xyz.part"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".set.0123456789ab.part").write_text("a file")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".set.0123456789ac.part").symlink_to("elsewhere")
    _publish(tmp_path / "set", "new")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names, "set", "elsewhere", ".set.0123456789ab.part", ".set.0123456789ac.part"}


@SWAPS
def test_publishers_at_the_same_time_leave_one_whole_set(tmp_path: Path, swap: Exchange) -> None:
    """Their sets have different files, too. Without an exchange one may find no way in."""
    folder = tmp_path / "set"
    start = threading.Barrier(4)

    def publish(who: int) -> list[str]:
        start.wait()
        output = FolderDestination(str(folder), swap=swap)
        names = tuple(f"{who}.{name}" for name in NAMES)
        said: list[str] = []
        for _ in range(12):
            part = output.part()
            try:
                output.publish(part, fill(part, str(who), names))
            except OutputWriteError as error:
                said.append(str(error))
            finally:
                part.discard()
        return said

    with ThreadPoolExecutor(4) as pool:
        crowded = [said for each in pool.map(publish, range(4)) for said in each]
    said = json.loads((folder / MANIFEST).read_bytes())["said"]
    assert what_it_says(folder, tuple(f"{said}.{name}" for name in NAMES)) == said
    assert _beside(folder) == []
    assert all("run it again" in said for said in crowded)
    assert crowded == [] or swap is not exchange


def test_a_reader_sees_one_set_after_the_other_and_never_none(tmp_path: Path) -> None:
    """By exchange. The reader opens the folder, then its files in it, as the module says."""
    folder = tmp_path / "set"
    _publish(folder, "0")
    stop = threading.Event()

    def publish() -> None:
        for turn in range(1, 60):
            _publish(folder, str(turn))
        stop.set()

    writer = threading.Thread(target=publish)
    writer.start()
    wholes = 0
    last = 0
    while not stop.is_set():
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # never FileNotFoundError
        try:
            said = set()
            for name in NAMES:
                file = os.open(name, os.O_RDONLY, dir_fd=fd)
                said.add(os.read(file, 100))
                os.close(file)
        except FileNotFoundError:
            continue  # it was replaced, and removed, while we read
        finally:
            os.close(fd)
        assert len(said) == 1
        assert int(said.pop()) >= last
        wholes += 1
    writer.join()
    assert wholes > 0
    shutil.rmtree(folder)
