# SPDX-License-Identifier: GPL-2.0-only
"""What was found at a function's call site, on arm64."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import branch


@dataclass(frozen=True)
class Site:
    """The instruction that ftrace rewrites, and all that says where it leads.

    Addresses; 0 is none.  ``address`` of the instruction; ``caller``: ftrace_caller;
    ``trampoline`` of the function's direct call; ``ops``: what is stored before the
    function, None where nothing is, and ``direct_call`` what that ops would have
    called; ``veneer``: instructions that a BL leads to.  ``name``: of the trampoline.
    ``errno``: of the look, and then nothing else is known.
    """

    address: int = 0
    caller: int = 0
    trampoline: int = 0
    ops: int | None = None
    direct_call: int = 0
    instruction: int = 0
    veneer: tuple[int, ...] = field(default=())
    name: str = ""
    errno: int = 0

    @property
    def target(self) -> int | None:
        """Where the BL leads; None where there is none."""
        return branch.bl_target(self.instruction, self.address)

    @property
    def by_veneer(self) -> bool:
        """Whether it leads to a veneer."""
        return self._behind_veneer is not None

    @property
    def _behind_veneer(self) -> int | None:
        target = self.target
        if target is None or target in (self.caller, self.trampoline):
            return None
        return branch.veneer_target(self.veneer, target)

    @property
    def path(self) -> str:
        """Where a call goes: ``nop``, ``direct``, ``ftrace_caller``, ``absent`` or ``unknown``."""
        if self.errno == errno.ESRCH:
            return "absent"
        if branch.is_nop(self.instruction):
            return "nop"
        target = self._behind_veneer or self.target
        if target is None:
            return "unknown"
        if self.trampoline and target == self.trampoline:
            return "direct"
        return "ftrace_caller" if target == self.caller else "unknown"

    @property
    def distance(self) -> int | None:
        """Bytes from here to the trampoline, negative downwards; None where there is none."""
        return self.trampoline - self.address if self.trampoline else None

    @property
    def reach(self) -> str | None:
        """``near`` where a BL can lead to the trampoline, else ``far``."""
        if not self.trampoline:
            return None
        return "near" if branch.in_reach(self.trampoline, self.address) else "far"

    @property
    def calls_back(self) -> bool:
        """Whether the ops before the function leads on to the trampoline."""
        return bool(self.trampoline) and self.direct_call == self.trampoline

    @property
    def decoded(self) -> str:
        """The instruction in words: ``nop``, ``bl ftrace_caller`` …"""
        path, target = self.path, self.target
        if path == "nop":
            return "nop"
        if target is None:
            return f".inst {self.instruction:#010x}"
        names = {"direct": self.name or "the trampoline", "ftrace_caller": "ftrace_caller"}
        if self.by_veneer:
            beyond = self._behind_veneer or 0
            return f"bl {target:#x}, a veneer to {names.get(path, f'{beyond:#x}')}"
        return f"bl {names.get(path, f'{target:#x}')}"

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        if self.errno:
            return {"errno": self.errno}
        return {
            "address": _hexadecimal(self.address),
            "instruction": f"{self.instruction:#010x}",
            "decoded": self.decoded,
            "path": self.path,
            "target": _hexadecimal(self.target),
            "veneer": [f"{word:#010x}" for word in self.veneer] if self.by_veneer else None,
            "ftrace_caller": _hexadecimal(self.caller),
            "trampoline": _hexadecimal(self.trampoline or None),
            "name": self.name or None,
            "distance": self.distance,
            "reach": self.reach,
            "ops": _hexadecimal(self.ops),
            "direct_call": _hexadecimal(self.direct_call or None),
        }


def _hexadecimal(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def of_agent(reply: Mapping[str, Any], name: str = "") -> Site:
    """From the agent's reply (harness/agent/attachers.py: Control.site); ``name``: see Site."""
    if reply.get("errno"):
        return Site(errno=int(reply["errno"]))
    ops = reply["ops"]
    return Site(
        address=int(reply["address"]),
        caller=int(reply["caller"]),
        trampoline=int(reply["trampoline"]),
        ops=None if ops is None else int(ops),
        direct_call=int(reply["direct_call"]),
        instruction=int(reply["instruction"]),
        veneer=tuple(int(word) for word in reply["veneer"]),
        name=name,
    )


def of_record(data: Mapping[str, Any]) -> Site:
    """From ``to_json``."""
    if data.get("errno"):
        return Site(errno=int(data["errno"]))

    def number(key: str) -> int:
        return int(data[key], 16) if data.get(key) else 0

    return Site(
        address=number("address"),
        caller=number("ftrace_caller"),
        trampoline=number("trampoline"),
        ops=number("ops") if data.get("ops") else None,
        direct_call=number("direct_call"),
        instruction=number("instruction"),
        veneer=tuple(int(word, 16) for word in data.get("veneer") or ()),
        name=data.get("name") or "",
    )
