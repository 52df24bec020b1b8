# SPDX-License-Identifier: GPL-2.0-only
"""Source trees: what is in them, and that the user's directory stays as it is."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tree_help import age, commit, git, listing, look, make_kernel, make_plain, take

from harness.errors import InfraError, UsageError
from harness.kernels import git as git_module
from harness.kernels import trees
from harness.kernels.store import Store
from harness.kernels.trees import Tree


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "cache")
    yield made
    made.close()


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return make_plain(tmp_path / "linux")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return make_kernel(tmp_path / "linux")


@pytest.mark.parametrize(
    "reference",
    ["", "tree:", "tree:@v7.2", "tree:x@", "tree", "x:y", "source:", "source:7", "source:x"],
)
def test_malformed_reference(reference: str) -> None:
    with pytest.raises(UsageError, match="is no kernel tree"):
        trees.check(reference)


@pytest.mark.parametrize(
    "reference", ["tree:x", "tree:x@y", "source:7.2", "source:7.2.12-1~bpo13+1"]
)
def test_well_formed_reference(reference: str) -> None:
    trees.check(reference)


def test_clean_checkout(kernel: Path, store: Store) -> None:
    tree = take(kernel, store)
    assert tree.oid == git(kernel, "rev-parse", "HEAD^{tree}")
    assert (tree.reference, tree.release) == (f"tree:{kernel}", "7.2.12-rc1")
    assert tree.origin == f"{kernel}, v7.2"
    assert tree.repository.parent == store.root / "git"


def test_working_tree_as_it_is(kernel: Path, store: Store) -> None:
    """Changed, added, removed, made executable; and nothing that is ignored."""
    take(kernel, store)
    (kernel / "kernel/a.c").write_text("int changed;\n")
    (kernel / "kernel/new.c").write_text("int new;\n")
    (kernel / "kernel/b.c").unlink()
    (kernel / "Makefile").chmod(0o755)
    (kernel / ".config").write_text("CONFIG=y\n")
    tree = take(kernel, store)
    found = listing(tree)
    assert found["kernel/a.c"] == "100644 int changed;"
    assert found["kernel/new.c"] == "100644 int new;"
    assert found["Makefile"].startswith("100755 ")
    assert found["link"] == "120000 kernel/a.c"
    assert not {"kernel/b.c", "kernel/a.o", ".config"} & set(found)
    assert tree.origin == f"{kernel}, v7.2, with 4 uncommitted changes"
    git(kernel, "checkout", "-q", "-f", "HEAD")
    (kernel / "kernel/new.c").unlink()
    assert take(kernel, store).origin == f"{kernel}, v7.2"


def test_ignored_from_now_on(kernel: Path, store: Store) -> None:
    """What was untracked once is not remembered as part of the tree."""
    (kernel / "notes.txt").write_text("x")
    assert "notes.txt" in listing(take(kernel, store))
    (kernel / ".git/info/exclude").write_text("*.txt\n")
    assert "notes.txt" not in listing(take(kernel, store))


def test_users_own_ignore_file(
    kernel: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignore = tmp_path / "ignore"
    ignore.write_text("*.txt\n")
    (tmp_path / "gitconfig").write_text(f"[core]\n\texcludesFile = {ignore}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(tmp_path / "gitconfig", tmp_path / ".gitconfig")
    (kernel / "notes.txt").write_text("x")
    assert take(kernel, store).origin == f"{kernel}, v7.2"


def test_added_though_ignored(kernel: Path, store: Store) -> None:
    (kernel / "kernel/blob.o").write_text("wanted")
    git(kernel, "add", "-f", "kernel/blob.o")
    assert listing(take(kernel, store))["kernel/blob.o"] == "100644 wanted"
    git(kernel, "reset", "-q")
    assert "kernel/blob.o" not in listing(take(kernel, store))


def test_same_size_and_time(kernel: Path, store: Store) -> None:
    """A change within one tick of the clock, of the same size."""
    take(kernel, store)
    (kernel / "kernel/a.c").write_text("int z;\n")
    assert listing(take(kernel, store))["kernel/a.c"] == "100644 int z;"


def test_nothing_committed_yet(plain: Path, store: Store) -> None:
    git(plain, "init", "-q")
    tree = take(plain, store)
    assert set(listing(tree)) == {"Makefile", "kernel/a.c", "kernel/b.c", "link", "run.sh"}
    assert tree.origin == f"{plain}, nothing committed yet"


def test_the_users_directory_is_never_written_to(kernel: Path, store: Store) -> None:
    """Not even time stamps: git sets those of packs that have what it is to write."""
    (kernel / "kernel/a.c").write_text("int second;\n")
    commit(kernel, "second")
    git(kernel, "gc", "-q")
    (kernel / "kernel/a.c").write_text("int a;\n")
    (kernel / "kernel/c.c").write_text("int c;\n")
    git(kernel, "add", "kernel/c.c")
    age(kernel)
    before = look(kernel)
    for suffix in ("", "@HEAD", "@v7.2"):
        take(f"{kernel}{suffix}", store)
    trees.revisions(kernel, "v7.2", "HEAD", store)
    assert look(kernel) == before


def test_hooks_and_filters_are_not_run(kernel: Path, store: Store, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\ncat\n")
    trap.chmod(0o755)
    for key in (
        "core.fsmonitor",
        "filter.x.clean",
        "filter.x.smudge",
        "core.pager",
        "diff.external",
    ):
        git(kernel, "config", key, str(trap))
    shutil.copy(trap, kernel / ".git/hooks/post-index-change")
    (kernel / ".gitattributes").write_text("*.c filter=x text eol=crlf ident\n")
    (kernel / "kernel/a.c").write_text("/* $Id$ */\r\n")
    tree = take(kernel, store)
    trees.checkout(tree, tmp_path / "out")
    assert (tmp_path / "out/kernel/a.c").read_bytes() == b"/* $Id$ */\r\n"
    take(f"{kernel}@HEAD", store)
    trees.revisions(kernel, "v7.2", "HEAD", store)
    assert not (tmp_path / "sprung").exists()


def test_environment_of_another_git(
    kernel: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a hook, or in `git bisect run`."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(kernel / ".git/index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "elsewhere"))
    before = look(kernel)
    assert take(kernel, store).origin == f"{kernel}, v7.2"
    assert look(kernel) == before


def test_tree_that_cannot_be_written_to(kernel: Path, store: Store) -> None:
    (kernel / "kernel/a.c").write_text("int changed;\n")
    everything = [kernel, *kernel.rglob("*")]
    try:
        for path in everything:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        tree = take(kernel, store)
        assert listing(tree)["kernel/a.c"] == "100644 int changed;"
        assert take(f"{kernel}@HEAD", store).oid == git(kernel, "rev-parse", "HEAD^{tree}")
    finally:
        for path in everything:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_tree_of_somebody_else(kernel: Path, store: Store) -> None:
    for path in [kernel, *kernel.rglob("*")]:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    assert take(kernel, store).origin == f"{kernel}, v7.2"
    assert take(f"{kernel}@HEAD", store).origin == f"{kernel}, v7.2"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_file_that_cannot_be_read(kernel: Path, store: Store) -> None:
    (kernel / "kernel/a.c").write_text("int changed;\n")
    (kernel / "kernel/a.c").chmod(0)
    with pytest.raises(InfraError, match=r"kernel/a\.c.*Permission denied"):
        take(kernel, store)


def test_repository_within_that_git_cannot_take(kernel: Path, store: Store) -> None:
    git(kernel, "init", "-q", "nested")
    (kernel / "nested/file").write_text("x")
    with pytest.raises(InfraError, match=r"can't be read\n.*nested") as caught:
        take(kernel, store)
    assert "have git ignore them" in caught.value.remedy
    (kernel / ".git/info/exclude").write_text("/nested/\n")
    assert take(kernel, store).origin == f"{kernel}, v7.2"


def test_worktree_of_git(kernel: Path, store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    git(kernel, "worktree", "add", "-q", str(other))
    (other / "kernel/a.c").write_text("int other;\n")
    tree = take(other, store)
    assert listing(tree)["kernel/a.c"] == "100644 int other;"
    assert tree.origin == f"{other}, v7.2, with 1 uncommitted change"


def test_revisions_by_any_name(kernel: Path, store: Store) -> None:
    (kernel / "kernel/a.c").write_text("int second;\n")
    second = commit(kernel, "second")
    git(kernel, "branch", "topic@home")
    (kernel / "kernel/a.c").write_text("int not committed;\n")
    for name in ("HEAD", second, "topic@home", "main@{0}"):
        tree = take(f"{kernel}@{name}", store)
        assert listing(tree)["kernel/a.c"] == "100644 int second;"
        assert tree.origin == f"{kernel}, v7.2-1-g{second[:12]}"
    assert take(f"{kernel}@v7.2", store).origin == f"{kernel}, v7.2"
    assert take(f"{kernel}@HEAD^{{tree}}", store).release == "7.2.12-rc1"


def test_at_sign_in_a_directory(kernel: Path, store: Store) -> None:
    moved = kernel.with_name("me@home")
    kernel.rename(moved)
    assert take(moved, store).origin == f"{moved}, v7.2"
    assert take(f"{moved}@v7.2", store).origin == f"{moved}, v7.2"


@pytest.mark.parametrize("name", ["nonsense", "--help", "v9.9"])
def test_unknown_revision(kernel: Path, store: Store, name: str) -> None:
    with pytest.raises(UsageError, match=f"{kernel} has no revision '{name}'"):
        take(f"{kernel}@{name}", store)


def test_bare_repository(kernel: Path, store: Store, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(kernel), "bare.git")
    bare = tmp_path / "bare.git"
    assert take(f"{bare}@v7.2", store).release == "7.2.12-rc1"
    with pytest.raises(UsageError, match="without files") as caught:
        take(bare, store)
    assert f"tree:{bare}@HEAD" in caught.value.remedy


def test_shallow_clone(kernel: Path, store: Store, tmp_path: Path) -> None:
    for number in range(3):
        (kernel / "kernel/a.c").write_text(f"int a{number};\n")
        commit(kernel, f"number {number}")
    git(tmp_path, "clone", "-q", "--depth=2", f"file://{kernel}", "shallow")
    found = trees.revisions(tmp_path / "shallow", "HEAD~1", "HEAD", store)
    assert [each.subject for each in found] == ["number 2"]


def test_not_a_kernel(kernel: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a directory"):
        take(tmp_path / "missing", store)
    with pytest.raises(UsageError, match="is a part of the kernel source") as caught:
        take(kernel / "kernel", store)
    assert f"tree:{kernel}" in caught.value.remedy
    with pytest.raises(UsageError, match="no kernel source"):
        take(tmp_path, store)
    git(kernel, "rm", "-q", "Makefile")
    for suffix in ("", f"@{commit(kernel, 'no Makefile')}"):
        with pytest.raises(UsageError, match="no kernel source"):
            take(f"{kernel}{suffix}", store)


def test_not_in_git(plain: Path, store: Store) -> None:
    """Without git .gitignore is no help: that of Debian's source ignores every file."""
    (plain / ".gitignore").write_text("/*\n")
    for name in ("kernel/a.o", ".config", "vmlinux", "include/config/auto.conf", ".a.cmd"):
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).write_text("built")
    tree = take(plain, store)
    names = {".gitignore", "Makefile", "kernel/a.c", "kernel/b.c", "link", "run.sh"}
    assert set(listing(tree)) == names
    assert (tree.origin, tree.release) == (f"{plain}, not in git", "7.2.12-rc1")
    (plain / "kernel/b.c").unlink()
    (plain / "kernel/c.c").write_text("int c;\n")
    assert set(listing(take(plain, store))) == names - {"kernel/b.c"} | {"kernel/c.c"}
    with pytest.raises(UsageError, match="is not in git"):
        take(f"{plain}@HEAD", store)


