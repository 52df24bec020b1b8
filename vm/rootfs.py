# SPDX-License-Identifier: GPL-2.0-only
"""The guest's root file system: one Debian trixie, the same on every host.

It is also where modules are built, so that neither the host's compiler nor its
C library matters.  For an architecture that the host does not run, nothing of it is
run: its packages are only unpacked, and another root file system, the builder's, has the
programs for the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import arch as arches
from harness.arch import Arch
from harness.errors import InfraError
from harness.kernels import apt
from harness.kernels.programs import (
    check_disk_full,
    held_fds,
    not_found,
    plain_env,
    run,
    tail,
)
from harness.kernels.store import Store

from . import namespace

Say = Callable[[str], None]

SUITE = "trixie"
PACKAGES = (
    "python3",
    "python3-bpfcc",
    "python3-pyroute2",
    "kmod",
    "iproute2",
    "busybox-static",
    "e2fsprogs",
    "udev",
    "procps",
    "virtiofsd",
    "xz-utils",
    "gcc",
    "make",
    "dwarves",
    "libelf-dev",
    "libc6-dev",
    "openssh-server",
)
#: Of a root file system that is only unpacked: nothing but these and what they depend on.
FOREIGN_PACKAGES = (
    "base-files",
    "base-passwd",
    "bash",
    "busybox-static",
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "hostname",
    "iproute2",
    "kmod",
    "libc-bin",
    "mount",
    "openssh-server",
    "passwd",
    "procps",
    "python3",
    "python3-bpfcc",
    "python3-minimal",
    "python3-pyroute2",
    "sed",
    "util-linux",
    "xz-utils",
)
BUILDER_PACKAGES = (
    "gcc",
    "libc6-dev",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "dwarves",
    "python3",
    "kmod",
    "lz4",
    "ccache",
)
RECIPE = "2"
"""Counts up whenever what is done below changes what comes out."""

#: What a builder for another architecture has besides, for the host to run.
FOREIGN_BUILDER_PACKAGES = ("virtiofsd", "busybox-static", "e2fsprogs")

# virtiofsd on the host: Debian 12 has no Rust one, and a newer one wants a newer C
# library.  Other programs look for it by this name in PATH.
_VIRTIOFSD = """#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/../../..
exec "$root/{loader}" --library-path "$root/usr/lib/{triplet}" \\
    "$root/usr/libexec/virtiofsd" "$@"
"""

_EXCLUDED = ("man", "doc", "info", "locale", "lintian", "bug")

# Runs inside the new root.  Hash-based .pyc files stay valid whatever happens to
# the sources' times; without any, importing bcc takes 3 to 8 s under TCG.
_FINISH = """set -e
python3 -m compileall -q -f -j 2 --invalidation-mode unchecked-hash \
    /usr/lib/python3.?? /usr/lib/python3/dist-packages
