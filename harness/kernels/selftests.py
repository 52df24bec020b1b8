# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own tools/testing/selftests/livepatch, for ``cohabit bench`` to compare with.

Taken from Debian's ``linux-source-SERIES`` when it is wanted, built for one kernel inside
the guest's root file system, and kept nowhere but in the cache.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.errors import InfraError
from harness.kernels import modules
from harness.kernels.apt import Apt, GoneError, Package, find_mirrors
from harness.kernels.debian import older
from harness.kernels.model import Kernel
from harness.kernels.programs import held_fds, not_found, plain_env, run, tail
from harness.kernels.store import Store
from vm import namespace
from vm.machine import Machine

Say = Callable[[str], None]

RECIPE = "1"
"""Counts up whenever unpacking or building changes what comes out."""

DIRECTORY = "cohabit/selftests"
"""Where the scripts are in the guest, below its root; they must be started there."""

_SCRIPTS = "tools/testing/selftests/livepatch/"
_MODULES = "tools/testing/selftests/livepatch/test_modules/"
# Before Linux 6.9 the scripts load modules of the kernel's own build, by modprobe.
_OLD_MODULES = "lib/livepatch/"
# Prefixes in the source package, and where what they stand for is kept.
_PLACES = {_MODULES: "modules/new", _SCRIPTS: "scripts", _OLD_MODULES: "modules/old"}
# The headers name the compiler that the kernel was built with; the guest's root has one,
# and no test looks at the modules' BTF, which not all header packages can make.
_MAKEFILE = """modules:
\t$(MAKE) -C $(KDIR) M=$(CURDIR)/{kind} CC=gcc \\
\t\tCONFIG_TEST_LIVEPATCH=m CONFIG_DEBUG_INFO_BTF_MODULES= modules
"""
# Their expectations are messages of kernel/livepatch that dynamic debug turns on.
_OPTIONS = ("CONFIG_LIVEPATCH", "CONFIG_DYNAMIC_DEBUG")


@dataclass(frozen=True)
class Selftests:
    """Scripts and modules that are ready to run on one kernel.

    ``layer`` is to be laid over the kernel's tree in the guest; ``source`` is the package
    they come from with its version; ``scripts`` are file names in DIRECTORY.
    """

    layer: Path
    source: str
    scripts: tuple[str, ...]

    def add_to(self, machine: Machine) -> Machine:
        """Return a VM like ``machine``, with the selftests in its root file system."""
        upper, *lower = machine.layers
        return dataclasses.replace(machine, layers=(upper, self.layer, *lower))


def prepare(kernel: Kernel, root: Path, store: Store, say: Say) -> Selftests:
    """Return the selftests of ``kernel``'s series, fetched and built on first use.

    They are of the very version that the kernel was built from if that can be had, else of
    the newest.  ``root`` is the guest's root file system.  Raises InfraError when the kernel
    can't run them, there is no such package, or they can't be built.
    """
    for option in _OPTIONS:
        if kernel.config and kernel.config.get(option) != "y":
            raise InfraError(
                f"{kernel.release} can't run selftests/livepatch: it lacks {option}",
                "take a kernel that has it",
            )
    name = "linux-source-{}.{}".format(*kernel.version)
    version, source = fetch(name, kernel.origin, store, say)
    try:
        built = modules.build(kernel, source / "modules", root, store, say)
    except InfraError as error:
        raise InfraError(f"selftests/livepatch: {error.message}", error.remedy) from error
    inputs = {
        "release": kernel.release,
        "scripts": source.parent.name,
        "modules": built.parent.name,
        "root": root.parent.name,
        "recipe": RECIPE,
    }

    def make(tree: Path) -> None:
        shutil.copytree(source / "scripts", tree / DIRECTORY)
        if (source / "modules/old").is_dir():
            _install_old(kernel, built, root, tree)
        else:
            _copy_modules(built, tree / DIRECTORY / "test_modules")
        _compile(root, tree)

    label = f"selftests for {kernel.release}"
    layer = store.get("selftest", inputs, make, label=label, say=say)
    scripts = sorted(path.name for path in (layer / DIRECTORY).glob("test-*.sh"))
    return Selftests(layer, f"{name} {version}", tuple(scripts))


def fetch(name: str, origin: str, store: Store, say: Say) -> tuple[str, Path]:
    """Return the version that was taken of the package ``name``, and its part that is wanted.

    ``origin`` is the kernel's, which ends with its version.  Raises InfraError when no
    version can be had.  See ``unpack`` for what is in the directory.
    """
    wanted = origin.rpartition(" ")[2]

    @functools.cache
    def apt() -> Apt:
        return Apt(store.state, find_mirrors(), say)

    def versions() -> Iterator[str]:
        # What is in the cache needs no list, and so no network.
        if store.find("source", _inputs(name, wanted)):
            yield wanted
        yield from _by_preference(_offered(name, apt()), wanted)

    for version in versions():

        def make(tree: Path, version: str = version) -> None:
            packages = _offered(name, apt())
            if version not in packages:
                raise GoneError(f"{name} {version} is not in the package lists any more")
            package = packages[version]
            say(f"fetching {name} {version} for its livepatch tests, {package.size / 1e6:.0f} MB")
            with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
                (deb,) = apt().download([package], Path(scratch))
                unpack(deb, tree)

        try:
            tree = store.get(
                "source", _inputs(name, version), make, label=f"{name} {version}", say=say
            )
        except GoneError as error:
            say(f"{error.message}; trying another")
            continue
        return version, tree
    raise InfraError(
        f"no reachable Debian suite has {name}, which selftests/livepatch is taken from",
        "take a kernel whose series Debian still has",
    )


