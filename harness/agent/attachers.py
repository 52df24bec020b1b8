# SPDX-License-Identifier: GPL-2.0-only
"""Attaching and detaching: what all ways of it have in common, and what modules of ours do.

Every attach and detach gives the errno of the call that decided it.  Nothing
here expects an outcome.
"""

from __future__ import annotations

import collections
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

from . import abi, system

#: By attacher: kind and flags of cohabit.ko.
KMOD_KINDS = {
    "ops": (abi.KIND_OPS, 0),
    "ops-regs": (abi.KIND_OPS, abi.F_SAVE_REGS),
    "ipmodify": (abi.KIND_IPMODIFY, 0),
    "direct": (abi.KIND_DIRECT, 0),
    "direct-share": (abi.KIND_DIRECT, abi.F_OPS_FUNC),
    "direct-refuse": (abi.KIND_DIRECT, abi.F_OPS_REFUSE),
    "kprobe": (abi.KIND_KPROBE, 0),
    "kprobe-post": (abi.KIND_KPROBE, abi.F_POST),
    "kretprobe": (abi.KIND_KRETPROBE, 0),
    "fprobe": (abi.KIND_FPROBE, 0),
    "fprobe-exit": (abi.KIND_FPROBE, abi.F_EXIT),
}

#: The module with trampolines that are far from everything.
FAR_MODULE = "cohabit_far"

#: struct cohabit_stat: kind, slot, index, nr_args; hits, others; args[]; ret; the
#: three kinds of ops_func calls; misses; through[]; via, has_ret.
STAT = struct.Struct("<4I2Q%dQQ3QQ%dQ2I" % (abi.MAX_ARGS, abi.ALTERNATES))

#: Identity of an attachment, function, what the one has seen of the other: ``hits``
#: and ``others`` (calls by the caller under test and by anybody else), ``args`` of its
#: last call, and ``ret``, ``share`` or ``via`` where they are known.
Seen = tuple[str, str, dict[str, Any]]


class Outcome(NamedTuple):
    """How an act ended.

    ``errno`` of the call that decided it, 0 for success; ``remark`` in words; ``done``:
    False where it succeeded and what follows from it did not happen in time; ``held``:
    body and return value of a call that was let go; ``stirred``: what a stir step gave.
    """

    errno: int
    remark: str = ""
    done: bool = True
    held: Optional[dict[str, Any]] = None
    stirred: Optional[dict[str, Any]] = None


class Attachment:
    """One thing that hooks (or tried to hook) some functions.

    ``identity`` is the harness's name for it.
    """

    def __init__(self, identity: str, kind: str, functions: list[str], slot: int) -> None:
        self.identity = identity
        self.kind = kind
        self.functions = functions
        self.slot = slot

    def attach(self, deadline: float, wait: bool) -> Outcome:
        """Attaches; ``deadline`` is a time.monotonic() for what the kernel does later.

        ``wait``: whether to wait for that.
        """
        raise NotImplementedError

    def detach(self, deadline: float) -> Outcome:
        """Detaches."""
        raise NotImplementedError


