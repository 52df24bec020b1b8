# SPDX-License-Identifier: GPL-2.0-only
"""Running other programs: one place that turns their failures into errors for people."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

from harness.errors import InfraError

# Descriptors that every program started here inherits.  The cache puts the
# lock of a half-made entry here: a program that outlives a killed cohabit then
# still holds the lock, and nobody clears the directory that it writes to.
held_fds: ContextVar[tuple[int, ...]] = ContextVar("held_fds", default=())

_LOOK_UP_S = 0.5

_PACKAGES = {
    "apt-get": "apt",
    "apt-config": "apt",
    "dpkg": "dpkg",
    "dpkg-deb": "dpkg",
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "tar": "tar",
    "git": "git",
    "b4": "b4",
}
_FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "enough free space in",
)


def plain_env(**extra: str) -> dict[str, str]:
    """Return this process's environment with English messages and ``extra`` on top."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    env.pop("LANGUAGE", None)
    path = env.get("PATH", "/usr/bin:/bin")
    # An ordinary user's PATH often lacks the directories that system tools are in.
    env["PATH"] = f"{path}:/usr/local/sbin:/usr/sbin:/sbin"
    env["LC_ALL"] = "C.UTF-8"
    return env | extra


def not_found(program: str, what: str) -> InfraError:
    """Return the error for a missing ``program`` that ``what`` (a phrase) needs."""
    package = _PACKAGES.get(program)
    remedy = f"install it (Debian: apt install {package})" if package else "install it"
    return InfraError(f"{what}: the program {program} was not found", remedy)


def check_disk_full(output: str, where: Path) -> None:
    """Raise OSError(ENOSPC) when a failed program's ``output`` says that the disk is full."""
    if any(phrase in output for phrase in _FULL):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))


def tail(output: str, lines: int = 6) -> str:
    """Return the last non-empty ``lines`` of ``output``, indented, for an error message."""
    kept = [line for line in output.splitlines() if line.strip()][-lines:]
    return "".join(f"\n    {line}" for line in kept)


def run(
    argv: Sequence[str | Path],
    *,
    what: str,
    where: Path,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    merge: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run ``argv`` and return its result with stdout and stderr as text.

    ``what`` is a phrase for messages ("unpacking linux-image"), ``where`` the
    directory that it writes to; with ``merge`` stderr goes into stdout.  Raises
    InfraError when the program is missing or (with ``check``) fails, OSError(ENOSPC)
    when it fails for a full disk.
    """
    try:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            text=True,
            errors="replace",
            env=dict(env) if env is not None else plain_env(),
            pass_fds=held_fds.get(),
        )
    except FileNotFoundError:
        raise not_found(str(argv[0]), what) from None
    with process:
        try:
            stdout, stderr = _output(process)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if done.returncode != 0:
        check_disk_full(f"{done.stderr}{done.stdout}", where)
        if check:
            raise InfraError(
                f"{what} failed: {Path(argv[0]).name} ended with status {done.returncode}"
                + tail(done.stderr or done.stdout)
            )
    return done


def _output(process: subprocess.Popen[str]) -> tuple[str, str]:
    while True:
        try:
            return process.communicate(timeout=_LOOK_UP_S)
        except subprocess.TimeoutExpired:
            # Python handles a signal between two of its own instructions. One that comes
            # just before a read that waits would wait along, for as long as the program runs.
            continue


def stream(
    argv: Sequence[str | Path],
    *,
    what: str,
    log: Path,
    line: Callable[[str], None] | None = None,
) -> int:
    """Run a long ``argv`` and return its status; its output goes to the end of ``log``.

    ``line`` is called with each line as it comes.  The program is gone when this returns,
    also by an exception.  Raises InfraError when it is missing.
    """
    try:
        child = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=plain_env(),
            pass_fds=held_fds.get(),
            # Ctrl-C is for us alone: a child must not die before we know why.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise not_found(str(argv[0]), what) from None
    try:
        with log.open("a", encoding="utf-8") as file:
            assert child.stdout is not None
            for text in child.stdout:
                file.write(text)
                if line is not None:
                    line(text.rstrip("\n"))
        return child.wait()
    except BaseException:
        # unshare ignores all but SIGKILL, and takes what is inside along.
        child.kill()
        child.wait()
        raise
