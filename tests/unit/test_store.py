# SPDX-License-Identifier: GPL-2.0-only
"""The cache, with real processes that are killed at its worst moments."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import InfraError
from harness.kernels.store import Store, default_root, key_of, rmtree

REPOSITORY = Path(__file__).parents[2]

# Makes an entry, telling how far it is; stops at the word given as second
# argument until a line comes in.
WORKER = """
import sys
from pathlib import Path
from harness.kernels.programs import run
from harness.kernels.store import Store
root, stop = Path(sys.argv[1]), sys.argv[2]

def at(word):
    print(word, flush=True)
    if word == stop:
        sys.stdin.readline()

def make(tree):
    at("begin")
    for number in range(200):
        (tree / f"file{number}").write_text("x" * number)
    at("half")
    if stop == "child":
        print("child", flush=True)
        run(["sh", "-c", f"echo $$ >{tree}/pid.new; mv {tree}/pid.new {tree}/pid; exec sleep 600"],
            what="sleeping", where=tree)
    at("made")

store = Store(root)
tree = store.get("thing", {"a": "1"}, make, label="the thing", say=lambda s: print(s, flush=True))
at("done")
"""


def nothing(_: str) -> None:
    pass


def make(tree: Path) -> list[str]:
    (tree / "sub").mkdir()
    (tree / "sub/data").write_text("hello")
    (tree / "image").write_text("important")
    (tree / "link").symlink_to("image")
    return ["image"]


def get(store: Store, said: list[str] | None = None) -> Path:
    say = nothing if said is None else said.append
    return store.get("thing", {"a": "1"}, make, label="the thing", say=say)


def never(_: Path) -> None:
    raise AssertionError("it is in the cache")


@contextmanager
def worker(root: Path, stop: str, wait: bool = True) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(root), stop],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    try:
        if wait:
            expect(process, stop)
        yield process
    finally:
        process.kill()
        process.communicate()


def expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"{word!r} never came")


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def in_tmp(root: Path) -> list[Path]:
    return list((root / "tmp").iterdir())


def test_made_once_and_found_again(tmp_path: Path) -> None:
    tree = get(Store(tmp_path))
    assert (tree / "sub/data").read_text() == "hello"
    again = Store(tmp_path).get("thing", {"a": "1"}, never, label="", say=nothing)
    assert again == tree
    assert in_tmp(tmp_path) == []


def test_key_is_made_of_kind_and_inputs() -> None:
    assert key_of("a", {"x": "1", "y": "2"}) == key_of("a", {"y": "2", "x": "1"})
    others = [key_of("b", {"x": "1"}), key_of("a", {"x": "2"}), key_of("a", {"y": "1"})]
    assert key_of("a", {"x": "1"}) not in others


@pytest.mark.parametrize("moment", ["begin", "half", "made"])
def test_killed_while_making(tmp_path: Path, moment: str) -> None:
    with worker(tmp_path, moment) as process:
        assert len(in_tmp(tmp_path)) == 1
        process.kill()
        process.wait()
    store = Store(tmp_path)
    assert in_tmp(tmp_path) == []
    assert store.entries() == []
    assert (get(store) / "image").read_text() == "important"


def test_killed_at_any_moment_after_making(tmp_path: Path) -> None:
    """The kill lands somewhere between the last file and the rename, or after it."""
    for number in range(8):
        root = tmp_path / str(number)
        with worker(root, "half") as process:
            go_on(process)
            expect(process, "made")
            process.kill()
            process.wait()
        store = Store(root)
        assert in_tmp(root) == []
        said: list[str] = []
        whole = bool(store.entries())
        tree = store.get("thing", {"a": "1"}, never if whole else make, label="", say=said.append)
        assert said == []
        assert tree.is_dir()


def test_the_living_are_not_swept(tmp_path: Path) -> None:
    with worker(tmp_path, "half") as process:
        assert Store(tmp_path).sweep() == 0
        assert len(in_tmp(tmp_path)) == 1
        go_on(process)
        expect(process, "done")
    assert len(Store(tmp_path).entries()) == 1


def test_what_a_killed_run_started_is_not_pulled_away(tmp_path: Path) -> None:
    with worker(tmp_path, "child") as process:
        (work,) = in_tmp(tmp_path)
        pid_file = work / "tree/pid"
        while not pid_file.exists():
            assert process.poll() is None
        process.kill()
        process.wait()
    pid = int(pid_file.read_text())
    try:
        Store(tmp_path)
        assert in_tmp(tmp_path) == [work]
    finally:
        # Its own pidfd tells when it is gone: nobody is its parent any more.
        gone = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([gone], [], [], 30)
        os.close(gone)
    Store(tmp_path)
    assert in_tmp(tmp_path) == []


def test_two_at_once_make_one(tmp_path: Path) -> None:
    with worker(tmp_path, "half") as first, worker(tmp_path, "done", wait=False) as second:
        expect(second, "waiting for it")
        go_on(first)
        expect(first, "done")
        assert second.stdout is not None
        assert second.stdout.readline() == "done\n"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("sub/data", "hell", "sub/data has 4 bytes instead of 5"),
        ("sub/data", None, "sub/data: No such file or directory"),
        ("image", "IMPORTANT", "image has changed"),
        ("link", None, "link: No such file or directory"),
    ],
)
def test_damage_is_said_and_mended(
    tmp_path: Path, name: str, content: str | None, complaint: str
) -> None:
    store = Store(tmp_path)
    tree = get(store)
    if content is None:
        (tree / name).unlink()
    else:
        (tree / name).write_text(content)
    said: list[str] = []
    assert get(Store(tmp_path), said) == tree
    assert said == [f"cache: the thing is damaged ({complaint}); making it anew"]
    assert (tree / "sub/data").read_text() == "hello"
    assert (tree / "image").read_text() == "important"
    assert (tree / "link").is_symlink()


def test_damaged_manifest(tmp_path: Path) -> None:
    tree = get(Store(tmp_path))
    (tree.parent / "manifest.json").write_text('{"kind": ')
    store = Store(tmp_path)
    assert [entry.label for entry in store.entries()] == ["(damaged)"]
    said: list[str] = []
    get(store, said)
    assert "manifest" in said[0]
    assert [entry.label for entry in store.entries()] == ["the thing"]


def test_damaged_but_in_use_is_kept_for_its_user(tmp_path: Path) -> None:
    with worker(tmp_path, "done"):
        (entry,) = Store(tmp_path).entries()
        (entry.tree / "file7").unlink()
        get(Store(tmp_path), [])
        # The worker's copy is out of the way, not gone.
        (moved,) = in_tmp(tmp_path)
        assert (moved / "tree/file8").is_file()
    Store(tmp_path)
    assert in_tmp(tmp_path) == []


def test_failed_make_leaves_nothing(tmp_path: Path) -> None:
    def fail(tree: Path) -> None:
        (tree / "x").write_text("x")
        (tree / "closed").mkdir()
        (tree / "closed/y").write_text("y")
        (tree / "closed").chmod(0o500)
        raise InfraError("no such luck")

    store = Store(tmp_path)
    with pytest.raises(InfraError, match="no such luck"):
        store.get("thing", {}, fail, label="", say=nothing)
    assert in_tmp(tmp_path) == []
    assert store.entries() == []


def test_remove_refuses_what_is_in_use(tmp_path: Path) -> None:
    with worker(tmp_path, "done"):
        store = Store(tmp_path)
        (entry,) = store.entries()
        with pytest.raises(InfraError, match="in use"):
            store.remove(entry)
        removed, kept = store.prune()
        assert (removed, [e.key for e in kept]) == ([], [entry.key])
        assert (entry.tree / "file1").is_file()
    store.remove(entry)
    assert store.entries() == []
    assert in_tmp(tmp_path) == []


def test_use_keeps_an_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    get(store)
    store.close()
    (entry,) = store.entries()
    with store.use(entry) as tree, pytest.raises(InfraError, match="in use"):
        assert (tree / "image").is_file()
        store.remove(entry)
    store.remove(entry)
    with pytest.raises(InfraError, match="gone"), store.use(entry):
        pass


def test_prune_by_age(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = get(store)
    store.get("other", {}, make, label="new", say=nothing)
    store.close()
    os.utime(old.parent / "lock", (0, 0))
    removed, _ = store.prune(unused_for=3600)
    assert [entry.label for entry in removed] == ["the thing"]
    assert [entry.label for entry in store.entries()] == ["new"]


def test_holes_take_no_room(tmp_path: Path) -> None:
    def make(tree: Path) -> list[str]:
        with (tree / "memory").open("wb") as file:
            file.write(b"x" * 4096)
            file.truncate(1 << 30)
        return []

    store = Store(tmp_path)
    tree = store.get("thing", {}, make, label="memory", say=nothing)
    (entry,) = store.entries("thing")
    assert 0 < entry.size < 1 << 20
    # And it is found damaged when it is shorter, all the same.
    os.truncate(tree / "memory", 1 << 29)
    store.close()
    said: list[str] = []
    Store(tmp_path).get("thing", {}, make, label="memory", say=said.append)
    assert any("memory has" in line for line in said)


def test_entry_tells_what_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    get(store)
    (entry,) = store.entries("thing")
    assert (entry.kind, entry.label, dict(entry.inputs)) == ("thing", "the thing", {"a": "1"})
    assert entry.size == len("hello") + len("important") + len("image")
    assert store.find("thing", {"a": "1"}) == entry
    assert store.find("thing", {"a": "2"}) is None
    assert store.entries("kernel") == []


FILL = """
import json, os, subprocess, sys
from pathlib import Path
from harness.errors import InfraError
from harness.kernels.programs import run
from harness.kernels.store import Store
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", root], check=True)

