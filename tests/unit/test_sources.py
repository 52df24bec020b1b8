# SPDX-License-Identifier: GPL-2.0-only
"""Debian's source packages as trees, from a real archive on this machine."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_archive import Archive
from tree_help import MAKEFILE, listing

from harness.errors import InfraError, UsageError
from harness.kernels import apt, trees
from harness.kernels.store import Store

NAME = "linux-source-7.2"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "cache")
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    made = Archive(tmp_path_factory.mktemp("archive"))
    yield made
    made.close()


@pytest.fixture
def archive(served: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    config = tmp_path / "config/cohabit/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[debian]\nmirror = "{served.uri}"\n')
    monkeypatch.setattr(apt, "KEYRING", served.keyring)
    monkeypatch.setattr(apt, "SUITES", ("trixie",))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return served


def packed(sublevel: int, *, odd: bool = False) -> bytes:
    """What Debian's package holds, as small as can be."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        files = {"Makefile": MAKEFILE.replace("12", str(sublevel)), "kernel/a.c": "int a;\n"}
        for name, text in files.items():
            info = tarfile.TarInfo(f"{NAME}/{name}")
            info.size = len(text)
            info.mode = 0o755 if name == "Makefile" else 0o644
            archive.addfile(info, io.BytesIO(text.encode()))
        link = tarfile.TarInfo(f"{NAME}/link")
        link.type, link.linkname = tarfile.FIFOTYPE if odd else tarfile.SYMTYPE, "kernel/a.c"
        archive.addfile(link)
    return out.getvalue()


def publish(archive: Archive, *sublevels: int, odd: bool = False) -> None:
    def stanza(sublevel: int) -> str:
        files: dict[str, str | bytes] = {
            f"usr/src/{NAME}.tar.xz": packed(sublevel, odd=odd),
            f"usr/share/doc/{NAME}/copyright": "text",
        }
        return archive.deb(NAME, f"7.2.{sublevel}-1~bpo13+1", files)

    other = archive.deb("linux-image-7.2.1-cloud-amd64", "7.2.1-1", {})
    archive.publish("trixie", [other, *map(stanza, sublevels)])


def test_source_package(archive: Archive, store: Store, tmp_path: Path) -> None:
    publish(archive, 9, 12, 10)
    said: list[str] = []
    tree = trees.resolve("source:7.2", store, said.append)
    assert tree.origin == f"Debian's {NAME} 7.2.12-1~bpo13+1"
    assert tree.release == "7.2.12-rc1"
    assert any(line.startswith(f"fetching {NAME} 7.2.12-1~bpo13+1") for line in said)
    found = listing(tree)
    assert found["kernel/a.c"] == "100644 int a;"
    assert found["link"] == "120000 kernel/a.c"
    assert found["Makefile"].startswith("100755 ")
    assert len(trees.checkout(tree, tmp_path / "src")) == 3


def test_exact_source_version(archive: Archive, store: Store) -> None:
    publish(archive, 9, 12)
    for name in ("7.2.9-1~bpo13+1", "7.2.9-1", "7.2.9"):
        assert trees.resolve(f"source:{name}", store, print).release == "7.2.9-rc1"
    with pytest.raises(UsageError, match="no reachable Debian suite has that") as caught:
        trees.resolve("source:7.2.1", store, print)
    assert "7.2.12-1~bpo13+1, 7.2.9-1~bpo13+1" in caught.value.remedy


def test_source_that_is_gone_from_the_mirror(archive: Archive, store: Store) -> None:
    publish(archive, 9, 12)
    (archive.top / "pool" / f"{NAME}_7.2.12-1~bpo13+1_amd64.deb").unlink()
    assert trees.resolve("source:7.2", store, print).release == "7.2.9-rc1"


def test_source_without_network(archive: Archive, store: Store) -> None:
    publish(archive, 9)
    first = trees.resolve("source:7.2", store, print)
    shutil.rmtree(store.state)
    store.state.mkdir()
    (archive.top / "dists").rename(archive.top / "away")
    said: list[str] = []
    try:
        assert trees.resolve("source:7.2", store, said.append) == first
        assert any("using" in line for line in said)
        assert trees.resolve("source:7.2.9", store, print).oid == first.oid
    finally:
        (archive.top / "away").rename(archive.top / "dists")


def test_odd_source_package(archive: Archive, store: Store) -> None:
    publish(archive, 9, odd=True)
    with pytest.raises(InfraError, match=r"holds 'linux-source-7\.2/link', of a kind"):
        trees.resolve("source:7.2", store, print)
    assert store.entries("linux-source") == []
