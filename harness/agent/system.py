# SPDX-License-Identifier: GPL-2.0-only
"""System calls and files, each with the errno exactly as the kernel gave it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import time
from typing import Callable, Optional

_libc = ctypes.CDLL(None, use_errno=True)

# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h
_NUMBERS = {
    "x86_64": {"bpf": 321, "finit_module": 313, "delete_module": 176},
    "aarch64": {"bpf": 280, "finit_module": 273, "delete_module": 106},
}[platform.machine()]

#: Where our modules are.
KMODS = "/cohabit/kmods"

#: How often something that the kernel does by itself is looked at, in seconds.
POLL = 0.01


def _syscall(name: str, *args: object) -> int:
    ctypes.set_errno(0)
    if _libc.syscall(_NUMBERS[name], *args) < 0:
        return ctypes.get_errno()
    return 0


def bpf(command: int, attr: ctypes.Structure) -> int:
    """bpf(2); what it returns (a file descriptor, mostly), or the errno as a negative number."""
    ctypes.set_errno(0)
    result = int(_libc.syscall(_NUMBERS["bpf"], command, ctypes.byref(attr), ctypes.sizeof(attr)))
    return result if result >= 0 else -ctypes.get_errno()


def kmod(name: str) -> str:
    """The file of one of our modules."""
    return "%s/%s.ko" % (KMODS, name)


def load_module(path: str, params: str = "") -> int:
    """finit_module(2); the errno, 0 for success."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _syscall("finit_module", fd, ctypes.c_char_p(params.encode()), 0)
    finally:
        os.close(fd)


def unload_module(name: str, deadline: float) -> int:
    """delete_module(2); the errno, 0 for success.

    A module whose last reference is just being dropped answers EWOULDBLOCK
    (kernel/module/main.c: try_stop_module); that is asked again until
    ``deadline`` (time.monotonic()).
    """
    while True:
        error = _syscall("delete_module", ctypes.c_char_p(name.encode()), os.O_NONBLOCK)
        if error != errno.EWOULDBLOCK or time.monotonic() > deadline:
            return error
        time.sleep(POLL)


def module_loaded(name: str) -> bool:
    """Whether the module is there."""
    return os.path.isdir("/sys/module/%s" % name)


def wait(condition: Callable[[], bool], deadline: float) -> bool:
    """Looks again and again until the condition is true; False where ``deadline`` comes first."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def digest(path: str) -> str:
    """The SHA-256 of a file's bytes, "" where there is no such file."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except FileNotFoundError:
        return ""


def read(path: str) -> Optional[str]:
    """The file's text, or None where there is no such file (any more)."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "backslashreplace")
    except FileNotFoundError:
        return None
    except OSError as error:
        # A sysfs file whose object is going away (fs/kernfs/file.c), or a sysctl
        # of an ftrace that has shut itself down.
        if error.errno == errno.ENODEV:
            return None
        raise


def uptime() -> float:
    """Seconds since the kernel's boot."""
    return float((read("/proc/uptime") or "0").split()[0])


def write(path: str, text: str) -> int:
    """One write(2) of the text; its errno (a shell's echo would turn it into words)."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        os.write(fd, text.encode())
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        os.close(fd)
    return 0


def kaslr() -> Optional[bool]:
    """Whether the kernel moved itself at boot; None on other architectures than arm64.

    There it lies 2 GB above the end of the linear map, a power of two below the end of
    all addresses (arch/arm64/include/asm/memory.h: KIMAGE_VADDR), unless it was moved.
    """
    if platform.machine() != "aarch64":
        return None
    with open("/proc/kallsyms", "rb") as file:
        text = int(file.readline().split()[0], 16)
    below = (1 << 64) - (text - (2 << 30))
    return below & (below - 1) != 0


class KernelLog:
    """The kernel's messages since the last look, from /dev/kmsg.

    ``complete`` turns False for good once records were overwritten before they
    were read: whoever relies on the log must then not pass.
    """

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._next: Optional[int] = None
        self._records: list[dict[str, object]] = []
        self.complete = True

    def take(self) -> list[dict[str, object]]:
        """Records since the last call: ``level`` (0-7), ``t`` (seconds), ``text``."""
        self.look()
        records, self._records = self._records, []
        return records

    def look(self) -> None:
        """Reads what there is and keeps it for ``take``: the kernel keeps a few thousand."""
        while True:
            try:
                raw = os.read(self._fd, 16384)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self.complete = False
                continue
            # Documentation/ABI/testing/dev-kmsg: prefix,seq,usec,flags[,...];text
            head, _, text = raw.decode("utf-8", "backslashreplace").partition(";")
            fields = head.split(",")
            sequence = int(fields[1])
            if self._next is not None and sequence != self._next:
                self.complete = False
            self._next = sequence + 1
            self._records.append(
                {
                    "level": int(fields[0]) & 7,
                    "t": int(fields[2]) / 1e6,
                    "text": text.split("\n", 1)[0],
                }
            )
