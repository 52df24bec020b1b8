# SPDX-License-Identifier: GPL-2.0-only
"""From unpacked kernel files to a tree that can be laid over the guest's root.

Whatever the packaging, the result is the same: ``boot/vmlinuz-REL``,
``boot/config-REL`` and ``boot/System.map-REL`` as far as they exist, everything else
below ``usr``, modules uncompressed and indexed.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import arch as arches
from harness.arch import Arch
from harness.errors import InfraError
from harness.kernels.model import Kernel, version_of
from harness.kernels.programs import run

# What packages bring along and no guest needs.
_UNWANTED = ("usr/share", "usr/bin", "etc")


def finish(tree: Path, release: str, tools: Path, arch: Arch) -> list[str]:
    """Bring the unpacked ``tree`` into its final shape; returns the critical files.

    ``tools`` is a root file system whose depmod the host can run.  Raises InfraError
    when there is no image of ``release``.
    """
    _merge_usr(tree)
    for name in _UNWANTED:
        shutil.rmtree(tree / name, ignore_errors=True)
    _gather_boot(tree, release)
    modules = tree / "usr/lib/modules" / release
    if modules.is_dir():
        _relink(modules)
        _decompress(modules)
        _depmod(tree, release, tools)
    if arch is arches.X86_64:
        _provide_vmlinux(tree, release)
    return [f"boot/vmlinuz-{release}"]


def kernel_in(tree: Path, *, reference: str, release: str, origin: str, arch: Arch) -> Kernel:
    """Describe the finished ``tree`` of ``release``."""

    def optional(name: str) -> Path | None:
        path = tree / "boot" / f"{name}-{release}"
        return path if path.exists() else None

    return Kernel(
        reference=reference,
        release=release,
        arch=arch.name,
        version=version_of(release),
        image=tree / "boot" / f"vmlinuz-{release}",
        tree=tree,
        config_file=optional("config"),
        system_map=optional("System.map"),
        origin=origin,
        headers=(tree / "usr/lib/modules" / release / "build/Makefile").is_file(),
    )


def image_release(image: Path) -> tuple[str, Arch] | None:
    """Return the release that a kernel image names, and its architecture; None if it is none.

    A bzImage has "HdrS" at 0x202, and at 0x20e the offset of the version string, less
    0x200 (Documentation/arch/x86/boot.rst).  An arm64 Image has "ARM\\x64" at 0x38
    (Documentation/arch/arm64/booting.rst) and the release in the kernel's first message.
    """
    with image.open("rb") as file:
        head = file.read(0x210)
        if head[0x38:0x3C] == b"ARM\x64":
            banner = re.search(rb"Linux version (\d\S+) ", head + file.read())
            return (banner[1].decode(errors="replace"), arches.ARM64) if banner else None
        if len(head) < 0x210 or head[0x202:0x206] != b"HdrS":
            return None
        file.seek(struct.unpack_from("<H", head, 0x20E)[0] + 0x200)
        text = file.read(256).split(b"\0")[0].decode(errors="replace")
    release = text.split(" ")[0]
    return (release, arches.X86_64) if release else None


def _merge_usr(tree: Path) -> None:
    """Move ``lib`` into ``usr/lib``: in the guest's root ``/lib`` is a link to it."""
    lib = tree / "lib"
    if not lib.is_dir() or lib.is_symlink():
        return
    for directory, _, files in os.walk(lib):
        here = Path(directory)
        target = tree / "usr/lib" / here.relative_to(lib)
        target.mkdir(parents=True, exist_ok=True)
        # os.walk lists links to directories (build, source) as directories.
        links = [item.name for item in here.iterdir() if item.is_symlink()]
        for name in {*files, *links}:
            (here / name).rename(target / name)
    shutil.rmtree(lib)


def _relink(modules: Path) -> None:
    """Make ``build`` and ``source`` lead to ``usr/src`` relatively, as newer packages do."""
    for name in ("build", "source"):
        link = modules / name
        if link.is_symlink() and (target := link.readlink()).parent.parts[-2:] == ("usr", "src"):
            link.unlink()
            link.symlink_to(f"../../../src/{target.name}")


def _gather_boot(tree: Path, release: str) -> None:
    boot = tree / "boot"
    boot.mkdir(exist_ok=True)
    modules = tree / "usr/lib/modules" / release
    for name, sources in (
        ("vmlinuz", ("vmlinuz", "vmlinuz.unsigned")),
        ("config", ("config",)),
        ("System.map", ("System.map",)),
    ):
        target = boot / f"{name}-{release}"
        for source in sources:
            if not target.exists() and (modules / source).is_file():
                (modules / source).rename(target)
    # Debian's System.map is a line that says where the real one is.
    system_map = boot / f"System.map-{release}"
    if system_map.exists() and system_map.stat().st_size < 4096:
        system_map.unlink()
    if not (boot / f"vmlinuz-{release}").is_file():
        raise InfraError(f"no kernel image of {release} was found")


def _decompress(modules: Path) -> None:
    """Unpack ``*.ko.xz``: neither virtme's initramfs nor older guests load them."""
    packed = sorted(modules.rglob("*.ko.*"))
    other = [path for path in packed if path.suffix != ".xz"]
    if other:
        raise InfraError(f"modules are compressed in a way that is not known: {other[0].name}")

    def unpack(path: Path) -> None:
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(unpack, packed))


def loader(root: Path, program: str, name: str = "") -> list[str]:
    """Return the words that run ``program`` of a foreign ``root`` without a chroot.

    Through the root's own dynamic loader and libraries: the host's C library may
    be older than the program needs.  ``name`` is what the program sees as argv[0].
    """
    host = arches.host()
    words = [str(root / host.loader), "--library-path", str(root / f"usr/lib/{host.triplet}")]
    return [*words, *(["--argv0", name] if name else []), str(root / program)]


def _depmod(tree: Path, release: str, tools: Path) -> None:
    link = tree / "lib"
    if not link.exists():
        link.symlink_to("usr/lib")
    try:
        command: Sequence[str] = loader(tools, "usr/bin/kmod", "depmod")
        run([*command, "-b", tree, release], what=f"depmod for {release}", where=tree)
    finally:
        if link.is_symlink():
            link.unlink()


def _provide_vmlinux(tree: Path, release: str) -> None:
    """Give module builds the BTF of vmlinux that Debian's headers before 6.12 lack.

    scripts/Makefile.modfinal skips BTF for a module when ``vmlinux`` is missing, and the
    verifier then refuses programs on the module's functions.
    """
    headers = (tree / "usr/src" / f"linux-headers-{release}").resolve()
    config = headers / ".config"
    vmlinux = headers / "vmlinux"
    if vmlinux.exists() or not config.is_file():
        return
    if re.search(r"^CONFIG_DEBUG_INFO_BTF_MODULES=y$", config.read_text(), re.M):
        from harness.kernels.vmlinux import extract_vmlinux

        extract_vmlinux(tree / "boot" / f"vmlinuz-{release}", vmlinux)