def by_python(tree):
    (tree / "big").write_bytes(b"x" * 2_000_000)

def by_program(tree):
    run(["dd", "if=/dev/zero", f"of={tree}/big", "bs=1M", "count=2"], what="dd", where=tree)

store = Store(root)
answers = []
for make in by_python, by_program:
    try:
        store.get("thing", {}, make, label="", say=print)
    except InfraError as error:
        answers.append([error.message, error.remedy, os.listdir(root / "tmp")])
print(json.dumps(answers))
"""


def test_full_disk(tmp_path: Path) -> None:
    """On a real full file system: a small tmpfs in a mount namespace."""
    words = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    done = subprocess.run(
        [*words, sys.executable, "-c", FILL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    answers = json.loads(done.stdout)
    assert len(answers) == 2
    for message, remedy, left in answers:
        assert str(tmp_path) in message
        assert "No space left on device" in message
        assert "bytes free" in message
        assert "kernels prune" in remedy
        assert "COHABIT_CACHE" in remedy
        assert left == []


def test_root_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfraError, match="can't be used") as caught:
        Store(tmp_path / "file")
    assert "COHABIT_CACHE" in caught.value.remedy


def test_rmtree_of_read_only_directories(tmp_path: Path) -> None:
    inner = tmp_path / "top/inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("")
    inner.chmod(0o500)
    (tmp_path / "top").chmod(0o500)
    rmtree(tmp_path / "top")
    assert not (tmp_path / "top").exists()


def test_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COHABIT_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_root() == Path("/h/.cache/cohabit")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_root() == Path("/x/cohabit")
    monkeypatch.setenv("COHABIT_CACHE", str(tmp_path))
    assert default_root() == tmp_path


def test_what_one_is_done_with_can_be_dropped(tmp_path: Path) -> None:
    """Though not while another uses it; what was discarded is made anew."""
    ours, theirs = Store(tmp_path), Store(tmp_path)
    for store in (ours, theirs):
        store.get("thing", {"a": "1"}, make, label="a", say=nothing)
    (entry,) = ours.entries("thing")
    with pytest.raises(InfraError, match="in use"):
        ours.drop(entry)
    theirs.close()
    ours.drop(entry)
    assert ours.entries("thing") == []
    ours.get("thing", {"a": "1"}, make, label="a", say=nothing)
    ours.discard("thing", {"a": "1"})
    ours.discard("thing", {"a": "none"})
    assert ours.entries("thing") == []
    assert list((tmp_path / "tmp").iterdir()) == []
    ours.close()
