# SPDX-License-Identifier: GPL-2.0-only
"""Histories that led to the same attachers, and what of them may rightly show.

``EXCEPTIONS`` has what is known to depend on the past, each with its place in the kernel;
harness/paths.py finds the histories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from harness.policy.attachers import ATTACHERS, Attacher
from harness.policy.rules import (
    FILTER_CHANGE_KEEPS_REGS,
    MODIFIED_STAYS,
    MODIFIED_WHEN_REWRITTEN,
    PEERS_ASKED_AT_REGISTRATION,
    SHARE_OUTLIVES_PROGRAMS,
)
from harness.policy.state import Attached


@dataclass(frozen=True)
class Past:
    """What of a function's history an exception may ask for.

    ``armed``: the first kprobe of those that are there had a post_handler, so they all
    use the ops with IPMODIFY; ``left_regs``: one that saved all registers through an ops
    that others use too has left since the function was last empty; ``post_elsewhere``:
    another function has kprobes that use the ops with IPMODIFY.
    """

    armed: bool = False
    left_regs: bool = False
    post_elsewhere: bool = False


@dataclass(frozen=True)
class History:
    """How a function came to a state: where it was seen, and in which order.

    ``step`` counts from 0; ``order`` has the acts on the function: ``+`` who came,
    ``-`` who left, ``!`` who was refused.
    """

    scenario: str
    step: int
    order: tuple[str, ...]
    past: Past = Past()

    def __str__(self) -> str:
        return f"{self.scenario}, step {self.step + 1}: {' '.join(self.order) or 'nothing'}"


@dataclass(frozen=True)
class Place:
    """What must have one view: a kernel's attachers on a function, and what is looked at.

    ``attachers``: their names, sorted; ``asks``: empty for record and behaviour, else the
    act whose errno it is, or ``return value``; ``where``: what of the function itself may
    decide about it.
    """

    kernel: str
    attachers: tuple[str, ...]
    asks: str = ""
    where: str = ""

    @classmethod
    def of(cls, kernel: str, here: Iterable[Attached], asks: str = "", where: str = "") -> Place:
        """The place with some attachments."""
        return cls(kernel, tuple(sorted(a.attacher for a in here)), asks, where)

    def kinds(self) -> Iterator[Attacher]:
        """What its attachers are."""
        return (ATTACHERS[name] for name in self.attachers)

    def __str__(self) -> str:
        here = "{" + ", ".join(self.attachers) + "}"
        where = f" on a function {self.where}" if self.where else ""
        return (
            f"{self.kernel}: {self.asks} with {here}{where}"
            if self.asks
            else (f"{self.kernel}: {here}")
        )


# --- exceptions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One thing that two histories of a place show otherwise."""

    what: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.what}: {self.first} and {self.second}"


@dataclass(frozen=True)
class Pair:
    """Two histories of one place."""

    place: Place
    first: History
    second: History

    def having(self, difference: Difference, value: str) -> Past:
        """The past of the one that shows a value."""
        return (self.first if difference.first == value else self.second).past


@dataclass(frozen=True)
class Known:
    """A difference that is known: ``source`` names the kernel's code behind it."""

    name: str
    reason: str
    source: str
    covers: Callable[[Pair, Difference], bool]


def _sets_modified(pair: Pair, past: Past) -> bool:
    """Whether anybody there makes the core set M."""
    return past.armed or any(k.ipmodify or k.direct for k in pair.place.kinds())


def _modified_stays(pair: Pair, difference: Difference) -> bool:
    return difference.what == "flag M" and not _sets_modified(pair, pair.having(difference, "no"))


def _modified_when_rewritten(pair: Pair, difference: Difference) -> bool:
    return (
        difference.what == "flag M"
        and _sets_modified(pair, pair.having(difference, "no"))
        and len(pair.place.attachers) > 1
    )


def _keeps_regs(pair: Pair, difference: Difference) -> bool:
    return difference.what == "flag R" and pair.having(difference, "yes").left_regs


def _share_outlives(pair: Pair, difference: Difference) -> bool:
    kinds = list(pair.place.kinds())
    return (
        difference.what == "jmp"
        and any(k.calls_original for k in kinds)
        and not any(k.ipmodify for k in kinds)
    )


def _kprobe_arming(pair: Pair, difference: Difference) -> bool:
    arms = pair.first.past.armed != pair.second.past.armed
    return arms and difference.what in ("flag I", "jmp", "errno")


def _skips_direct(pair: Pair, difference: Difference) -> bool:
    return (
        difference.what == "errno"
        and pair.place.asks == "attach kprobe-post"
        and any(k.direct for k in pair.place.kinds())
        and pair.having(difference, "0").post_elsewhere
    )


EXCEPTIONS: tuple[Known, ...] = (
    Known(
        MODIFIED_STAYS.name,
        "M says that the function was modified at some time since its record was made.",
        MODIFIED_STAYS.source,
        _modified_stays,
    ),
    Known(
        MODIFIED_WHEN_REWRITTEN.name,
        "M is set when the call site is rewritten, which for the third user it is not.",
        MODIFIED_WHEN_REWRITTEN.source,
        _modified_when_rewritten,
    ),
    Known(
        FILTER_CHANGE_KEEPS_REGS.name,
        "An ops that stays registered for other functions left; R stays until another that "
        "asks for it leaves, or all have.",
        FILTER_CHANGE_KEEPS_REGS.source,
        _keeps_regs,
    ),
    Known(
        SHARE_OUTLIVES_PROGRAMS.name,
        "A trampoline that outlived its programs still has the share flag, so it is called.",
        SHARE_OUTLIVES_PROGRAMS.source,
        _share_outlives,
    ),
    Known(
        "kprobes-keep-their-ops",
        "The first kprobe of a function decides whether all of them use the ops with IPMODIFY: "
        "one with a post_handler that comes later does not change it, nor one that leaves.",
        "kernel/kprobes.c: register_aggr_kprobe, __unregister_kprobe_top",
        _kprobe_arming,
    ),
    Known(
        PEERS_ASKED_AT_REGISTRATION.name,
        "A second kprobe with a post_handler does not ask the direct call on its function.",
        PEERS_ASKED_AT_REGISTRATION.source,
        _skips_direct,
    ),
)
