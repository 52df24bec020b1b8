# SPDX-License-Identifier: GPL-2.0-only
"""Making the kernel call functions under test, once each, and telling which body ran."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from typing import Any, Optional

from . import abi, system

TEXT_PREFIX = "cohabit: "
_DEVICE = "/dev/cohabit_funcs"
_CONTEXTS = {"process": abi.CONTEXT_PROCESS, "softirq": abi.CONTEXT_SOFTIRQ}


def _arguments(function: dict[str, Any]) -> list[int]:
    return abi.arguments(
        function["nr_args"],
        function["may_sleep"],
        function["lane"],
        function["holds"],
        function["hot"],
    )


def _witnessed(ret: int, checksum: int) -> str:
    """The body that gave a test function's result."""
    body = abi.body_of_tag(ret >> 32)
    return body if ret & 0xFFFFFFFF == checksum else body + " with wrong arguments"


class Held:
    """A call that waits in the kernel, on a thread of its own."""

    def __init__(self, fd: int, function: str, args: list[int]) -> None:
        self._args = args
        self._call = abi.Call(func=function.encode())
        self._call.args[: len(args)] = args
        self._calls = abi.Calls(calls=ctypes.addressof(self._call), nr=1)
        self.error = 0
        self._thread = threading.Thread(target=self._run, args=(fd,), daemon=True)
        self._thread.start()

    def _run(self, fd: int) -> None:
        try:
            fcntl.ioctl(fd, abi.IOC_CALLS, self._calls)
        except OSError as error:
            self.error = error.errno or errno.EIO

    def over(self) -> bool:
        """Whether the call has returned."""
        return not self._thread.is_alive()

    def result(self) -> dict[str, Any]:
        """The body and the return value of the call that is over."""
        self._thread.join()
        ret = int(self._call.ret)
        return {"body": _witnessed(ret, abi.checksum(self._args)), "ret": ret}


