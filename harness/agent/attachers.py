# SPDX-License-Identifier: GPL-2.0-only
"""Attaching and detaching, one class a way of doing it.

Every attach and detach gives the errno of the call that decided it.  Nothing
here expects an outcome.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any, Optional

from . import abi, system
from .bpf import SLOTS, Programs

KMODS = "/cohabit/kmods"
_LIVEPATCH_SYSFS = "/sys/kernel/livepatch/"
#: Kernel memory is short for a moment, or another task holds BPF's trampoline
#: lock (kernel/bpf/trampoline.c: bpf_tramp_ftrace_ops_func): asked again.
EAGAIN = 11

_KMOD_KINDS = {
    "ops": (abi.KIND_OPS, 0),
    "ops-regs": (abi.KIND_OPS, abi.F_SAVE_REGS),
    "ipmodify": (abi.KIND_IPMODIFY, 0),
    "direct": (abi.KIND_DIRECT, 0),
    "direct-share": (abi.KIND_DIRECT, abi.F_OPS_FUNC),
}
KINDS = (*_KMOD_KINDS, "livepatch", "fentry", "fexit", "fmod_ret")


class Control:
    """The control module's device."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/cohabit", os.O_RDWR | os.O_CLOEXEC)
        self.info = abi.Info()
        fcntl.ioctl(self._fd, abi.IOC_INFO, self.info)
        if self.info.abi != abi.ABI_VERSION:
            raise RuntimeError("control module speaks ABI %d" % self.info.abi)
        fcntl.ioctl(self._fd, abi.IOC_CALLER)

    def request(self, number: int, argument: Any) -> int:
        """An ioctl; its errno, 0 for success."""
        try:
            fcntl.ioctl(self._fd, number, argument)
        except OSError as error:
            return error.errno or 5
        return 0


def livepatches() -> dict[str, dict[str, int]]:
    """The patches in /sys/kernel/livepatch with their ``enabled`` and ``transition``."""
    found: dict[str, dict[str, int]] = {}
    try:
        names = os.listdir(_LIVEPATCH_SYSFS)
    except FileNotFoundError:
        return found
    for name in sorted(names):
        values = {}
        for key in ("enabled", "transition"):
            text = system.read(_LIVEPATCH_SYSFS + name + "/" + key)
            if text is not None:
                values[key] = int(text)
        if values:
            found[name] = values
    return found


def _wait(condition: Any, deadline: float) -> bool:
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(system.POLL)
    return True


class Attachment:
    """One thing that hooks (or tried to hook) one function."""

    def __init__(self, kind: str, function: str, slot: int) -> None:
        self.kind = kind
        self.function = function
        self.slot = slot

    def attach(self, deadline: float) -> tuple[int, str]:
        """Errno and a remark; ``deadline`` is a time.monotonic() for what the kernel does later."""
        raise NotImplementedError

    def detach(self, deadline: float) -> tuple[int, str]:
        """Errno and a remark."""
        raise NotImplementedError

    def stat(self, reset: bool) -> Optional[dict[str, Any]]:
        """Hits and arguments since the last reset, or None where it does not count."""
        raise NotImplementedError


class KmodAttachment(Attachment):
    """Something that the control module registers."""

    def __init__(self, kind: str, function: str, slot: int, control: Control) -> None:
        super().__init__(kind, function, slot)
        self._control = control
        number, flags = _KMOD_KINDS[kind]
        self._argument = abi.Attach(kind=number, slot=slot, flags=flags, func=function.encode())

    def attach(self, deadline: float) -> tuple[int, str]:
        """See Attachment."""
        return self._control.request(abi.IOC_ATTACH, self._argument), ""

    def detach(self, deadline: float) -> tuple[int, str]:
        """See Attachment."""
        return self._control.request(abi.IOC_DETACH, self._argument), ""

    def stat(self, reset: bool) -> Optional[dict[str, Any]]:
        """See Attachment."""
        stat = abi.Stat(kind=self._argument.kind, slot=self.slot, reset=int(reset))
        error = self._control.request(abi.IOC_STAT, stat)
        if error:
            raise RuntimeError("reading the counters failed with errno %d" % error)
        result: dict[str, Any] = {
            "hits": int(stat.hits),
            "others": int(stat.others),
            "args": [int(arg) for arg in stat.args][: stat.nr_args],
        }
        if self.kind == "direct-share":
            result["share"] = [int(stat.share_self), int(stat.share_peer), int(stat.unshare_peer)]
        return result


class LivepatchAttachment(Attachment):
    """A livepatch module that patches one function."""

    def __init__(self, kind: str, function: str, slot: int) -> None:
        super().__init__(kind, function, slot)
        self.module = "cohabit_klp_" + SLOTS[slot]

    def attach(self, deadline: float) -> tuple[int, str]:
        """See Attachment; waits for the transition to end."""
        path = "%s/%s.ko" % (KMODS, self.module)
        error = system.load_module(path, "funcs=" + self.function)
        tries = 1
        while error == EAGAIN and time.monotonic() < deadline:
            error = system.load_module(path, "funcs=" + self.function)
            tries += 1
        remark = "" if tries == 1 else "EAGAIN %d times first" % (tries - 1)
        if error == 0 and not _wait(self._settled, deadline):
            remark = "the transition did not end"
        return error, remark

    def _settled(self) -> bool:
        return livepatches().get(self.module, {}).get("transition") == 0

    def _gone(self) -> bool:
        return self.module not in livepatches()

    def detach(self, deadline: float) -> tuple[int, str]:
        """See Attachment; waits for the transition, then unloads the module."""
        error = system.write(_LIVEPATCH_SYSFS + self.module + "/enabled", "0")
        if error:
            return error, "enabled"
        if not _wait(self._gone, deadline):
            return 0, "the transition did not end"
        return system.unload_module(self.module, deadline), "unload"

    def stat(self, reset: bool) -> Optional[dict[str, Any]]:
        """A livepatch is witnessed by its body, not by a counter."""
        return None


class BpfAttachment(Attachment):
    """A BPF tracing program."""

    def __init__(self, kind: str, function: str, slot: int, programs: Programs) -> None:
        super().__init__(kind, function, slot)
        self._programs = programs
        self._link: Optional[int] = None

    def attach(self, deadline: float) -> tuple[int, str]:
        """See Attachment."""
        error, self._link, where = self._programs.attach(self.kind, self.function, self.slot)
        return error, where if error else ""

    def detach(self, deadline: float) -> tuple[int, str]:
        """See Attachment; closing the link detaches (bcc has no other way)."""
        if self._link is None:
            return 2, "not attached"
        os.close(self._link)
        self._link = None
        return 0, ""

    def stat(self, reset: bool) -> Optional[dict[str, Any]]:
        """See Attachment."""
        return self._programs.stat(self.kind, self.function, self.slot, reset)
