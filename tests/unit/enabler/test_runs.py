"""Which run of a VM this is: libvirt's files, and a real process behind them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from enabler.runs import Runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's file system, with this machine's own processes."""
    (tmp_path / "proc").symlink_to("/proc")
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("qemu:///system", "run/libvirt/qemu"),
        ("qemu+unix:///system?socket=/run/other", "run/libvirt/qemu"),
        ("qemu:///session", "run/user/7/libvirt/qemu/run"),
        ("lxc:///system", "run/libvirt/lxc"),
        ("lxc:///", "run/libvirt/lxc"),
        ("lxc+unix:///system", "run/libvirt/lxc"),
    ],
)
def test_a_run_is_its_process_and_ends_with_it(
    uri: str, folder: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    files = root / folder
    files.mkdir(parents=True)
    runs = Runs.of_uri(uri)
    # What it would look at on this machine, looked at below `root`.
    runs = Runs(root, runs.pid_files)
    process = subprocess.Popen(["sleep", "600"])
    try:
        # QEMU's driver writes a newline behind the number, LXC's none.
        (files / "ct1.pid").write_text(f"{process.pid}")
        (files / "ct1.xml").write_text("<domstatus/>")
        run, again = runs.of_process("ct1"), runs.of_process("ct1")
        assert run is not None
        assert again is not None
        assert run.key == again.key
        assert f"/{process.pid}/" in run.key
        assert run.alive()
        status = runs.status_file("ct1")
        assert status.unchanged()
        (files / "ct1.new").write_text("<domstatus/>")
        (files / "ct1.new").rename(files / "ct1.xml")
        assert not status.unchanged()
    finally:
        process.kill()
        process.wait()
    assert not run.alive()
    assert runs.of_process("ct1") is None
    with pytest.raises(OSError, match=r"ct2\.pid"):
        runs.of_process("ct2")