def test_not_in_git_any_more(plain: Path, store: Store) -> None:
    (plain / ".git").write_text("gitdir: /nonexistent\n")
    said: list[str] = []
    assert take(plain, store, said).origin == f"{plain}, not in git"
    assert any("git can't read" in line for line in said)


def test_cache_inside_of_the_tree(kernel: Path) -> None:
    store = Store(kernel / "cache")
    assert take(kernel, store).origin == f"{kernel}, v7.2"
    shutil.rmtree(kernel / ".git")
    assert not any(name.startswith("cache") for name in listing(take(kernel, store)))
    store.close()


def test_two_at_once(kernel: Path, tmp_path: Path) -> None:
    """Two processes' worth of stores; each gets the right tree and the index survives."""
    (kernel / "kernel/new.c").write_text("int new;\n")
    found: list[Tree] = []

    def one() -> None:
        store = Store(tmp_path / "cache")
        found.append(take(kernel, store))
        store.close()

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert "kernel/new.c" in listing(found[0])


def test_waiting_is_said(kernel: Path, store: Store) -> None:
    repository = take(kernel, store).repository
    said: list[str] = []
    waiting = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    with git_module.locked(repository.with_suffix(".lock")):
        thread = threading.Thread(target=trees.resolve, args=(f"tree:{kernel}", store, say))
        thread.start()
        assert waiting.wait(60)
    thread.join()
    assert "another run is reading" in said[0]


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_index_that_a_kill_or_a_bad_disk_left(
    kernel: Path, store: Store, content: bytes | None
) -> None:
    tree = take(kernel, store)
    index = tree.repository / "index"
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2] if content is None else content)
    (tree.repository / "index.lock").write_text("")
    assert take(kernel, store) == tree