def _inputs(name: str, version: str) -> dict[str, str]:
    return {"package": name, "version": version, "recipe": RECIPE}


def _offered(name: str, apt: Apt) -> dict[str, Package]:
    """Return the packages of that name by version."""
    found: dict[str, Package] = {}
    for fresh in (False, True):
        found = {p.version: p for p in apt.kernel_packages(fresh=fresh) if p.name == name}
        if found:
            break
    return found


def _by_preference(versions: Iterable[str], wanted: str) -> list[str]:
    """Return the versions: the wanted one first, then the newest."""

    def compare(one: str, other: str) -> int:
        if wanted in (one, other):
            return -1 if one == wanted else 1
        return -1 if older(other, one) else 1

    return sorted(versions, key=functools.cmp_to_key(compare))


def unpack(deb: Path, tree: Path) -> None:
    """Put what is needed of a linux-source package into ``tree``.

    ``scripts`` has the scripts, ``modules`` what harness.kernels.modules can build.
    Raises InfraError when the package is not what it should be.
    """
    words = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    fds = held_fds.get()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            reader = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=errors, env=plain_env(), pass_fds=fds
            )
        except FileNotFoundError:
            raise not_found(words[0], f"unpacking {deb.name}") from None
        problem = ""
        # Leaving it closes the pipe, and dpkg-deb ends.
        with reader:
            assert reader.stdout is not None
            try:
                _unpack_stream(reader.stdout, tree)
                # So that its status is not that of a pipe closed too early.
                while reader.stdout.read(1 << 20):
                    pass
            except tarfile.TarError as error:
                problem = str(error)
        if problem or reader.returncode != 0:
            errors.seek(0)
            raise InfraError(f"{deb.name} can't be unpacked: {problem}{tail(errors.read(), 3)}")
    kinds = [path.name for path in tree.glob("modules/*")]
    if not (tree / "scripts/functions.sh").is_file() or len(kinds) != 1:
        raise InfraError(
            f"{deb.name} has no selftests/livepatch of a known kind",
            f"looked for {_SCRIPTS}functions.sh, {_MODULES} and {_OLD_MODULES}",
        )
    makefile = _MAKEFILE.format(kind=kinds[0])
    (tree / "modules/Makefile").write_text(makefile, encoding="ascii")


def _unpack_stream(stream: IO[bytes], tree: Path) -> None:
    with tarfile.open(fileobj=stream, mode="r|") as package:
        for packed in package:
            if not packed.name.endswith(".tar.xz"):
                continue
            with tarfile.open(fileobj=package.extractfile(packed), mode="r|xz") as source:
                for member in source:
                    # The first part is the directory that everything is in.
                    path = member.name.removeprefix("./").partition("/")[2]
                    prefix = next((p for p in _PLACES if path.startswith(p)), None)
                    content = source.extractfile(member) if prefix and member.isreg() else None
                    if prefix and content:
                        target = tree / _PLACES[prefix] / path.removeprefix(prefix)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with content, target.open("wb") as file:
                            shutil.copyfileobj(content, file)


def _copy_modules(built: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for module in built.glob("*.ko"):
        shutil.copyfile(module, target / module.name)


def _install_old(kernel: Kernel, built: Path, root: Path, tree: Path) -> None:
    """Put the modules where modprobe finds them, with an index of all modules."""
    place = f"usr/lib/modules/{kernel.release}"
    _copy_modules(built, tree / place / "updates")
    argv = ["depmod", "-m", "/usr/lib/modules", "-o", "/build", kernel.release]
    with tempfile.TemporaryDirectory(dir=tree.parent) as index:
        # Not into the layer itself: what an overlay consists of must not change.
        _inside(argv, [tree, kernel.tree, root], Path(index), tree.parent)
        shutil.copytree(Path(index) / place, tree / place, dirs_exist_ok=True)


def _compile(root: Path, tree: Path) -> None:
    """Make the programs that the scripts start."""
    for source in (tree / DIRECTORY).glob("*.c"):
        argv = ["gcc", "-O2", "-o", f"/build/{source.stem}", f"/build/{source.name}"]
        _inside(argv, [root], source.parent, tree.parent)


def _inside(argv: Sequence[str], lowers: Sequence[Path], build: Path, scratch: Path) -> None:
    """Run a command in the guest's root file system with ``build`` at ``/build``."""
    with tempfile.TemporaryDirectory(dir=scratch) as mountpoint:
        command = namespace.chroot_command(
            argv, lowers=lowers, mountpoint=Path(mountpoint), binds=[(build, "build", True)]
        )
        what = f"{argv[0]} for the selftests"
        done = run(command, what=what, where=build, check=False, merge=True)
    if done.returncode != 0:
        raise InfraError(f"selftests/livepatch: {what} failed:{modules.first_error(done.stdout)}")
