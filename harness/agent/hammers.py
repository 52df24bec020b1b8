# SPDX-License-Identifier: GPL-2.0-only
"""The control module's hammers and its window: see kmods/cohabit_abi.h.

Every method that acts gives the errno of its ioctl, 0 for success.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
from typing import Any, Optional

from . import abi


def mask(bodies: list[int], monotonic: bool = False) -> int:
    """What Hammers.allow takes: these tags are right; ``monotonic``: a body that was left
    stays away until the next Hammers.allow."""
    return sum(1 << tag for tag in set(bodies)) | int(monotonic) << abi.ALLOW_MONOTONIC


class Hammers:
    """Kernel threads that call functions over and over and judge each call.

    ``fd``: /dev/cohabit, opened.  Can be used by several threads at a time.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def _request(self, number: int, argument: ctypes.Structure) -> int:
        try:
            fcntl.ioctl(self._fd, number, argument)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def start(self, function: str, path: str, allowed: int, fault: int) -> int:
        """Starts a thread on each CPU; with a ``path`` they read that, else they call the function.

        ``allowed``: see mask; ``fault``: abi.FAULT_...
        """
        how = abi.HAMMER_READ if path else abi.HAMMER_CALL
        argument = abi.Hammer(
            func=function.encode(), path=path.encode(), allowed=allowed, how=how, fault=fault
        )
        return self._request(abi.IOC_HAMMER, argument)

    def allow(self, function: str, mask: int) -> int:
        """From now on these bodies are right; returns when no call is judged by the old ones."""
        return self._request(abi.IOC_ALLOW, abi.Allow(func=function.encode(), allowed=mask))

    def read(self, stop: bool) -> list[dict[str, Any]]:
        """What each thread has seen, by function and CPU; ``stop``: ends all of them first.

        Each has ``function``, ``cpu``, ``calls``, ``bodies`` (calls by tag), ``wrong`` (calls
        by kind: abi.WRONG_...) and ``first``, None or the first wrong call: ``kind``, ``call``
        (its number), ``ns`` (of CLOCK_MONOTONIC), ``result``, ``cpu`` and ``stack``.
        The numbers of a thread fit each other only after ``stop``.
        """
        room = 0
        while True:
            array = (abi.Hammered * room)()
            argument = abi.Hammereds(stats=ctypes.addressof(array), nr=room, stop=int(stop))
            error = self._request(abi.IOC_HAMMERED, argument)
            if not error:
                return [_thread(array[index]) for index in range(argument.nr)]
            if error != errno.E2BIG:
                raise OSError(error, "reading the hammers' counters")
            room = argument.nr

    def window(self, function: str, delay_us: int, on: bool) -> int:
        """Begins (or ends) to look at the kernel's patching of a function's call site."""
        argument = abi.Window(func=function.encode(), delay_us=delay_us, on=int(on))
        return self._request(abi.IOC_WINDOW, argument)

    def windowed(self) -> dict[str, int]:
        """What the last window saw: ``pokes``, ``at_site``, ``windows``, ``inside``, ``most``,
        ``delay_us``."""
        found = abi.Windowed()
        error = self._request(abi.IOC_WINDOWED, found)
        if error:
            raise OSError(error, "reading the window's counters")
        fields = ("pokes", "at_site", "windows", "inside", "most", "delay_us")
        return {name: int(getattr(found, name)) for name in fields}

    def text(self, function: str) -> Optional[bytes]:
        """What stands around a function's call site: abi.TEXT_BYTES, half of them before it.

        None where there is no such site.
        """
        found = abi.Text(func=function.encode())
        return None if self._request(abi.IOC_TEXT, found) else bytes(found.bytes)


def _thread(found: abi.Hammered) -> dict[str, Any]:
    wrong = [int(count) for count in found.wrong]
    first = None
    if any(wrong):
        first = {
            "kind": int(found.first_kind),
            "call": int(found.first_call),
            "ns": int(found.first_ns),
            "result": int(found.first_result),
            "cpu": int(found.first_cpu),
            "stack": found.first_stack.decode("utf-8", "backslashreplace").splitlines(),
        }
    return {
        "function": found.func.decode(),
        "cpu": int(found.cpu),
        "calls": int(found.calls),
        "bodies": {tag: int(count) for tag, count in enumerate(found.bodies) if count},
        "wrong": wrong,
        "first": first,
    }