def test_first_time_is_said(kernel: Path, store: Store) -> None:
    said: list[str] = []
    take(kernel, store, said)
    assert said == [f"tree: reading all of {kernel}; the next time it is quick"]
    take(kernel, store, said)
    assert len(said) == 1


def test_no_git(
    kernel: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    # Nothing that is needed before git, and nowhere else to look.
    monkeypatch.setattr("harness.kernels.programs.plain_env", lambda **_: {"PATH": str(bin_)})
    monkeypatch.setattr("harness.kernels.git.plain_env", lambda **_: {"PATH": str(bin_)})
    with pytest.raises(InfraError, match="git was not found") as caught:
        take(kernel, store)
    assert "apt install git" in caught.value.remedy


def test_full_disk(kernel: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(git_module, "run", full)
    with pytest.raises(InfraError, match="no room for source trees"), git_module.opened(store, "x"):
        pass


def test_revisions_between(kernel: Path, store: Store) -> None:
    """The first parents' line: each commit contains those before it."""
    second, third = "", ""
    for name in ("second", "third"):
        (kernel / "kernel/a.c").write_text(f"int {name};\n")
        second, third = third, commit(kernel, name)
    git(kernel, "checkout", "-q", "-b", "side", "v7.2")
    (kernel / "kernel/b.c").write_text("int side;\n")
    commit(kernel, "side")
    git(kernel, "checkout", "-q", "main")
    git(kernel, "merge", "-q", "-m", "merge", "side")
    found = trees.revisions(kernel, "v7.2", "main", store)
    assert [each.subject for each in found] == ["second", "third", "merge"]
    assert [each.oid for each in found[:2]] == [second, third]
    assert listing(trees.resolve(found[0].reference, store, print))["kernel/a.c"] == (
        "100644 int second;"
    )
    assert trees.revisions(kernel, "main", "main", store) == ()
    with pytest.raises(UsageError, match="side is not an ancestor of third-one"):
        git(kernel, "tag", "third-one", third)
        trees.revisions(kernel, "side", "third-one", store)
    with pytest.raises(UsageError, match="has no revision 'v0'"):
        trees.revisions(kernel, "v0", "main", store)
