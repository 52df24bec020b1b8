# SPDX-License-Identifier: GPL-2.0-only
"""What is attached where, as the model believes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .attachers import ATTACHERS, Attacher


@dataclass(frozen=True)
class Attached:
    """An attachment: its id in the scenario, what it is, where, and its slot."""

    id: str
    attacher: str
    function: str
    slot: int

    @property
    def kind(self) -> Attacher:
        """What is true of it on every kernel."""
        return ATTACHERS[self.attacher]

    @property
    def body(self) -> str:
        """The name of the body that it puts in the function's place."""
        slot = str(self.slot) if self.attacher == "ipmodify" else "ab"[self.slot]
        return f"{self.attacher}-{slot}"


@dataclass(frozen=True)
class State:
    """What the model believes.

    ``attached`` in the order of arrival; ``modified``: functions whose record has M;
    ``stale_share``: functions whose last BPF program left while an IPMODIFY ops was
    there (docs/findings/stale-share.md).
    """

    attached: tuple[Attached, ...] = ()
    ftrace_enabled: bool = True
    modified: frozenset[str] = frozenset()
    stale_share: frozenset[str] = frozenset()

    def on(self, function: str) -> tuple[Attached, ...]:
        """What is on one function, oldest first."""
        return tuple(a for a in self.attached if a.function == function)

    def get(self, identity: str) -> Attached | None:
        """The attachment of that id."""
        return next((a for a in self.attached if a.id == identity), None)

    def free_slot(self, attacher: str, function: str) -> int:
        """The lowest free slot; equals the number of slots when all are taken.

        BPF programs are made for one function, so each function has its own.
        """
        kind = ATTACHERS[attacher]
        family = kind.family or attacher
        taken = {
            a.slot
            for a in self.attached
            if (a.kind.family or a.attacher) == family and (not kind.bpf or a.function == function)
        }
        return next(i for i in range(kind.slots + 1) if i not in taken)

    def with_attached(self, new: Attached) -> State:
        """The state after a successful attach."""
        return replace(self, attached=(*self.attached, new))

    def without(self, identity: str) -> State:
        """The state after a successful detach."""
        gone = self.get(identity)
        after = replace(self, attached=tuple(a for a in self.attached if a.id != identity))
        if gone is None:
            return after
        left = after.on(gone.function)
        shared = any(a.kind.ipmodify for a in left)
        if gone.kind.bpf and shared and not any(a.kind.bpf for a in left):
            return replace(after, stale_share=after.stale_share | {gone.function})
        if gone.kind.ipmodify and not shared and any(a.kind.bpf for a in left):
            # kernel/bpf/trampoline.c: DISABLE_SHARE_IPMODIFY_PEER clears it.
            return replace(after, stale_share=after.stale_share - {gone.function})
        return after


@dataclass(frozen=True)
class RecordState:
    """A function's ftrace record as the core keeps it, on x86-64.

    ``count`` of ftrace_ops; the wanted flags (FTRACE_FL_REGS, _IPMODIFY, _DIRECT).
    """

    count: int
    regs: bool
    ipmodify: bool
    direct: bool

    @property
    def patched(self) -> tuple[bool, ...]:
        """What decides whether the call site is rewritten (ftrace_check_record).

        Enabled, REGS, TRAMP (one ops: its own trampoline), DIRECT_EN (only while
        it is the one ops).
        """
        alone = self.count == 1
        return (self.count > 0, self.regs, alone, alone and self.direct)
