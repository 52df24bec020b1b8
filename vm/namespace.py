# SPDX-License-Identifier: GPL-2.0-only
"""A private mount and process namespace around a command.

The guest's file system is an overlay of read-only directories (the root file
system and a kernel's tree) that only the command sees.  Nothing is mounted on
the host: mounts and processes end with the outer ``unshare``, also when that is
killed with SIGKILL.  ``unshare --fork`` ignores SIGTERM and SIGINT, so SIGKILL
is the way to stop it.  Root needs no user namespace; an ordinary user gets one
in which every file of theirs looks root-owned.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

SETUP_FAILED = 125
"""Exit status when the mounts could not be made; stderr then has the reason."""

Bind = tuple[Path, str, bool]
"""Source on the host, path below the mount point, whether it is writable."""

# Arguments: kind, mount point, then three counted lists (layers; mount points
# to make; binds of three words each: source, target, rw or ro), then the command.
#
# The layers are bound to short names in a tmpfs first, because overlayfs has its
# own escapes for ':', ',' and '\' in lowerdir= and mount(8) adds another level
# of them: with relative names none of it matters.  The lowest layer holds the
# mount points that the others lack; it is also the second layer that a
# read-only overlay must have.
_SETUP = r"""
fail() { echo "cohabit: cannot set up the guest's files: $*" >&2; exit 125; }
kind=$1 mnt=$2 here=$PWD; shift 2
mount -t tmpfs -o mode=755 cohabit "$mnt" || fail "tmpfs on $mnt"
cd "$mnt" || fail "cd $mnt"
n=$1 i=0 layers=; shift
while [ $i -lt "$n" ]; do
    mkdir $i && mount --bind "$1" $i || fail "layer $1"
    layers=$layers$i:; shift; i=$((i + 1))
done
n=$1 i=0; shift; mkdir points
while [ $i -lt "$n" ]; do
    mkdir -p "points/$1" || fail "mount point $1"
    shift; i=$((i + 1))
done
mount -t overlay -o "ro,lowerdir=${layers}points" cohabit "$mnt" || fail "overlay on $mnt"
cd "$mnt" || fail "cd $mnt"
n=$1 i=0; shift
while [ $i -lt "$n" ]; do
    mount --rbind "$1" "./$2" || fail "$1 on $2"
    [ "$3" = rw ] || mount -o remount,bind,ro "./$2" || fail "$2 read-only"
    shift 3; i=$((i + 1))
done
if [ "$kind" = chroot ]; then
    mount -t proc proc proc || fail proc
    mount -t tmpfs -o mode=1777 tmp tmp || fail tmp
    mount -t tmpfs -o mode=755 dev dev || fail dev
    for i in null zero full random urandom; do
        : >dev/$i && mount --bind /dev/$i dev/$i || fail /dev/$i
    done
    ln -s /proc/self/fd dev/fd && mkdir -m 1777 dev/shm || fail dev
    set -- chroot "$mnt" "$@"
else
    cd "$here" || fail "cd $here"
fi
exec "$@"
"""


def _wrap(
    kind: str,
    argv: Sequence[str],
    lowers: Sequence[Path],
    mountpoint: Path,
    binds: Sequence[Bind],
) -> list[str]:
    if not lowers:
        raise ValueError("an overlay needs at least one directory")
    unshare = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        unshare[1:1] = ["-U", "-r"]
    points = [target.strip("/") for source, target, _ in binds if source.is_dir()]
    if kind == "chroot":
        points += ["proc", "tmp", "dev"]
    words = [kind, str(mountpoint.resolve())]
    words += [str(len(lowers)), *(str(lower.resolve()) for lower in lowers)]
    words += [str(len(points)), *points]
    words.append(str(len(binds)))
    for source, target, writable in binds:
        words += [str(source.resolve()), target.strip("/"), "rw" if writable else "ro"]
    return [*unshare, "--", "sh", "-c", _SETUP, "cohabit", *words, *argv]


def command(
    argv: Sequence[str],
    *,
    lowers: Sequence[Path],
    mountpoint: Path,
    binds: Sequence[Bind] = (),
) -> list[str]:
    """Return an argv that runs ``argv`` with a read-only overlay at ``mountpoint``.

    ``lowers`` are the layers, the uppermost first; ``mountpoint`` is an existing
    directory of the host, empty to everybody else.  ``binds`` are bound into the
    overlay; a directory's mount point need not exist.  The status is that of
    ``argv``, or SETUP_FAILED.
    """
    return _wrap("plain", argv, lowers, mountpoint, binds)


def chroot_command(
    argv: Sequence[str],
    *,
    lowers: Sequence[Path],
    mountpoint: Path,
    binds: Sequence[Bind] = (),
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """Return an argv that runs ``argv`` inside the overlay, as its root.

    As ``command``, and the command finds ``/proc``, a small ``/dev`` and an
    empty writable ``/tmp``, starts in ``/`` and sees no environment but a PATH,
    HOME, ``LC_ALL=C.UTF-8`` and ``env``.
    """
    setting = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
    } | dict(env or {})
    clean = ["env", "-i", *(f"{name}={value}" for name, value in setting.items())]
    return _wrap("chroot", [*clean, *argv], lowers, mountpoint, binds)
