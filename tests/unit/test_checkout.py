# SPDX-License-Identifier: GPL-2.0-only
"""Checkouts of trees: exact, quick for make, and safe after a kill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tree_help import age, git, look, make_kernel, take, times

from harness.errors import InfraError
from harness.kernels import trees
from harness.kernels.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "cache")
    yield made
    made.close()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return make_kernel(tmp_path / "linux")


def test_checkout_is_exact(kernel: Path, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "build/src"
    tree = take(kernel, store)
    changed = trees.checkout(tree, out)
    assert changed == [".gitignore", "Makefile", "kernel/a.c", "kernel/b.c", "link", "run.sh"]
    assert sorted(times(out)) == changed
    assert os.access(out / "run.sh", os.X_OK)
    assert (out / "link").readlink() == Path("kernel/a.c")
    before = look(out)
    assert trees.checkout(tree, out) == []
    assert look(out) == before


def test_only_what_changed_is_written(kernel: Path, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "src"
    trees.checkout(take(kernel, store), out)
    age(out)
    (kernel / "kernel/a.c").write_text("int a, patched;\n")
    (kernel / "kernel/b.c").unlink()
    (kernel / "new").mkdir()
    (kernel / "new/c.c").write_text("int c;\n")
    assert trees.checkout(take(kernel, store), out) == ["kernel/a.c", "kernel/b.c", "new/c.c"]
    new = {name for name, when in times(out).items() if when != 10**18}
    assert new == {"kernel/a.c", "new/c.c"}
    assert (out / "kernel/a.c").read_text() == "int a, patched;\n"


def test_reverted_file_gets_a_new_time(kernel: Path, store: Store, tmp_path: Path) -> None:
    """Or make would believe that the object of the patched file is up to date."""
    out = tmp_path / "src"
    plain = take(kernel, store)
    (kernel / "kernel/a.c").write_text("int a, patched;\n")
    patched = take(kernel, store)
    trees.checkout(plain, out)
    trees.checkout(patched, out)
    age(out)
    assert trees.checkout(plain, out) == ["kernel/a.c"]
    assert times(out)["kernel/a.c"] > 10**18
    assert times(out)["kernel/b.c"] == 10**18


def test_tampered_checkout(kernel: Path, store: Store, tmp_path: Path) -> None:
    """Files changed, removed, added and merely touched behind our back."""
    out = tmp_path / "src"
    tree = take(kernel, store)
    trees.checkout(tree, out)
    expected = {name: (out / name).read_bytes() for name in times(out)}
    (out / "kernel/a.c").write_text("int x;\n")
    (out / "kernel/b.c").unlink()
    (out / "kernel/stray.o").write_text("x")
    (out / "strays/deep").mkdir(parents=True)
    (out / "strays/deep/.config").write_text("x")
    os.utime(out / "Makefile", (10**9, 10**9))
    changed = trees.checkout(tree, out)
    assert changed == ["kernel/a.c", "kernel/b.c", "kernel/stray.o", "strays/deep/.config"]
    assert {name: (out / name).read_bytes() for name in times(out)} == expected
    assert not (out / "strays").exists()
    assert times(out)["Makefile"] == 10**18


@pytest.mark.parametrize("first", [True, False])
def test_interrupted_checkout(kernel: Path, store: Store, tmp_path: Path, first: bool) -> None:
    """Killed after some files and before the index: what git leaves then."""
    out = tmp_path / "src"
    old = take(kernel, store)
    (kernel / "kernel/a.c").write_text("int a, patched;\n")
    (kernel / "kernel/half.c").write_text("int half;\n")
    new = take(kernel, store)
    if first:
        out.mkdir()
        (tmp_path / "src.lock").write_text("")
    else:
        trees.checkout(old, out)
    (out / "kernel").mkdir(exist_ok=True)
    (out / "kernel/a.c").write_text("int a, pat")
    (out / "kernel/half.c").write_text("int half;\n")
    (tmp_path / "src.index.lock").write_text("half")
    third = old if not first else new
    trees.checkout(third, out)
    assert (out / "kernel/half.c").exists() == first
    assert (out / "kernel/a.c").read_text() == ("int a, patched;\n" if first else "int a;\n")
    assert trees.checkout(third, out) == []


def test_damaged_index_of_a_checkout(kernel: Path, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "src"
    tree = take(kernel, store)
    trees.checkout(tree, out)
    (tmp_path / "src.index").write_bytes(b"rubbish")
    (out / "kernel/a.c").write_text("wrong")
    assert "kernel/a.c" in trees.checkout(tree, out)
    assert (out / "kernel/a.c").read_text() == "int a;\n"


def test_file_and_directory_change_places(kernel: Path, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "src"
    trees.checkout(take(kernel, store), out)
    shutil.rmtree(kernel / "kernel")
    (kernel / "kernel").write_text("a file")
    trees.checkout(take(kernel, store), out)
    assert (out / "kernel").read_text() == "a file"


def test_somebody_elses_directory_is_not_emptied(
    kernel: Path, store: Store, tmp_path: Path
) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis").write_text("x")
    with pytest.raises(InfraError, match="is not a checkout of cohabit's"):
        trees.checkout(take(kernel, store), precious)
    assert (precious / "thesis").exists()


def test_trees_of_another_repository(kernel: Path, store: Store, tmp_path: Path) -> None:
    """One directory for the trees of several repositories."""
    out = tmp_path / "src"
    trees.checkout(take(kernel, store), out)
    age(out)
    git(tmp_path, "clone", "-q", str(kernel), "clone")
    (tmp_path / "clone/kernel/a.c").write_text("int clone;\n")
    assert trees.checkout(take(tmp_path / "clone", store), out) == ["kernel/a.c"]
