# SPDX-License-Identifier: GPL-2.0-only
"""What cohabit needs of the machine that it runs on, each thing looked for, for ``cohabit doctor``.

Short on purpose: compilers, QEMU, depmod and kernel headers come from the cache.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.kernels import workspace
from vm import namespace

ROOM = 4 * 10**9
"""Bytes that the guest's root, QEMU and a few kernels take in the cache.

What a build from a tree takes beside is checked when one begins (harness.kernels.workspace).
"""

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_APT_HELPER = Path("/usr/lib/apt/apt-helper")


@dataclass(frozen=True)
class Need:
    """One needed thing: where or what it is (None: missing), what for, how to get it."""

    name: str
    found: str | None
    why: str
    remedy: str


def needs(user_is_root: bool, cache: Path) -> tuple[Need, ...]:
    """Return everything needed, found or not; ``cache`` is the cache's directory.

    Takes about a tenth of a second: what mounts must do is tried, not guessed.
    """
    found = [
        Need("python 3.11", _python(), "it runs cohabit", "install Python 3.11 or newer"),
        _program("apt-get", "fetches Debian's kernels and their signatures", "apt"),
        Need(
            "apt-helper",
            str(_APT_HELPER) if _APT_HELPER.exists() else None,
            "downloads packages by their hash",
            "install the package apt",
        ),
        _program("dpkg", "compares package versions", "dpkg"),
        _program("dpkg-deb", "unpacks packages", "dpkg"),
        _program("mmdebstrap", "makes the guest's root file system", "mmdebstrap"),
        _program("tar", "unpacks the guest's root file system", "tar"),
        _program("zstd", "unpacks kernel images that are packed by it", "zstd"),
        _program("git", "reads source trees, and applies patches to them", "git"),
        Need(
            "debian-archive-keyring",
            str(_KEYRING) if _KEYRING.is_file() else None,
            "checks the signatures of Debian's archive",
            "install the package debian-archive-keyring",
        ),
        _program("unshare", "gives every run its own mounts", "util-linux"),
    ]
    if not user_is_root:
        found += [_user_namespaces(), _uid_map()]
    found += [_overlay(), _room(cache)]
    return tuple(found)


def _python() -> str | None:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return f"{version} ({sys.executable})" if sys.version_info >= (3, 11) else None


def _which(name: str) -> str | None:
    path = os.environ.get("PATH", "/usr/bin:/bin")
    return shutil.which(name, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin")


def _program(name: str, why: str, package: str) -> Need:
    return Need(name, _which(name), why, f"install it (Debian: apt install {package})")


def _works(argv: Sequence[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _user_namespaces() -> Need:
    return Need(
        "user namespaces",
        "allowed" if _works(["unshare", "-U", "-r", "true"]) else None,
        "let an ordinary user mount things that only one run sees",
        "allow them (sysctl kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces), or run as root",
    )


def _uid_map() -> Need:
    """newuidmap, and ranges of subordinate ids for this user: mmdebstrap's unshare mode."""
    program = _which("newuidmap")
    names = {getpass.getuser(), str(os.getuid())}
    ranged = all(_has_range(Path(path), names) for path in ("/etc/subuid", "/etc/subgid"))
    return Need(
        "newuidmap and subordinate ids",
        program if ranged else None,
        "let an ordinary user make the guest's root file system",
        "install the package uidmap, then: usermod --add-subuids 100000-165535 "
        "--add-subgids 100000-165535 USER (as root; a range that nobody else has)",
    )


def _has_range(path: Path, names: set[str]) -> bool:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    fields = (line.split(":") for line in lines)
    return any(len(f) == 3 and f[0] in names and int(f[2]) >= 65536 for f in fields)


def _overlay() -> Need:
    """Mount one as a run does."""
    with tempfile.TemporaryDirectory() as name:
        lower, mountpoint = Path(name, "lower"), Path(name, "mnt")
        lower.mkdir()
        mountpoint.mkdir()
        works = _works(namespace.command(["true"], lowers=[lower], mountpoint=mountpoint))
    return Need(
        "overlay mounts",
        "works" if works else None,
        "put a kernel's files over the guest's root file system",
        "load the kernel module overlay; an ordinary user needs Linux 5.11 or newer; "
        "in a container, allow mounts (or start it privileged)",
    )


def _room(cache: Path) -> Need:
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    # What is in the cache already needs no more room.
    used = sum(1 for _ in cache.glob("objects/rootfs/*/tree")) > 0
    enough = free >= (ROOM // 4 if used else ROOM)
    text = f"{free / 1e9:.1f} GB free"
    if free < max(workspace.ROOM.values()):
        rooms = (f"{room / 1e9:.0f} GB ({flavour})" for flavour, room in workspace.ROOM.items())
        text += f"; the first build from a tree takes {', '.join(rooms)}"
    return Need(
        f"room in {existing}",
        text if enough else None,
        "the cache holds root file systems, QEMU, kernels and built modules",
        f"only {free / 1e9:.1f} GB are free: `cohabit kernels prune`, or set COHABIT_CACHE to a "
        "directory on a larger file system",
    )
