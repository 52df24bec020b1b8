# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs of the engine ``direct``: what a guest needs before it has a root."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.errors import InfraError
from harness.kernels.store import Store

Say = Callable[[str], None]

_BOOT = Path(__file__).resolve().parent / "boot"

#: What the way from the initramfs to the agent needs of the kernel, as far as it is not
#: built in.  ext4 of 5.10 asks for the second name by itself (fs/ext4/super.c).
_MODULES = ("virtio_pci", "crc32c_generic", "virtio_blk", "ext4", "overlay", "virtio_console")


def modules(directory: Path) -> list[Path]:
    """The files of _MODULES that have to be loaded, in that order, each after what it needs.

    ``directory``: where depmod worked, usr/lib/modules/RELEASE.  What a kernel neither has
    built in nor as a module is not among them.
    """
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    try:
        lines = (directory / "modules.dep").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        # A kernel without modules.
        return []
    for line in lines:
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        by_name[Path(path).name.removesuffix(".ko").replace("-", "_")] = path
    found: list[str] = []
    for name in _MODULES:
        if path := by_name.get(name, ""):
            # The nearest comes first there (kmod's depmod.c: depmod_output_modules_dep).
            found += [p for p in (*reversed(needs[path]), path) if p not in found]
    return [directory / path for path in found]


class _Archive:
    """A cpio archive as the kernel unpacks it (Documentation/driver-api/early-userspace)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._there: set[str] = set()

    def add(self, name: str, mode: int, data: bytes = b"") -> None:
        """Adds a file, directory or link by its type in ``mode``, and what is above it."""
        parent = os.path.dirname(name)  # noqa: PTH120
        if parent and parent not in self._there:
            self.add(parent, stat.S_IFDIR | 0o755)
        if name in self._there:
            return
        self._there.add(name)
        self._entry(name, mode, data)

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers)
        for part in (head + path, data):
            self._parts.append(part + b"\0" * (-len(part) % 4))

    def tree(self, source: Path, name: str) -> None:
        """Adds what is in a directory."""
        for path in _walk(source):
            mode = path.lstat().st_mode
            target = f"{name}/{path.relative_to(source)}"
            if stat.S_ISDIR(mode):
                self.add(target, stat.S_IFDIR | 0o755)
            elif stat.S_ISLNK(mode):
                self.add(target, stat.S_IFLNK | 0o777, os.fsencode(path.readlink()))
            elif stat.S_ISREG(mode):
                executable = 0o111 if mode & 0o100 else 0
                self.add(target, stat.S_IFREG | 0o644 | executable, path.read_bytes())

    def content(self) -> bytes:
        """The whole archive."""
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)


def _walk(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.name == "__pycache__":
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def content(
    busybox: Path,
    kernel_modules: Sequence[Path],
    layers: Sequence[Path],
    shares: Sequence[tuple[Path, str]],
) -> bytes:
    """The archive; the same for the same files.

    ``layers`` and ``shares`` as in vm.machine.Machine, the layers without the kernel's and
    the root file system: they come to lie over these.
    """
    archive = _Archive()
    for name in ("bin", "dev", "proc", "sys", "files/cohabit"):
        archive.add(name, stat.S_IFDIR | 0o755)
    # The kernel opens it for the first program (init/main.c: console_on_rootfs).
    archive.add("init", stat.S_IFREG | 0o755, (_BOOT / "init").read_bytes())
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    names = []
    for path in kernel_modules:
        names.append(f"/lib/{path.name}")
        archive.add(f"lib/{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
    archive.add("modules", stat.S_IFREG | 0o644, "".join(f"{n}\n" for n in names).encode())
    start = (_BOOT / "start").read_bytes()
    archive.add("files/cohabit/start", stat.S_IFREG | 0o755, start)
    for layer in layers:
        archive.tree(layer, "files")
    for source, target in shares:
        archive.tree(source, f"files/{target}")
    return archive.content()


def stored(data: bytes, store: Store, say: Say) -> Path:
    """The archive as a file in the cache."""

    def make(tree: Path) -> list[str]:
        (tree / "initramfs").write_bytes(data)
        return ["initramfs"]

    digest = hashlib.sha256(data).hexdigest()
    tree = store.get("initramfs", {"sha256": digest}, make, label="initramfs", say=say)
    return tree / "initramfs"


def busybox(root: Path) -> Path:
    """The static busybox of a guest's root file system; raises InfraError without one."""
    path = root / "usr/bin/busybox"
    if not path.is_file():
        raise InfraError(f"the guest's root file system {root} has no busybox")
    return path
