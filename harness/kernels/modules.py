# SPDX-License-Identifier: GPL-2.0-only
"""Building out-of-tree modules for a kernel, inside the guest's root file system.

There, because kbuild's own tools need that root's C library, header packages have
absolute paths in them, and the result then depends on no compiler of the host.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.arch import ARCHES
from harness.errors import InfraError
from harness.kernels.model import Kernel
from harness.kernels.programs import run, tail
from harness.kernels.store import Store
from vm import namespace

Say = Callable[[str], None]

RECIPE = "1"
"""Counts up whenever building changes what comes out of the same sources."""

WARNINGS = "warnings.txt"
LOG = "build.log"

_SUFFIXES = {".c", ".h", ".S"}
_NAMES = {"Makefile", "Kbuild"}
_ERROR = re.compile(r"(^\S+?:\d+(:\d+)?: (fatal )?error: )|(^ERROR: )|(\*\*\* )")
_WARNING = re.compile(r"(^|\s)warning: ", re.I)


def build(kernel: Kernel, source: Path, root: Path, store: Store, say: Say) -> Path:
    """Return a directory with the ``.ko`` files that ``source`` makes for ``kernel``.

    ``source`` has a Makefile that takes KDIR and knows ``modules``; ``root`` is a root file
    system with a compiler for it (vm.rootfs.tools_root).  The directory also has
    ``warnings.txt`` (what compiler and modpost warned of, empty if nothing) and
    ``build.log``.  Raises InfraError with the first error when the build fails, or when the
    kernel came without headers.
    """
    if not kernel.headers:
        raise InfraError(
            f"{kernel.reference} came without headers: no module can be built for it",
            "take a release that has linux-headers packages",
        )
    sources = sorted(_sources(source))
    inputs = {
        "release": kernel.release,
        "origin": kernel.abi or kernel.origin,
        "sources": _digest(source, sources),
        "root": root.parent.name,
        "recipe": RECIPE,
    }

    def make(tree: Path) -> list[str]:
        say(f"building the kernel modules for {kernel.release}")
        with tempfile.TemporaryDirectory(dir=tree.parent) as name:
            work, mountpoint = Path(name, "build"), Path(name, "root")
            mountpoint.mkdir()
            for path in sources:
                target = work / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            log = _make(kernel, root, work, mountpoint, store)
            for module in sorted(work.rglob("*.ko")):
                shutil.copyfile(module, tree / module.name)
        (tree / LOG).write_text(log, encoding="utf-8")
        (tree / WARNINGS).write_text(warnings(log), encoding="utf-8")
        return [path.name for path in tree.glob("*.ko")]

    return store.get("modules", inputs, make, label=f"modules for {kernel.release}", say=say)


def _sources(source: Path) -> Iterator[Path]:
    for path in source.rglob("*"):
        # The module descriptions that kbuild leaves in a directory built by hand.
        if path.name.endswith(".mod.c"):
            continue
        if path.is_file() and (path.suffix in _SUFFIXES or path.name in _NAMES):
            yield path


def _digest(source: Path, paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(source)} {content}\n".encode())
    return digest.hexdigest()


def _make(kernel: Kernel, root: Path, work: Path, mountpoint: Path, store: Store) -> str:
    words = ["make", "-C", "/build", "-j2", f"KDIR=/lib/modules/{kernel.release}/build"]
    arch = ARCHES[kernel.arch]
    if not arch.native:
        words += [f"ARCH={arch.name}", f"CROSS_COMPILE={arch.cross}"]
    command = namespace.chroot_command(
        [*words, "modules"],
        lowers=[kernel.tree, root],
        mountpoint=mountpoint,
        binds=[(work, "build", True)],
    )
    what = f"building the modules for {kernel.release}"
    done = run(command, what=what, where=work, check=False, merge=True)
    log = done.stdout
    if done.returncode != 0:
        kept = store.state / f"build-{kernel.release}.log"
        kept.write_text(log, encoding="utf-8")
        raise InfraError(f"{what} failed:{first_error(log)}", f"the full log is in {kept}")
    return log


def first_error(log: str) -> str:
    """Return the first error in a build log with the source lines below it, indented."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if _ERROR.search(line):
            below = []
            for following in lines[number + 1 : number + 5]:
                if not following.startswith(" "):
                    break
                below.append(following)
            return "".join(f"\n    {text}" for text in (line, *below))
    return tail(log)


def warnings(log: str) -> str:
    """Return the lines of a build log in which compiler or modpost warn, one a line."""
    found = [line for line in log.splitlines() if _WARNING.search(line)]
    return "".join(f"{line}\n" for line in found)