mkdir -p /cohabit /srv /opt /mnt /usr/lib/modules
[ -e /usr/sbin/poweroff ] || ln -s ../bin/busybox /usr/sbin/poweroff
echo cohabit >/etc/hostname
rm -f /etc/apt/apt.conf.d/99mmdebstrap /etc/apt/sources.list /etc/ssh/ssh_host_*_key*
rm -rf /var/cache/apt /var/lib/apt/lists /var/log/apt /var/cache/debconf/*-old
"""


# The same without anything of it being run: what maintainer scripts would have done.
_FOREIGN_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
    "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/hostname": "cohabit\n",
}
_FOREIGN_LINKS = {"usr/sbin/poweroff": "../bin/busybox", "usr/bin/awk": "busybox"}


def guest_root(store: Store, say: Say, arch: Arch = arches.X86_64) -> Path:
    """Return the guest's root file system, made on first use (about a minute).

    Raises InfraError (mmdebstrap missing or failing) or UsageError (no mirror known).
    """
    if not arch.native:
        return _foreign_root(store, say, arch)
    inputs = {"suite": SUITE, "packages": " ".join(PACKAGES), "recipe": RECIPE, **_named(arch)}

    def make(tree: Path) -> list[str]:
        say(f"making the guest's root file system (Debian {SUITE}, about a minute)")
        mirrors = apt.find_mirrors()
        options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED]
        # The cache brings the finished tree to the disk in one go.
        options.append("--dpkgopt=force-unsafe-io")
        options.append('--customize-hook=chroot "$1" sh -c ' + _quoted(_FINISH))
        debootstrap(tree, options, SUITE, [apt.source_line(mirrors.archive, SUITE)], arch)
        _wrap_virtiofsd(tree)
        return ["usr/bin/kmod", "usr/libexec/virtiofsd", "usr/bin/busybox"]

    return store.get("rootfs", inputs, make, label=f"guest root ({_told(arch)})", say=say)


def _named(arch: Arch) -> dict[str, str]:
    """The architecture as an input of a cache entry; x86-64's were there before it was one."""
    return {} if arch is arches.X86_64 else {"arch": arch.name}


def _told(arch: Arch) -> str:
    return SUITE if arch is arches.X86_64 else f"{SUITE}, {arch.name}"


def _wrap_virtiofsd(tree: Path) -> None:
    host = arches.host()
    wrapper = virtiofsd(tree)
    wrapper.parent.mkdir()
    text = _VIRTIOFSD.format(loader=host.loader, triplet=host.triplet)
    wrapper.write_text(text, encoding="ascii")
    wrapper.chmod(0o755)


def _foreign_root(store: Store, say: Say, arch: Arch) -> Path:
    """The guest's root file system for an architecture that the host does not run."""
    tools = builder_root(store, say, arch)
    inputs = {"suite": SUITE, "packages": " ".join(FOREIGN_PACKAGES), "recipe": RECIPE}

    def make(tree: Path) -> list[str]:
        say(f"making the guest's root file system (Debian {SUITE} for {arch.name})")
        mirrors = apt.find_mirrors()
        options = ["--variant=extract", f"--include={','.join(FOREIGN_PACKAGES)}"]
        # Nothing of it is run, so nothing that could run it is needed.
        options.append("--skip=check/qemu")
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED]
        debootstrap(tree, options, SUITE, [apt.source_line(mirrors.archive, SUITE)], arch)
        for name in _EXCLUDED:
            shutil.rmtree(tree / "usr/share" / name, ignore_errors=True)
        for name, text in _FOREIGN_FILES.items():
            (tree / name).write_text(text, encoding="ascii")
        for name, target in _FOREIGN_LINKS.items():
            if not (tree / name).exists():
                (tree / name).symlink_to(target)
        for name in ("cohabit", "srv", "opt", "mnt", "root", "usr/lib/modules"):
            (tree / name).mkdir(parents=True, exist_ok=True)
        _compile_python(tree, tools)
        return ["usr/bin/kmod", "usr/bin/busybox"]

    inputs.update(_named(arch))
    return store.get("rootfs", inputs, make, label=f"guest root ({_told(arch)})", say=say)


def _compile_python(tree: Path, tools: Path) -> None:
    """Make the ``.pyc`` files of ``tree`` by the python of ``tools``: the same on each machine."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as mountpoint:
        words = ["python3", "-m", "compileall", "-q", "-f", "-j", "2"]
        words += ["--invalidation-mode", "unchecked-hash", "-s", "/tree"]
        words += [f"/tree/{path.relative_to(tree)}" for path in tree.glob("usr/lib/python3.??")]
        words.append("/tree/usr/lib/python3/dist-packages")
        command = namespace.chroot_command(
            words, lowers=[tools], mountpoint=Path(mountpoint), binds=[(tree, "tree", True)]
        )
        run(command, what="compiling the guest's Python modules", where=tree)


def tools_root(store: Store, say: Say, arch: Arch) -> Path:
    """Return a root file system whose programs the host runs for guests of ``arch``.

    kmod, virtiofsd and, for module builds, make and a compiler: the guest's own where the
    host runs it, otherwise the builder's.  Raises as ``guest_root``.
    """
    return guest_root(store, say, arch) if arch.native else builder_root(store, say, arch)


def builder_root(store: Store, say: Say, arch: Arch = arches.X86_64) -> Path:
    """Return the root file system in which kernels for ``arch`` are built, made on first use.

    The same Debian as the guest's: what a kernel's build leaves for module builds (modpost,
    objtool) then runs in the guest's root too.  Raises as ``guest_root``.
    """
    packages: tuple[str, ...] = BUILDER_PACKAGES
    if not arch.native:
        packages += (f"gcc-{arch.triplet.replace('_', '-')}", *FOREIGN_BUILDER_PACKAGES)
    inputs = {"suite": SUITE, "packages": " ".join(packages), "recipe": RECIPE}

    def make(tree: Path) -> list[str]:
        say(f"making the root file system that builds kernels (Debian {SUITE}, about a minute)")
        mirrors = apt.find_mirrors()
        options = ["--variant=minbase", f"--include={','.join(packages)}"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED]
        options.append("--dpkgopt=force-unsafe-io")
        options.append('--customize-hook=rm -rf "$1"/var/cache/apt "$1"/var/lib/apt/lists')
        debootstrap(tree, options, SUITE, [apt.source_line(mirrors.archive, SUITE)], arches.host())
        if not arch.native:
            _wrap_virtiofsd(tree)
        return ["usr/bin/make", "usr/bin/ccache"]

    return store.get("builder", inputs, make, label=f"kernel builder ({_told(arch)})", say=say)


def virtiofsd(root: Path) -> Path:
    """Return the script that runs the virtiofsd of the root file system ``root`` on any host.

    It is alone in its directory, which can be put into PATH.
    """
    return root / "usr/lib/cohabit/virtiofsd"


def _quoted(script: str) -> str:
    return "'" + script.replace("'", "'\\''") + "'"


def debootstrap(
    tree: Path, options: Sequence[str], suite: str, sources: Sequence[str], arch: Arch
) -> None:
    """Fill the directory ``tree`` by mmdebstrap with ``options``, for root and ordinary users.

    For an ordinary user everything belongs to that user afterwards; device nodes
    are left out.  Raises InfraError with mmdebstrap's errors.
    """
    root = os.geteuid() == 0
    words = ["mmdebstrap", "--format=tar", f"--architectures={arch.debian}", *options]
    words += [f"--aptopt={line}" for line in apt.acquire_options()]
    words += ["--mode=root" if root else "--mode=unshare", suite, "-", *sources]
    unpack = ["tar", "-x", "-C", str(tree), "--exclude=./dev/*"]
    if not root:
        unpack.append("--no-same-owner")
    with _scratch(tree.parent) as scratch, tempfile.TemporaryFile("w+", errors="replace") as log:
        status = _pipe(words, unpack, log.fileno(), scratch)
        log.seek(0)
        text = log.read()
    if status:
        check_disk_full(text, tree)
        errors = [line for line in text.splitlines() if line.startswith(("E:", "tar:"))]
        raise InfraError(
            f"mmdebstrap could not make a Debian {suite} tree"
            + tail("\n".join(errors[:4]) or text),
            "`cohabit doctor` says what it needs",
        )


def _pipe(words: Sequence[str], unpack: Sequence[str], log: int, scratch: Path) -> int:
    """Run ``words | unpack`` and return the first non-zero status."""
    env = plain_env(TMPDIR=str(scratch))
    fds = held_fds.get()
    try:
        maker = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            pass_fds=fds,
        )
    except FileNotFoundError:
        raise not_found(words[0], "making a Debian tree") from None
    with maker:
        unpacked = subprocess.run(
            unpack, stdin=maker.stdout, stderr=log, env=env, pass_fds=fds, check=False
        )
    return unpacked.returncode or maker.returncode


@contextlib.contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """Give mmdebstrap a scratch directory; it is gone afterwards.

    For an ordinary user mmdebstrap works under other user ids, which must be able to
    enter the directory: one in a home directory will not do.  What killed runs left in
    the common one is removed here, the cache sees to the rest.
    """
    root = os.geteuid() == 0
    prefix = f"cohabit-{os.geteuid()}-"
    common = Path(tempfile.gettempdir())
    if not root:
        for stale in common.glob(f"{prefix}*"):
            _clear(stale)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=beside if root else common))
    scratch.chmod(0o755)
    # Held by what mmdebstrap runs, too: nobody clears under a survivor.
    fd = os.open(scratch, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    held = held_fds.set((*held_fds.get(), fd))
    try:
        yield scratch
    finally:
        held_fds.reset(held)
        os.close(fd)
        _clear(scratch)


def _clear(scratch: Path) -> None:
    """Remove a scratch directory of this user unless somebody still works in it."""
    try:
        fd = os.open(scratch, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(scratch, ignore_errors=True)
        if scratch.exists():
            # What is left belongs to the user's subordinate ids.
            words = ["unshare", "-U", "--map-root-user", "--map-auto", "rm", "-rf", str(scratch)]
            subprocess.run(words, capture_output=True, env=plain_env(), check=False)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
