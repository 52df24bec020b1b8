# SPDX-License-Identifier: GPL-2.0-only
"""The private mounts of a run, really mounted."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vm.namespace import SETUP_FAILED, Bind, chroot_command, command


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def layer(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(content)
    return path


def run(
    script: str, mnt: Path, lowers: Sequence[Path], binds: Sequence[Bind] = ()
) -> subprocess.CompletedProcess[str]:
    words = command(["sh", "-c", script], lowers=lowers, mountpoint=mnt, binds=binds)
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_upper_layer_wins_and_nothing_is_writable(tmp_path: Path, mnt: Path) -> None:
    top = layer(tmp_path / "top", a="top")
    bottom = layer(tmp_path / "bottom", a="bottom", b="bottom")
    done = run(f"cat {mnt}/a {mnt}/b; touch {mnt}/c || exit 7", mnt, [top, bottom])
    assert (done.stdout, done.returncode) == ("topbottom", 7)
    assert list(mnt.iterdir()) == []


@pytest.mark.parametrize("name", ["a:b", "a,b", "a b", "a\\b", "a'b", '"', "$HOME", "-x"])
def test_any_name_of_a_layer(tmp_path: Path, mnt: Path, name: str) -> None:
    done = run(f"cat {mnt}/file", mnt, [layer(tmp_path / name, file="content")])
    assert done.stdout == "content", done.stderr


def test_binds(tmp_path: Path, mnt: Path) -> None:
    shared, fixed = layer(tmp_path / "shared"), layer(tmp_path / "fixed", file="1")
    binds = [(shared, "new/deep", True), (fixed, "/fixed", False)]
    script = f"cat {mnt}/fixed/file; echo 2 >{mnt}/new/deep/out; touch {mnt}/fixed/x || exit 5"
    done = run(script, mnt, [layer(tmp_path / "root")], binds)
    assert (done.stdout, done.returncode) == ("1", 5)
    assert (shared / "out").read_text() == "2\n"
    assert not (fixed / "x").exists()


def test_where_the_command_starts(tmp_path: Path, mnt: Path) -> None:
    done = run("pwd; id -u", mnt, [layer(tmp_path / "root")])
    assert done.stdout == f"{Path.cwd()}\n0\n"


def test_failure_to_set_up_is_told_apart(tmp_path: Path, mnt: Path) -> None:
    done = run("echo never", mnt, [tmp_path / "missing"])
    assert done.returncode == SETUP_FAILED
    assert done.stdout == ""
    assert f"cannot set up the guest's files: layer {tmp_path}/missing" in done.stderr


def test_sigkill_of_the_outermost_ends_everything(tmp_path: Path, mnt: Path) -> None:
    script = "sh -c 'echo $$; exec sleep 600' & wait"
    words = command(["sh", "-c", script], lowers=[layer(tmp_path / "root")], mountpoint=mnt)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    (init,) = _children(process.pid)
    handles = [os.pidfd_open(pid) for pid in (init, *_children(init))]
    assert len(handles) == 2
    process.kill()
    process.stdout.close()
    process.wait()
    try:
        for handle in handles:
            assert select.select([handle], [], [], 60)[0], "a process outlived its namespace"
    finally:
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
    assert str(mnt) not in Path("/proc/self/mountinfo").read_text()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_chroot(tmp_path: Path, mnt: Path) -> None:
    """The host's own /usr stands in for a root file system."""
    root = layer(tmp_path / "root")
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).exists():
            (root / name).symlink_to(f"usr/{name}")
    (root / "usr").mkdir()
    work = layer(tmp_path / "work")
    script = "pwd; echo $PATH $X; cat /proc/self/comm; echo 1 >/dev/null; touch /tmp/a /build/out"
    words = chroot_command(
        ["sh", "-c", script],
        lowers=[root],
        mountpoint=mnt,
        binds=[(Path("/usr"), "usr", False), (work, "build", True)],
        env={"X": "y"},
    )
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "/\n/usr/sbin:/usr/bin:/sbin:/bin y\ncat\n", done.stderr
    assert (work / "out").exists()
