# SPDX-License-Identifier: GPL-2.0-only
"""What builds leave in the cache: listed, kept while it is used, removed; with real processes."""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from tree_help import make_kernel, take

from harness.cli.main import main
from harness.errors import InfraError
from harness.kernels import git, trees, workspace
from harness.kernels.store import Store

REPOSITORY = Path(__file__).parents[2]

# Reads a tree and, unless only that is wanted, begins to build it; goes on, and ends, at
# a line of input.
WORKER = """
import sys
from pathlib import Path
from harness.kernels import trees, workspace
from harness.kernels.programs import run
from harness.kernels.store import Store

cache, kernel, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def say(line):
    print(line, flush=True)

workspace.ROOM = dict.fromkeys(workspace.ROOM, 0)
store = Store(cache)
tree = trees.resolve(f"tree:{kernel}", store, say)
if what == "read":
    say("ready")
    sys.stdin.readline()
    say(" ".join(trees.checkout(tree, cache.parent / "src")))
else:
    with workspace.opened(tree, "x86_64", "plain", store, say) as work:
        workspace.ccache(store).mkdir(exist_ok=True)
        say("ready")
        if what == "child":
            run(["sh", "-c", "echo $$; echo $$ >pid.new; mv pid.new pid; exec sleep 600"],
                what="sleeping", where=work)
        sys.stdin.readline()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COHABIT_CACHE", str(tmp_path / "cache"))
    # No disk of a test has what a kernel takes.
    monkeypatch.setattr(workspace, "ROOM", dict.fromkeys(workspace.ROOM, 0))
    return tmp_path / "cache"


@pytest.fixture
def store(cache: Path) -> Iterator[Store]:
    made = Store(cache)
    yield made
    made.close()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return make_kernel(tmp_path / "linux")


@contextmanager
def worker(cache: Path, kernel: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(cache), str(kernel), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=kernel.parent,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    try:
        assert "ready\n" in process.stdout
        yield process
    finally:
        process.kill()
        process.communicate()


def build(kernel: Path, store: Store, flavour: str = "plain") -> Path:
    """Leave behind what a build would, a megabyte of each, that no file system makes less."""
    with workspace.opened(take(kernel, store), "x86_64", flavour, store, print) as work:
        (work / "out").write_bytes(os.urandom(10**6))
    workspace.ccache(store).mkdir(exist_ok=True)
    (workspace.ccache(store) / "x").write_bytes(os.urandom(10**6))
    return work


def kinds(found: list[workspace.Scratch]) -> list[str]:
    return sorted(scratch.kind for scratch in found)


def refuse() -> NoReturn:
    raise BlockingIOError


def test_what_there_is(kernel: Path, store: Store) -> None:
    assert workspace.entries(store) == []
    before = time.time() - 1
    work = build(kernel, store, "debug")
    found = {scratch.kind: scratch for scratch in workspace.entries(store)}
    assert {kind: scratch.label for kind, scratch in found.items()} == {
        "work": f"tree:{kernel} (debug)",
        "git": str(kernel),
        "ccache": "compiled files, of all trees",
    }
    assert found["work"].path == work
    for scratch in found.values():
        assert before <= scratch.used <= time.time() + 1
    assert found["work"].size >= 10**6
    assert found["ccache"].size >= 10**6
    assert found["git"].size < 10**6


def test_one_workspace_a_tree_and_flavour(kernel: Path, store: Store) -> None:
    plain, debug = build(kernel, store), build(kernel, store, "debug")
    assert plain != debug
    with workspace.opened(take(f"{kernel}@v7.2", store), "x86_64", "plain", store, print) as work:
        assert work == plain
    labels = [s.label for s in workspace.entries(store) if s.kind == "work"]
    assert sorted(labels) == [f"tree:{kernel} (debug)", f"tree:{kernel}@v7.2 (plain)"]


def test_builds_of_several_at_once(kernel: Path, store: Store) -> None:
    """They share ccache's directory."""
    with (
        workspace.opened(take(kernel, store), "x86_64", "plain", store, print),
        git.locked(store.root / "locks/ccache", refuse, fcntl.LOCK_SH),
        pytest.raises(BlockingIOError),
        git.locked(store.root / "locks/ccache", refuse),
    ):
        pass


def test_size_is_that_on_the_disk(kernel: Path, store: Store) -> None:
    work = build(kernel, store)
    with (work / "sparse").open("wb") as file:
        file.truncate(10**9)
    (work / "again").hardlink_to(work / "out")
    (size,) = [s.size for s in workspace.entries(store) if s.kind == "work"]
    assert 10**6 <= size < 2 * 10**6


def test_not_in_git(kernel: Path, store: Store) -> None:
    shutil.rmtree(kernel / ".git")
    take(kernel, store)
    assert [s.label for s in workspace.entries(store)] == [str(kernel)]


def test_left_by_an_older_cohabit(kernel: Path, store: Store) -> None:
    work = build(kernel, store)
    repository = take(kernel, store).repository
    store.close()
    for place in (work, repository):
        (place / "about").unlink()
    (repository / "lock").unlink()
    names = {s.kind: s.label for s in workspace.entries(store)}
    assert (names["work"], names["git"]) == (work.name, repository.name)
    assert kinds(workspace.prune(store)[0]) == ["ccache", "git", "work"]


