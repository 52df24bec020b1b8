# SPDX-License-Identifier: GPL-2.0-only
"""Making the kernel call a function under test, once, and telling which body ran."""

from __future__ import annotations

import fcntl
import os
from typing import Any

from . import abi

TEXT_PREFIX = "cohabit: "


class Caller:
    """Calls functions under test in this process's context."""

    def __init__(self) -> None:
        self._funcs = -1
        self._route: Any = None
        self._generic: Any = None

    def open_test_functions(self) -> None:
        """Opens /dev/cohabit_funcs (after the module was loaded)."""
        if self._funcs < 0:
            self._funcs = os.open("/dev/cohabit_funcs", os.O_RDWR | os.O_CLOEXEC)

    def close_test_functions(self) -> None:
        """Lets go of it, so that the module can be unloaded."""
        if self._funcs >= 0:
            os.close(self._funcs)
            self._funcs = -1

    def prepare(self, function: dict[str, Any]) -> None:
        """Opens what the call needs, so that the call itself is one call."""
        if function["trigger"] == "ioctl":
            self.open_test_functions()
        elif function["trigger"] == "rtnl_getlink" and self._route is None:
            from pyroute2 import IPRoute  # type: ignore[import-not-found]

            self._route = IPRoute()
        elif function["trigger"] == "ctrl_getfamily" and self._generic is None:
            from pyroute2.netlink.generic import (  # type: ignore[import-not-found]
                GenericNetlinkSocket,
            )

            self._generic = GenericNetlinkSocket()

    def call(self, function: dict[str, Any]) -> dict[str, Any]:
        """One call: ``body`` that ran, ``ret`` or ``text`` that it gave, and ``args`` if known."""
        if function["trigger"] == "ioctl":
            return self._test_function(function)
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

    def _test_function(self, function: dict[str, Any]) -> dict[str, Any]:
        args = abi.arguments(function["nr_args"], function["may_sleep"])
        call = abi.Call(func=function["name"].encode())
        for i, arg in enumerate(args):
            call.args[i] = arg
        fcntl.ioctl(self._funcs, abi.IOC_CALL, call)
        ret = int(call.ret)
        body = abi.body_of_tag(ret >> 32)
        if ret & 0xFFFFFFFF != abi.checksum(args):
            body += " with wrong arguments"
        return {"body": body, "ret": ret, "args": args}
