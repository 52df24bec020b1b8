# SPDX-License-Identifier: GPL-2.0-only
"""The engine `direct`: its initramfs, its disks' names, its snapshots' digests."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.kernels.store import Store
from vm import disks, initramfs
from vm.snapshot import digest


def tree(directory: Path, dep: str, builtin: str = "") -> Path:
    directory.mkdir()
    (directory / "modules.dep").write_text(dep, encoding="utf-8")
    (directory / "modules.builtin").write_text(builtin, encoding="utf-8")
    return directory


def test_modules_in_the_order_of_their_needs(tmp_path: Path) -> None:
    directory = tree(
        tmp_path / "m",
        "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/fs/mbcache.ko\n"
        "kernel/fs/jbd2/jbd2.ko:\nkernel/fs/mbcache.ko:\nkernel/net/other.ko:\n"
        "kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_ring.ko "
        "kernel/drivers/virtio/virtio.ko\n"
        "kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko "
        "kernel/drivers/virtio/virtio.ko\n"
        "kernel/crypto/crc32c-generic.ko:\n",
    )
    assert [path.stem for path in initramfs.modules(directory)] == [
        "virtio", "virtio_ring", "virtio_pci", "crc32c-generic", "virtio_blk",
        "mbcache", "jbd2", "ext4",
    ]  # fmt: skip


def test_a_kernel_without_modules(tmp_path: Path) -> None:
    assert initramfs.modules(tmp_path / "none") == []


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Names with mode and content, as Documentation/driver-api/early-userspace has the format."""
    found, place = {}, 0
    while True:
        assert archive[place : place + 6] == b"070701"
        fields = [int(archive[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[place + 110 : place + 110 + length - 1].decode()
        begin = -(-(place + 110 + length) // 4) * 4
        if name == "TRAILER!!!":
            return found
        assert name not in found
        found[name] = mode, archive[begin : begin + size]
        place = -(-(begin + size) // 4) * 4


def test_the_archive(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "usr/bin").mkdir(parents=True)
    (layer / "usr/bin/tool").write_bytes(b"#!/bin/sh\n")
    (layer / "usr/bin/tool").chmod(0o755)
    (layer / "link").symlink_to("usr/bin")
    (layer / "usr/__pycache__").mkdir()
    shared = tmp_path / "agent"
    shared.mkdir()
    (shared / "a.py").write_bytes(b"12345")
    module, busybox = tmp_path / "x.ko", tmp_path / "busybox"
    module.write_bytes(b"module")
    busybox.write_bytes(b"box")
    made = [
        initramfs.content(busybox, [module], [layer], [(shared, "cohabit/agent")]) for _ in range(2)
    ]
    assert made[0] == made[1]
    found = unpacked(made[0])
    assert found["files/usr/bin/tool"] == (0o100755, b"#!/bin/sh\n")
    assert found["files/link"] == (0o120777, b"usr/bin")
    assert found["files/cohabit/agent/a.py"] == (0o100644, b"12345")
    assert found["lib/x.ko"][1] == b"module"
    assert found["modules"][1] == b"/lib/x.ko\n"
    assert found["bin/busybox"] == (0o100755, b"box")
    assert found["init"][1].startswith(b"#!/bin/busybox sh\n")
    assert "files/usr" in found
    assert not any("__pycache__" in name for name in found)
    names = list(found)
    assert all(str(Path(n).parent) in (".", *names[: names.index(n)]) for n in names)


def test_a_directory_outside_the_cache_is_known_by_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    (kernel / "a").write_bytes(b"1")
    first = disks.identity(store, kernel)
    assert first == disks.identity(store, kernel)
    (kernel / "b").write_bytes(b"")
    assert disks.identity(store, kernel) != first
    inside = store.root / "objects/kernel/abc/tree"
    assert disks.identity(store, inside) == {"entry": "kernel/abc/tree"}


@pytest.mark.parametrize("change", [b"x", b""])
def test_a_digest_sees_each_change(tmp_path: Path, change: bytes) -> None:
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(16 << 20)
        file.write(b"something")
    before = digest(path)
    assert digest(path) == before
    with path.open("r+b") as file:
        if change:
            file.seek((16 << 20) + 4)
            file.write(change)
        else:
            file.truncate(63 << 20)
    assert digest(path) != before