def test_name_that_is_no_line_of_text(store: Store, tmp_path: Path) -> None:
    kernel = make_kernel(tmp_path / os.fsdecode(b"a\nb\xff"))
    take(kernel, store)
    (found,) = workspace.entries(store)
    assert found.label == f"{tmp_path}/a b\N{REPLACEMENT CHARACTER}"


def test_all_is_removed(kernel: Path, store: Store, cache: Path) -> None:
    build(kernel, store)
    store.close()
    removed, kept = workspace.prune(store)
    assert (kinds(removed), kept) == (["ccache", "git", "work"], [])
    assert not any(scratch.path.exists() for scratch in removed)
    assert workspace.entries(store) == []
    assert list((cache / "tmp").iterdir()) == []
    assert workspace.prune(store) == ([], [])
    build(kernel, store)


def test_by_age(kernel: Path, store: Store) -> None:
    work, other = build(kernel, store), build(kernel, store, "debug")
    store.close()
    os.utime(work / "lock", (0, 0))
    removed, kept = workspace.prune(store, unused_for=3600)
    assert ([s.path for s in removed], kept) == ([work], [])
    assert other.is_dir()
    # To open one is to use it, whether anything is built or not.
    os.utime(other / "lock", (0, 0))
    os.utime(take(kernel, store).repository / "lock", (0, 0))
    with workspace.opened(take(kernel, store), "x86_64", "debug", store, print):
        pass
    store.close()
    assert workspace.prune(store, unused_for=3600) == ([], [])


def test_a_build_keeps_all_three(kernel: Path, store: Store, cache: Path) -> None:
    idle = build(kernel, store, "debug")
    store.close()
    with worker(cache, kernel, "build"):
        removed, kept = workspace.prune(store)
        assert ([s.path for s in removed], kinds(kept)) == ([idle], ["ccache", "git", "work"])
        assert all(scratch.path.is_dir() for scratch in kept)
    assert kinds(workspace.prune(store)[0]) == ["ccache", "git", "work"]


def test_who_read_a_tree_keeps_its_repository(
    kernel: Path, store: Store, cache: Path, tmp_path: Path
) -> None:
    """A build checks it out long after it was read."""
    build(kernel, store)
    store.close()
    with worker(cache, kernel, "read") as process:
        removed, kept = workspace.prune(store)
        assert (kinds(removed), kinds(kept)) == (["ccache", "work"], ["git"])
        assert "kernel/a.c" in process.communicate("\n")[0].split()
        assert process.returncode == 0
    assert (tmp_path / "src/kernel/a.c").is_file()
    assert kinds(workspace.prune(store)[0]) == ["git"]


def test_repository_that_is_just_opened(kernel: Path, store: Store) -> None:
    repository = take(kernel, store).repository
    store.close()
    with git.locked(repository.with_suffix(".lock")):
        assert kinds(workspace.prune(store)[1]) == ["git"]
    assert kinds(workspace.prune(store)[0]) == ["git"]


def test_until_the_store_is_closed(kernel: Path, store: Store) -> None:
    tree = take(kernel, store)
    assert kinds(workspace.prune(store)[1]) == ["git"]
    store.close()
    assert kinds(workspace.prune(store)[0]) == ["git"]
    assert take(kernel, store) == tree


def test_workspace_outlives_the_repository(kernel: Path, store: Store, cache: Path) -> None:
    """The tree is read anew, into a repository of the same name, and nothing is compiled."""
    tree = take(kernel, store)
    with workspace.opened(tree, "x86_64", "plain", store, print) as work:
        assert trees.checkout(tree, work / "src")
    store.close()
    os.utime(tree.repository / "lock", (0, 0))
    assert kinds(workspace.prune(store, unused_for=3600)[0]) == ["git"]
    (kernel / "kernel/a.c").write_text("int a, changed;\n")
    tree = take(kernel, store)
    with workspace.opened(tree, "x86_64", "plain", store, print) as work:
        assert trees.checkout(tree, work / "src") == ["kernel/a.c"]


def test_what_a_killed_build_started_keeps_its_workspace(
    kernel: Path, store: Store, cache: Path, tmp_path: Path
) -> None:
    with worker(cache, kernel, "child") as process:
        while not (tmp_path / "pid").exists():
            assert process.poll() is None
        process.kill()
        process.wait()
    pid = int((tmp_path / "pid").read_text())
    try:
        removed, kept = workspace.prune(store)
        assert (kinds(removed), kinds(kept)) == (["git"], ["ccache", "work"])
    finally:
        gone = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([gone], [], [], 30)
        os.close(gone)
    assert kinds(workspace.prune(store)[0]) == ["ccache", "work"]