class Caller:
    """Calls functions under test in this process's context.

    ``functions`` is the table of them, by name.
    """

    def __init__(self, functions: dict[str, dict[str, Any]]) -> None:
        self._functions = functions
        self._funcs = -1
        self._route: Any = None
        self._generic: Any = None
        self._held: dict[str, Held] = {}
        #: Stirrers may hold calls at once.
        self._lock = threading.Lock()
        #: Arrays of calls that were needed before, with the checksums of their arguments.
        self._arrays: dict[tuple[Any, ...], tuple[Any, list[list[int]], list[int]]] = {}

    def close(self) -> None:
        """Lets go of the test functions, so that their module can be unloaded."""
        if self._funcs >= 0:
            os.close(self._funcs)
            self._funcs = -1

    def prepare(self, names: list[str]) -> None:
        """Opens what the calls need, so that each call itself is one call."""
        triggers = {self._functions[name]["trigger"] for name in names}
        with self._lock:
            if "ioctl" in triggers and self._funcs < 0 and os.path.exists(_DEVICE):
                self._funcs = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        if "rtnl_getlink" in triggers and self._route is None:
            from pyroute2 import IPRoute  # type: ignore[import-not-found]

            self._route = IPRoute()
        if "ctrl_getfamily" in triggers and self._generic is None:
            from pyroute2.netlink.generic import (  # type: ignore[import-not-found]
                GenericNetlinkSocket,
            )

            self._generic = GenericNetlinkSocket()

    def call(self, names: list[str], context: str) -> dict[str, dict[str, Any]]:
        """Calls each once; by name the ``body`` that ran, ``ret`` or ``text`` that it gave,
        and ``args`` if known.  All test functions are called by one ioctl, in the context
        (``process`` or ``softirq``); those of a module that is not there are ``absent``.
        """
        names = list(dict.fromkeys(names))
        ours = [name for name in names if self._functions[name]["trigger"] == "ioctl"]
        results = self._test_functions(ours, context) if ours else {}
        for name in names:
            if name not in results:
                results[name] = self._other(self._functions[name])
        return results

    def _test_functions(self, names: list[str], context: str) -> dict[str, dict[str, Any]]:
        if self._funcs < 0:
            return {name: {"body": "absent"} for name in names}
        key = (context, *names)
        if key not in self._arrays:
            self._arrays[key] = self._array(names, context)
        array, arguments, checksums = self._arrays[key]
        fcntl.ioctl(
            self._funcs,
            abi.IOC_CALLS,
            abi.Calls(calls=ctypes.addressof(array), nr=len(array)),
        )
        results = {}
        for index, name in enumerate(names):
            ret = array[index].ret
            body = _witnessed(ret, checksums[index])
            results[name] = {"body": body, "ret": ret, "args": arguments[index]}
        return results

    def _array(self, names: list[str], context: str) -> tuple[Any, list[list[int]], list[int]]:
        array = (abi.Call * len(names))()
        arguments = [_arguments(self._functions[name]) for name in names]
        for index, name in enumerate(names):
            call = array[index]
            call.func = name.encode()
            call.args[: len(arguments[index])] = arguments[index]
            # Softirqs cannot sleep.
            may_sleep = self._functions[name]["may_sleep"]
            call.context = _CONTEXTS["process" if may_sleep else context]
        return array, arguments, [abi.checksum(args) for args in arguments]

    def _other(self, function: dict[str, Any]) -> dict[str, Any]:
        if function["trigger"] == "read":
            with open(function["path"], "rb") as file:
                text = file.read().decode("utf-8", "backslashreplace").rstrip("\n")
            ours = text.startswith(TEXT_PREFIX)
            return {"body": text[len(TEXT_PREFIX) :] if ours else "original", "text": text[:200]}
        error = self._errno(function)
        tag = error - abi.ERRNO_BASE
        if error == 0:
            return {"body": "original", "ret": 0}
        return {"body": abi.body_of_tag(tag) if tag > 0 else "errno-%d" % error, "ret": -error}

    def _errno(self, function: dict[str, Any]) -> int:
        """The positive errno that the call gave, 0 for none."""
        if function["trigger"] == "getpgid":
            try:
                # kernel/sys.c: do_getpgid asks the security module only for a pid other than 0.
                os.getpgid(os.getpid())
            except OSError as error:
                return error.errno or 0
            return 0
        from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-not-found]

        try:
            if function["trigger"] == "rtnl_getlink":
                self._route.link("get", index=1)
            else:
                self._generic.discovery("nlctrl")
        except NetlinkError as error:
            return abs(int(error.code))
        return 0

    def hold(self, identity: str, function: str, deadline: float) -> tuple[int, str]:
        """Starts a call that waits; errno, and a remark where it does not."""
        self.prepare([function])
        if self._funcs < 0:
            return errno.ENODEV, "no " + _DEVICE
        before = self._waiting()
        held = Held(self._funcs, function, [1])
        inside = system.wait(lambda: held.over() or self._waiting() > before, deadline)
        if held.over() and held.error:
            return held.error, ""
        self._held[identity] = held
        # Another body than the original one does not wait.
        return 0, "" if inside and not held.over() else "the call did not wait"

    def release(self, identity: str, deadline: float) -> Optional[dict[str, Any]]:
        """Lets all held calls go; body and return value of the one, None where it stays."""
        if identity not in self._held:
            raise ValueError("no call is held as %r" % identity)
        if self._funcs >= 0:
            fcntl.ioctl(self._funcs, abi.IOC_RELEASE)
        if not system.wait(self._held[identity].over, deadline):
            return None
        return self._held.pop(identity).result()

    def held(self) -> list[str]:
        """The identities of the held calls."""
        return list(self._held)

    def _waiting(self) -> int:
        number = ctypes.c_uint32()
        fcntl.ioctl(self._funcs, abi.IOC_HELD, number)
        return number.value