class Control:
    """The control module's device, and what is attached through it."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/cohabit", os.O_RDWR | os.O_CLOEXEC)
        self.info = abi.Info()
        fcntl.ioctl(self._fd, abi.IOC_INFO, self.info)
        if self.info.abi != abi.ABI_VERSION:
            raise RuntimeError("control module speaks ABI %d" % self.info.abi)
        fcntl.ioctl(self._fd, abi.IOC_CALLER)
        #: By number of the kind and slot.
        self.attached: dict[tuple[int, int], KmodAttachment] = {}
        self._buffer = ctypes.create_string_buffer(0)

    @property
    def fd(self) -> int:
        """The device, opened."""
        return self._fd

    def request(self, number: int, argument: Any) -> int:
        """An ioctl; its errno, 0 for success."""
        try:
            fcntl.ioctl(self._fd, number, argument)
        except OSError as error:
            return error.errno or 5
        return 0

    def address(self, function: str) -> tuple[int, int]:
        """Errno and where a function is."""
        found = abi.Address(func=function.encode())
        return self.request(abi.IOC_ADDRESS, found), int(found.address)

    def site(self, function: str) -> dict[str, Any]:
        """A function's call site, as struct cohabit_site has it; ``errno`` alone where it failed.

        ``ops`` is None on a kernel that stores none.
        """
        found = abi.Site(func=function.encode())
        error = self.request(abi.IOC_SITE, found)
        if error:
            return {"errno": error}
        return {
            "address": found.address,
            "caller": found.caller,
            "trampoline": found.trampoline,
            "ops": found.ops if found.has_ops else None,
            "direct_call": found.direct_call,
            "instruction": found.instruction,
            "veneer": list(found.veneer),
        }

    def load_far(self) -> int:
        """Loads the far trampolines, out of reach of all code; the errno, 0 also if they are there.

        With every address in reach taken, the module loader has to go elsewhere.
        """
        if system.module_loaded(FAR_MODULE):
            return 0
        error = self.request(abi.IOC_KEEP_CLEAR, 0)
        if error:
            return error
        try:
            return system.load_module(system.kmod(FAR_MODULE))
        finally:
            self.request(abi.IOC_RESTORE, 0)

    def _read(self, reset: bool) -> bytes:
        size = STAT.size * sum(len(a.functions) for a in self.attached.values())
        if not size:
            return b""
        if len(self._buffer) < size:
            self._buffer = ctypes.create_string_buffer(size)
        stats = abi.Stats(
            stats=ctypes.addressof(self._buffer),
            nr=len(self._buffer) // STAT.size,
            reset=int(reset),
        )
        error = self.request(abi.IOC_STATS, stats)
        if error:
            raise RuntimeError("reading the counters failed with errno %d" % error)
        return self._buffer.raw[: stats.nr * STAT.size]

    def clear(self) -> None:
        """See observe.Counters."""
        self._read(reset=True)

    def total(self, attachment: KmodAttachment) -> dict[str, Any]:
        """``hits``, by all callers and of all its functions, and ``misses`` of an attachment;
        of a direct one also ``via``: the hits by the number of its trampoline."""
        hits, misses, via = 0, 0, collections.Counter[str]()
        data = bytearray(self._read(False))
        for stat in (abi.Stat * (len(data) // STAT.size)).from_buffer(data):
            if self.attached[stat.kind, stat.slot] is attachment:
                hits += int(stat.hits) + int(stat.others)
                misses += int(stat.misses)
                via += collections.Counter({str(n): int(c) for n, c in enumerate(stat.through)})
        found: dict[str, Any] = {"hits": hits, "misses": misses}
        if KMOD_KINDS[attachment.kind][0] == abi.KIND_DIRECT:
            found["via"] = dict(via)
        return found

    def seen(self) -> Iterator[Seen]:
        """See observe.Counters."""
        for kind, slot, index, nr_args, hits, others, *rest in STAT.iter_unpack(self._read(False)):
            attachment = self.attached[kind, slot]
            result: dict[str, Any] = {"hits": hits, "others": others, "args": rest[:nr_args]}
            ret, *more, via, has_ret = rest[abi.MAX_ARGS :]
            if has_ret:
                result["ret"] = ret
            if attachment.kind == "direct-share":
                result["share"] = more[:3]
            if kind == abi.KIND_DIRECT and hits:
                result["via"] = via
            yield attachment.identity, attachment.functions[index], result


class KmodAttachment(Attachment):
    """Something that the control module registers, on all its functions with one call."""

    def __init__(
        self,
        identity: str,
        kind: str,
        functions: list[str],
        slot: int,
        control: Control,
        far: bool = False,
    ) -> None:
        super().__init__(identity, kind, functions, slot)
        self._control = control
        self._far = far
        number, flags = KMOD_KINDS[kind]
        if far:
            flags |= abi.F_FAR
        self._names = abi.names(functions)
        self._argument = abi.Attach(
            kind=number,
            slot=slot,
            flags=flags,
            nr=len(functions),
            names=ctypes.addressof(self._names),
        )

    def attach(self, deadline: float, wait: bool) -> Outcome:
        """See Attachment."""
        if self._far and (error := self._control.load_far()):
            return Outcome(error, "loading " + FAR_MODULE)
        error = self._control.request(abi.IOC_ATTACH, self._argument)
        if not error:
            self._control.attached[self._argument.kind, self.slot] = self
        return Outcome(error)

    def detach(self, deadline: float) -> Outcome:
        """See Attachment."""
        error = self._control.request(abi.IOC_DETACH, self._argument)
        if not error:
            del self._control.attached[self._argument.kind, self.slot]
        return Outcome(error)

    def modify(self, alternate: int) -> Outcome:
        """Makes a direct attachment go through another of its trampolines: see abi.Modify."""
        if alternate >= abi.FAR_ALTERNATE and (error := self._control.load_far()):
            return Outcome(error, "loading " + FAR_MODULE)
        argument = abi.Modify(slot=self.slot, alternate=alternate)
        return Outcome(self._control.request(abi.IOC_MODIFY, argument))