@pytest.mark.parametrize("made_anew", [False, True])
def test_pruned_while_another_waits(kernel: Path, store: Store, made_anew: bool) -> None:
    """What the other then holds is the lock that everybody sees."""
    tree = take(kernel, store)
    work = build(kernel, store)
    said: list[str] = []
    waiting, inside, done = threading.Event(), threading.Event(), threading.Event()

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    def other() -> None:
        with workspace.opened(tree, "x86_64", "plain", store, say):
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=other)
    with git.locked(work / "lock"):
        thread.start()
        assert waiting.wait(60)
        work.rename(store.root / "tmp/pruned")
        if made_anew:
            work.mkdir()
            (work / "lock").touch()
    try:
        assert inside.wait(60)
        with pytest.raises(BlockingIOError), git.locked(work / "lock", refuse):
            pass
    finally:
        done.set()
        thread.join()
    assert said == [f"another cohabit builds tree:{kernel} (plain); waiting for it"]


def test_pruned_between_its_making_and_its_lock(
    kernel: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = git.locked
    opened: list[Path] = []

    def locked(path: Path, *more: object, **others: object) -> object:
        opened.append(path)
        if len(opened) == 1:
            shutil.rmtree(path.parent)
        return real(path, *more, **others)  # type: ignore[arg-type]

    tree = take(kernel, store)
    monkeypatch.setattr(git, "locked", locked)
    with workspace.opened(tree, "x86_64", "plain", store, print) as work:
        assert opened[:2] == [work / "lock", work / "lock"]
        with pytest.raises(BlockingIOError), real(work / "lock", refuse):
            pass


def test_two_prune_at_once(
    kernel: Path, store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one removes all after we looked."""
    build(kernel, store)
    store.close()
    found = workspace.entries(store)
    assert len(workspace.prune(store)[0]) == 3
    monkeypatch.setattr(workspace, "entries", lambda _: found)
    assert workspace.prune(store) == ([], [])
    assert not any(scratch.path.exists() for scratch in found)


def test_killed_while_pruning(
    kernel: Path, store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a repository is none."""

    def killed(path: Path) -> None:
        (path / "HEAD").unlink()
        raise KeyboardInterrupt

    tree = take(kernel, store)
    store.close()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workspace, "rmtree", killed)
        workspace.prune(store)
    assert list((cache / "tmp").iterdir())
    again = Store(cache)
    assert list((cache / "tmp").iterdir()) == []
    assert take(kernel, again) == tree
    again.close()


def test_that_cannot_be_removed(
    kernel: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    build(kernel, store)
    monkeypatch.setattr(workspace, "rmtree", refused)
    with pytest.raises(InfraError, match=r"can't be used: .*Permission denied"):
        workspace.prune(store)


def test_no_room(kernel: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is made; what is there already was not too much."""
    tree = take(kernel, store)
    monkeypatch.setattr(workspace, "ROOM", {"plain": 0, "debug": 7 * 10**18})
    with (
        pytest.raises(InfraError) as caught,
        workspace.opened(tree, "x86_64", "debug", store, print),
    ):
        pass
    assert re.fullmatch(
        re.escape(f"no room to build tree:{kernel} (debug): it takes about 7000000000 GB in ")
        + re.escape(f"{store.root}, where ")
        + r"\d+\.\d GB are free",
        caught.value.message,
    )
    assert "kernels prune" in caught.value.remedy
    assert "COHABIT_CACHE" in caught.value.remedy
    assert [s.kind for s in workspace.entries(store)] == ["git"]
    build(kernel, store)
    monkeypatch.setattr(workspace, "ROOM", {"plain": 7 * 10**18})
    build(kernel, store)


# --- cohabit kernels --------------------------------------------------------------------------


def a_kernel(tree: Path) -> None:
    (tree / "image").write_bytes(bytes(10**6))


def test_lines(kernel: Path, store: Store, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(kernel, store)
    store.get("built", {}, a_kernel, label="a kernel", say=print)
    store.close()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"built        1 MB  used {today}  a kernel",
        f"ccache       1 MB  used {today}  compiled files, of all trees",
        f"git          0 MB  used {today}  {kernel}",
        f"work         1 MB  used {today}  tree:{kernel} (plain)",
    ]
    assert main(["kernels"]) == 0
    assert capsys.readouterr().out.splitlines() == [*lines, f"3 MB in {cache}"]
    with worker(cache, kernel, "read"):
        assert main(["kernels", "prune"]) == 0
    removed, in_use = [lines[0], lines[1], lines[3]], lines[2]
    told = capsys.readouterr().out.splitlines()
    assert sorted(told[:3]) == [f"removed {line}" for line in removed]
    assert told[3:] == [f"in use  {in_use}", "3 MB freed"]
    assert main(["kernels"]) == 0
    assert capsys.readouterr().out.splitlines() == [in_use, f"0 MB in {cache}"]


def test_days(kernel: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    work = build(kernel, store)
    store.close()
    then = time.time() - 3 * 86400
    os.utime(work / "lock", (then, then))
    assert main(["kernels", "prune", "--unused-for", "4"]) == 0
    assert capsys.readouterr().out == "0 MB freed\n"
    assert main(["kernels", "prune", "--unused-for", "2"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("removed work         1 MB  used ")
    assert told[1:] == ["1 MB freed"]
