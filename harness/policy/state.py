# SPDX-License-Identifier: GPL-2.0-only
"""What is attached where, as the model believes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

from harness.agent.abi import FAR_ALTERNATE, SLOTS

from .attachers import ATTACHERS, Attacher

#: Where a livepatch stands (kernel/livepatch/transition.c); ``on`` for all else.
#: ``off`` is a patch that is disabled while its module is still loaded.  None waits to be
#: disabled: no body of a livepatch of ours keeps a call.
Phase = Literal["on", "enabling", "off"]


@dataclass(frozen=True)
class Attached:
    """An attachment: its id in the scenario, what it is, where, and its slot.

    ``phase``: of a livepatch; ``forced``: its transition was forced while it left,
    so its module stays for good; ``alternate``: which of its trampolines a
    direct call goes to, 2 and 3 the far ones; ``shares``: how often its ops_func was
    asked (SELF, PEER, and told that the peer left); ``sharing``: its flag, where sharing is one;
    ``uncounted``: nobody knows how often it was asked, since others were stirred.
    """

    id: str
    attacher: str
    functions: tuple[str, ...]
    slot: int
    phase: Phase = "on"
    forced: bool = False
    alternate: int = 0
    shares: tuple[int, int, int] = (0, 0, 0)
    sharing: bool = False
    uncounted: bool = False

    @property
    def kind(self) -> Attacher:
        """What is true of it on every kernel."""
        return ATTACHERS[self.attacher]

    @property
    def active(self) -> bool:
        """Whether it has an ftrace_ops: a disabled livepatch has none."""
        return self.phase != "off"

    @property
    def body(self) -> str:
        """The name of the body that it puts in the function's place."""
        if self.kind.ops == "livepatch":
            return f"livepatch-{'abcd'[self.slot]}"
        return f"{self.attacher}-{self.slot}"

    @property
    def far(self) -> bool:
        """Whether a direct call goes to a trampoline that is far from all functions."""
        return self.alternate >= FAR_ALTERNATE

    @property
    def trampoline(self) -> str:
        """The name of a direct call's trampoline, unless it is a BPF one."""
        there = "far" if self.far else "direct"
        return f"cohabit_{there}_tramp_{self.slot + SLOTS * (self.alternate % FAR_ALTERNATE)}"

    @property
    def module(self) -> str:
        """The module of a livepatch."""
        return f"cohabit_klp_{'abcd'[self.slot]}"


@dataclass(frozen=True)
class Held:
    """A call that sleeps in a function; ``body`` is the one that it entered."""

    id: str
    function: str
    body: str


@dataclass(frozen=True)
class State:
    """What the model believes.

    ``attached`` in the order of arrival.  What the past has left: ``modified``,
    functions whose record has M; ``kept_regs``, those that keep R though nobody asks
    for it; ``stale_share``, those whose last BPF program left while an IPMODIFY ops
    was there (docs/findings/stale-share.md); ``still_shared``, those whose BPF trampoline
    shares though no IPMODIFY ops is there any more, where it is not told; ``post_armed``,
    those whose kprobes are armed through the ops with IPMODIFY; ``awake``, those that
    stay on while ftrace is off, where PERMANENT ops do.  ``held``: calls in progress;
    ``unloaded``: whether the module of the test functions is gone; ``dead``: ftrace has
    shut itself down.
    """

    attached: tuple[Attached, ...] = ()
    ftrace_enabled: bool = True
    modified: frozenset[str] = frozenset()
    kept_regs: frozenset[str] = frozenset()
    stale_share: frozenset[str] = frozenset()
    still_shared: frozenset[str] = frozenset()
    post_armed: frozenset[str] = frozenset()
    awake: frozenset[str] = frozenset()
    held: tuple[Held, ...] = ()
    unloaded: bool = False
    dead: bool = False

    def on(self, function: str) -> tuple[Attached, ...]:
        """What is on one function, oldest first; a disabled livepatch is not."""
        return self._places.get(function, ())

    def live(self, function: str) -> bool:
        """Whether the function's call site does what its record says."""
        return self.ftrace_enabled or function in self.awake

    @functools.cached_property
    def _places(self) -> dict[str, tuple[Attached, ...]]:
        """What is on each function; a company asks for all of them, again and again."""
        found: dict[str, tuple[Attached, ...]] = {}
        for attached in self.attached:
            if attached.active:
                for function in attached.functions:
                    found[function] = (*found.get(function, ()), attached)
        return found

    def get(self, identity: str) -> Attached | None:
        """The attachment of that id."""
        return next((a for a in self.attached if a.id == identity), None)

    def free_slot(self, attacher: str, functions: tuple[str, ...]) -> int:
        """The lowest free slot; equals the number of slots when all are taken.

        BPF programs are made for one function, so each function has its own.
        """
        kind = ATTACHERS[attacher]
        family = kind.family or attacher
        taken = {
            a.slot
            for a in self.attached
            if (a.kind.family or a.attacher) == family
            and (not kind.single or set(a.functions) & set(functions))
        }
        return next(i for i in range(kind.slots + 1) if i not in taken)

    def changed(self, new: Attached) -> State:
        """The state with another value of the attachment of that id."""
        return replace(self, attached=tuple(new if a.id == new.id else a for a in self.attached))

    def pending(self) -> Attached | None:
        """The livepatch whose transition has not ended."""
        return next((a for a in self.attached if a.phase == "enabling"), None)

    def holds(self, functions: tuple[str, ...]) -> bool:
        """Whether a call sleeps in one of the functions: only the original bodies do."""
        return any(h.function in functions and h.body == "original" for h in self.held)


@dataclass(frozen=True)
class RecordState:
    """A function's ftrace record as the core keeps it.

    ``count`` of ftrace_ops; the wanted flags (FTRACE_FL_REGS, _IPMODIFY, _DIRECT, _TRAMP,
    _CALL_OPS).
    """

    count: int
    regs: bool = False
    ipmodify: bool = False
    direct: bool = False
    trampoline: bool = False
    call_ops: bool = False

    @property
    def patched(self) -> tuple[bool, ...]:
        """What decides whether the call site is rewritten (ftrace_check_record).

        Enabled, REGS, TRAMP, DIRECT_EN (only while it is the one ops), CALL_OPS_EN.
        """
        direct = self.count == 1 and self.direct
        return (self.count > 0, self.regs, self.trampoline, direct, self.call_ops)
