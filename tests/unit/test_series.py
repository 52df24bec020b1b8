# SPDX-License-Identifier: GPL-2.0-only
"""Patch series: read from everywhere, and applied to a real tree."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tree_help import age, commit, git, listing, look, make_kernel, take

from harness.errors import InfraError, UsageError
from harness.kernels import series, trees
from harness.kernels.series import Patch
from harness.kernels.store import Store
from harness.kernels.trees import Tree

DIFF = """diff --git a/kernel/a.c b/kernel/a.c
--- a/kernel/a.c
+++ b/kernel/a.c
@@ -1 +1 @@
-int a;
+int a, patched;
"""
SECOND = DIFF.replace("int a, patched", "int a, twice").replace("int a;", "int a, patched;")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "cache")
    yield made
    made.close()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return make_kernel(tmp_path / "linux")


@pytest.fixture
def tree(kernel: Path, store: Store) -> Tree:
    return take(kernel, store)


def mail(subject: str, body: str, headers: str = "") -> str:
    start = "From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\n"
    return f"{start}From: A <a@test>\nSubject: {subject}\n{headers}\n{body}\n---\n-- \n2.39\n\n"


def read(argument: Path | str, store: Store, tree: Tree | None = None) -> tuple[Patch, ...]:
    return series.read(str(argument), tree, store)


def subjects(patches: tuple[Patch, ...]) -> list[str]:
    return [patch.subject for patch in patches]


def patch(text: str) -> Patch:
    return Patch("some.patch", "some", text)


@pytest.fixture
def branch(kernel: Path) -> Path:
    """Two commits after v7.2: one changes and makes executable, one renames and removes."""
    (kernel / "kernel/a.c").write_text("int a, patched;\n")
    (kernel / "Makefile").chmod(0o755)
    commit(kernel, "change a")
    git(kernel, "mv", "kernel/a.c", "kernel/z.c")
    git(kernel, "rm", "-q", "kernel/b.c")
    (kernel / "kernel/binary").write_bytes(bytes(range(256)))
    (kernel / "kernel/dos").write_bytes(b"one\r\ntwo\r\n")
    commit(kernel, "move a, remove b")
    return kernel


def test_one_diff(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "x.patch"
    file.write_text(f"What it does\n\nand why.\n---\n{DIFF}")
    assert read(file, store) == (Patch("x.patch", "What it does", file.read_text()),)
    file.write_text(DIFF)
    assert subjects(read(file, store)) == ["x.patch"]


def test_one_mail(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "x.patch"
    file.write_text(mail("[PATCH v2 3/7] ftrace: =?utf-8?q?na=C3=AFve?=\n of it", DIFF))
    assert subjects(read(file, store)) == ["ftrace: naïve of it"]


def test_encoded_mail(tmp_path: Path, store: Store, tree: Tree) -> None:
    """As mail systems like to send patches: base64, every line ending in CR LF."""
    body = base64.encodebytes(DIFF.replace("\n", "\r\n").encode()).decode()
    headers = "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
    headers += "Content-Transfer-Encoding: base64\n"
    file = tmp_path / "x.mbox"
    file.write_text(f"From: A <a@test>\nSubject: x\n{headers}\n{body}")
    (after,) = series.apply(tree, read(file, store))
    assert listing(after)["kernel/a.c"] == "100644 int a, patched;"


def test_mbox(tmp_path: Path, store: Store, tree: Tree) -> None:
    """In any order, with a cover letter, a reply, and lines that begin with From."""
    file = tmp_path / "all.mbox"
    file.write_text(
        mail("[PATCH 0/2] all of it", "From the beginning at 10:20:30, in 2024.\nA cover.")
        + mail("[PATCH 2/2] second", SECOND)
        + mail("Re: [PATCH 2/2] second", f"How about this?\n{DIFF}")
        + mail("[PATCH 1/2] first", f"From userspace at 10:20:30 in 2024\nit is seen.\n\n{DIFF}")
    )
    patches = read(file, store)
    assert subjects(patches) == ["first", "second"]
    assert [each.name for each in patches] == ["all.mbox:4", "all.mbox:2"]
    assert listing(series.apply(tree, patches)[1])["kernel/a.c"] == "100644 int a, twice;"


def test_mbox_with_two_versions(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "all.mbox"
    file.write_text(mail("[PATCH 1/2] first", DIFF) + mail("[PATCH v2 1/2] first", DIFF))
    with pytest.raises(UsageError, match="two mails are patch 1: it may hold two versions"):
        read(file, store)


def test_directory(tmp_path: Path, store: Store) -> None:
    top = tmp_path / "patches"
    top.mkdir()
    (top / "0000-cover-letter.patch").write_text(mail("[PATCH 0/2] all", "words"))
    (top / "0002-b.patch").write_text(mail("[PATCH 2/2] b", SECOND))
    (top / "0001-a.patch").write_text(mail("[PATCH 1/2] a", DIFF))
    (top / "README.md").write_text("words")
    assert subjects(read(top, store)) == ["a", "b"]
    (top / "series").write_text("# all of them\n0002-b.patch -p1 # first\n\n")
    assert subjects(read(top, store)) == ["b"]


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("missing.patch\n", "names missing.patch, which is not there"),
        ("a.patch -p0\n", "'a.patch -p0': only patches with -p1"),
        ("# nothing\n", "no patches in it"),
        ("a.patch\n", "a.patch: there is no patch in it"),
    ],
)
def test_bad_directory(tmp_path: Path, store: Store, listing: str, message: str) -> None:
    (tmp_path / "series").write_text(listing)
    (tmp_path / "a.patch").write_text("only words")
    with pytest.raises(UsageError, match=message):
        read(tmp_path, store)


def test_directory_with_a_cover_letter_alone(tmp_path: Path, store: Store) -> None:
    (tmp_path / "0000-cover-letter.patch").write_text("words")
    with pytest.raises(UsageError, match="a cover letter in it, and no patch"):
        read(tmp_path, store)


def test_no_such_series(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="there is no series") as caught:
        read(tmp_path / "missing", store)
    assert "b4:MESSAGE-ID" in caught.value.remedy


def test_range(branch: Path, store: Store) -> None:
    """The trees after the patches are those of the commits, bit by bit."""
    patches = read(f"git:{branch}:v7.2..HEAD", store)
    assert subjects(patches) == ["change a", "move a, remove b"]
    made = series.apply(take(f"{branch}@v7.2", store), patches)
    for tree, revision in zip(made, ("HEAD~1", "HEAD"), strict=True):
        assert tree.oid == git(branch, "rev-parse", f"{revision}^{{tree}}")
    assert read(f"git:{branch}:v7.2..", store) == patches
    assert read("git::v7.2..main", store, take(branch, store)) == patches


def test_format_patch(branch: Path, store: Store, tmp_path: Path) -> None:
    git(branch, "format-patch", "-q", "--cover-letter", "-o", str(tmp_path / "out"), "v7.2")
    patches = read(tmp_path / "out", store)
    assert subjects(patches) == ["change a", "move a, remove b"]
    made = series.apply(take(f"{branch}@v7.2", store), patches)
    assert made[1].oid == git(branch, "rev-parse", "HEAD^{tree}")


def test_bad_range(branch: Path, store: Store) -> None:
    for argument in ("git:v7.2..HEAD", f"git:{branch}:HEAD", f"git:{branch}:v7.2...HEAD"):
        with pytest.raises(UsageError):
            read(argument, store)
    with pytest.raises(UsageError, match=r"no commit in HEAD\.\.v7\.2"):
        read(f"git:{branch}:HEAD..v7.2", store)
    with pytest.raises(UsageError, match="has no revision 'v0'"):
        read(f"git:{branch}:v0..HEAD", store)
    git(branch, "checkout", "-q", "-b", "side", "v7.2")
    git(branch, "commit", "-q", "--allow-empty", "-m", "side")
    with pytest.raises(UsageError, match="its commits change nothing"):
        read(f"git:{branch}:v7.2..side", store)
    git(branch, "merge", "-q", "-m", "merge", "main")
    with pytest.raises(UsageError, match="there are merges"):
        read(f"git:{branch}:v7.2..side", store)


def fake_b4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin/b4"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_b4(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    mbox = tmp_path / "mbox"
    mbox.write_text(mail("[PATCH 1/2] first", DIFF) + mail("[PATCH 2/2] second", SECOND))
    fake_b4(tmp_path, monkeypatch, f'[ "$*" = "am -o - id@test" ] && cat {mbox}; echo ok >&2')
    assert subjects(read("b4:id@test", store)) == ["first", "second"]


def test_b4_that_finds_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_b4(tmp_path, monkeypatch, "echo 'Looking up id@test'; echo 'no network' >&2; exit 1")
    with pytest.raises(InfraError, match="b4 ended with status 1\n    no network") as caught:
        read("b4:id@test", store)
    assert "network" in caught.value.remedy


def test_no_b4(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # plain_env adds the system's directories, where b4 may be.
    monkeypatch.setattr(series, "run", _missing)
    with pytest.raises(InfraError, match="b4 was not found"):
        read("b4:id@test", store)
    with pytest.raises(UsageError, match="no message id"):
        read("b4:--help", store)


def _missing(*_: object, what: str, **__: object) -> None:
    from harness.kernels.programs import not_found

    raise not_found("b4", what)


def test_every_step_is_a_tree(tree: Tree, kernel: Path, tmp_path: Path) -> None:
    new = "VERSION = 7\nPATCHLEVEL = 3\n"
    third = f"--- /dev/null\n+++ b/new/c.c\n@@ -0,0 +1 @@\n+int c;\n{_rewrite(kernel, new)}"
    patches = [Patch("1.patch", "a", DIFF), Patch("2", "b", SECOND), Patch("3", "c", third)]
    made = series.apply(tree, patches)
    texts = [listing(each)["kernel/a.c"][7:] for each in made]
    assert texts == ["int a, patched;", "int a, twice;", "int a, twice;"]
    assert made[0].reference == f"tree:{kernel} with 1.patch (1 of 3)"
    assert made[2].origin == f"{kernel}, v7.2 with 3 (3 of 3)"
    assert [each.release for each in made] == ["7.2.12-rc1", "7.2.12-rc1", "7.3"]
    assert trees.checkout(made[2], tmp_path / "src") == sorted(listing(made[2]))
    assert series.apply(tree, []) == []
    assert take(kernel, Store(tmp_path / "cache")) == tree


def _rewrite(kernel: Path, text: str) -> str:
    old = (kernel / "Makefile").read_text().splitlines()
    new = text.splitlines()
    body = "".join(f"-{line}\n" for line in old) + "".join(f"+{line}\n" for line in new)
    return f"--- a/Makefile\n+++ b/Makefile\n@@ -1,{len(old)} +1,{len(new)} @@\n{body}"


def test_onto_uncommitted_changes(kernel: Path, store: Store) -> None:
    (kernel / "kernel/a.c").write_text("int a, patched;\n")
    (after,) = series.apply(take(kernel, store), [patch(SECOND)])
    assert listing(after)["kernel/a.c"] == "100644 int a, twice;"


def test_the_users_repository_is_not_touched(branch: Path, store: Store) -> None:
    """Though it has the objects that the patches make."""
    git(branch, "gc", "-q")
    age(branch)
    before = look(branch)
    made = series.apply(take(f"{branch}@v7.2", store), read(f"git:{branch}:v7.2..HEAD", store))
    assert made
    assert look(branch) == before


def test_trees_that_are_not_in_git(tmp_path: Path, store: Store, kernel: Path) -> None:
    (kernel / ".git").rename(tmp_path / "away")
    (after,) = series.apply(take(kernel, store), [patch(DIFF)])
    assert listing(after)["kernel/a.c"] == "100644 int a, patched;"


def test_rejected_hunk(kernel: Path, store: Store) -> None:
    """The patch, the file and the hunk are named; hunks that fit are not shown."""
    (kernel / "kernel/a.c").write_text("".join(f"line {n}\n" for n in range(40)))
    good = "@@ -2,3 +2,3 @@\n line 1\n-line 2\n+line two\n line 3\n"
    bad = "@@ -20,3 +20,4 @@ where\n line 19\n-line twenty\n+line 20\n+--- and more\n line 21\n"
    text = f"--- a/kernel/a.c\n+++ b/kernel/a.c\n{good}{bad}"
    with pytest.raises(UsageError) as caught:
        series.apply(take(kernel, store), [patch(f"--- words\n\n{text}")])
    message = caught.value.message
    assert message.startswith(
        f"some.patch (1 of 1): 'some' does not apply to {kernel}, v7.2, with 1 uncommitted change\n"
        "  kernel/a.c: this hunk was rejected:\n"
    )
    assert "".join(f"    {line}\n" for line in bad.splitlines()) in f"{message}\n"
    assert "line two" not in message


def test_patch_for_a_file_that_is_not_there(tree: Tree) -> None:
    with pytest.raises(UsageError, match=r"kernel/no\.c: does not exist in index"):
        series.apply(tree, [patch(DIFF.replace("a.c", "no.c"))])


def test_patch_that_is_there_already(tree: Tree) -> None:
    after = series.apply(tree, [patch(DIFF)])[0]
    with pytest.raises(UsageError, match="does not apply") as caught:
        series.apply(after, [patch(DIFF)])
    assert "has this patch already" in caught.value.remedy


def test_the_second_of_two(tree: Tree) -> None:
    with pytest.raises(UsageError, match=r"some\.patch \(2 of 2\)"):
        series.apply(tree, [patch(DIFF), patch(DIFF)])
    # And what it left behind is no hindrance.
    assert series.apply(tree, [patch(DIFF)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DIFF.replace("@@ -1 ", "@@ -1,3 "), "corrupt patch"),
        (DIFF.replace("-int a;", "int a;"), "corrupt patch at .*\n    int a;"),
        ("only words\n", "no well-formed patch"),
        (DIFF.replace("a/", "").replace("b/", ""), "does not exist|lacks filename"),
        (DIFF.replace("kernel/a.c", "../../outside"), "invalid path|outside"),
    ],
)
def test_malformed_patch(tree: Tree, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        series.apply(tree, [patch(text)])


def test_long_hunk_is_cut(tree: Tree) -> None:
    body = "".join(f"-old {n}\n" for n in range(100))
    text = f"--- a/kernel/a.c\n+++ b/kernel/a.c\n@@ -1,100 +0,0 @@\n{body}"
    with pytest.raises(UsageError) as caught:
        series.apply(tree, [patch(text)])
    assert "old 30" in caught.value.message
    assert "old 50" not in caught.value.message
    assert caught.value.message.endswith("[...]")
