# SPDX-License-Identifier: GPL-2.0-only
"""Whether what stirrers' steps gave is what some order of those at the same time explains.

A step that was done from one time to another took effect at some moment between.  So
another stirrer's attachment is certainly there throughout a step if its attach was over
before and its detach began afterwards; it may be there if it may have been at any moment
between.  An errno is right if with some of those that may be there, beside all that
certainly are, the policy gives it.
"""

from __future__ import annotations

import errno
import itertools
import math
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errno_names import name as errno_name
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import (
    Attach,
    Call,
    Detach,
    Disable,
    Enable,
    Force,
    Hold,
    Release,
    Step,
    Stirrer,
    TraceAll,
    Unload,
    Write,
)

from . import allowances, ops
from .acts import transition
from .allowances import Allowance
from .attachers import ATTACHERS
from .opsknown import (
    DISABLING,
    ENABLING,
    MODULE,
    OFF,
    ON,
    PENDING,
    SWITCH,
    TRYING,
    Knowledge,
    Known,
    Op,
)
from .profile import Profile
from .state import State
from .timeline import Values

#: Steps that wait to be judged until all at the same time are known; and of those that may
#: be there so many are tried in all combinations, of more only two at a time.
_WAITING, _COMBINED = 1024, 8

_BPF = frozenset(name for name, kind in ATTACHERS.items() if kind.bpf)
#: Those that hold a module while they are put on one of its functions.
_HOLDING = _BPF | {name for name, kind in ATTACHERS.items() if kind.ops == "kprobe"}


@dataclass(frozen=True)
class OpMismatch:
    """An errno that nothing at the same time explains; ``at``: when it came, agent's seconds.

    ``op`` is None where a stirrer left something as it was not before.
    """

    stirrer: str
    what: str
    expected: str
    seen: str
    at: float
    op: Op | None = None

    def __str__(self) -> str:
        return f"{self.stirrer}: {self.what}: expected {self.expected}, saw {self.seen}"


class OpsJudge:
    """Judges the steps of stirrers as they come in; ``state`` is that before the first.

    Keeps what the steps that are not judged yet need, however long it runs.
    """

    def __init__(self, state: State, stirrers: Sequence[Stirrer], profile: Profile) -> None:
        self._stirrers = stirrers
        self._profile = profile
        self._know = Knowledge(state, stirrers)
        self._waiting: deque[Op] = deque()
        self._cache: dict[Any, frozenset[int]] = {}

    def feed(self, ops: Sequence[Sequence[Any]]) -> list[OpMismatch]:
        """Takes steps as the agent tells them, in the order in which they ended.

        Each is the stirrer's index, the step's, errno, begin and end in seconds.  Gives what
        is wrong of those that can be judged by now.
        """
        found = []
        for stirrer, step, error, begin, end in ops:
            op = Op(int(stirrer), int(step), int(error), float(begin), float(end))
            self._know.note(op)
            self._waiting.append(op)
            while self._waiting and (
                len(self._waiting) > _WAITING or self._complete(self._waiting[0])
            ):
                found += self._judge(self._waiting.popleft())
        self._forget()
        return found

    def finish(self, stuck: Collection[str] = ()) -> list[OpMismatch]:
        """All is over: what is wrong of the rest, and what did not come back to its start.

        ``stuck``: names of stirrers that still are at a step, of which nothing was told.
        """
        know = self._know
        know.finished = True
        know.stuck = frozenset(i for i, one in enumerate(self._stirrers) if one.name in stuck)
        found = [m for op in self._waiting for m in self._judge(op)]
        self._waiting.clear()
        for identity, known in know.known.items():
            if known.owner >= 0 and not known.time.last & known.first:
                found.append(self._left(identity, known.owner, known.first, known.time.last))
        enabled = frozenset({str(int(know.base.ftrace_enabled))})
        loaded = frozenset({"unloaded" if know.base.unloaded else "loaded"})
        for owner in know.writers:
            if not know.ftrace.last & enabled:
                found.append(self._left("kernel.ftrace_enabled", owner, enabled, know.ftrace.last))
        for owner in know.movers:
            if not know.module.last & loaded:
                found.append(self._left("the test module", owner, loaded, know.module.last))
        return found

    def _left(self, what: str, owner: int, first: Values, last: Values) -> OpMismatch:
        before, now = (" or ".join(sorted(values)) for values in (first, last))
        name, at = self._stirrers[owner].name, self._know.seen[owner]
        return OpMismatch(name, f"{what} at the end", before, now, at)

    def _complete(self, op: Op) -> bool:
        """Whether all that was done at the same time has been told."""
        return all(end >= op.end for i, end in enumerate(self._know.seen) if i != op.stirrer)

    def _forget(self) -> None:
        horizon = min((op.begin for op in self._waiting), default=math.inf)
        # A stirrer that does not get on must not make us keep everything.
        if len(self._waiting) < _WAITING // 2:
            horizon = min(horizon, *self._know.seen)
        self._know.forget(horizon)

    def _judge(self, op: Op) -> list[OpMismatch]:
        step = self._know.step(op)
        right, why = self._right(op, step)
        if op.errno in right:
            return []
        expected = " or ".join(_text(error) for error in sorted(right)) or "nothing"
        expected += f" ({', '.join(a.name for a in why)})" if why else ""
        name = self._stirrers[op.stirrer].name
        return [OpMismatch(name, str(step), expected, _text(op.errno), op.end, op)]

    def _right(self, op: Op, step: Step | TraceAll) -> tuple[frozenset[int], list[Allowance]]:
        """The errnos that a step may give, and what allows more than the policy does."""
        why: list[Allowance] = []
        right: frozenset[int] = frozenset({0})
        if isinstance(step, Attach):
            right = self._attach(op, step, why)
        elif isinstance(step, Detach | Disable | Enable | Force):
            if self._know.known[step.id].made.kind.ops == "livepatch":
                right = self._livepatch(op, step, why)
        elif isinstance(step, Write):
            right = self._write(op, step)
        elif isinstance(step, Unload):
            right = self._unload(op, step, why)
        return right.union(*(a.errnos for a in why)), why

    def _others_pending(self, op: Op, identity: str) -> tuple[bool, bool]:
        """Whether another livepatch's transition may be, and must be, pending throughout."""
        values = [self._know.values(known, op) for known in self._know.livepatches(identity)]
        return any(v & PENDING for v in values), any(v <= PENDING for v in values)

    def _attach(self, op: Op, step: Attach, why: list[Allowance]) -> frozenset[int]:
        know, kind = self._know, ATTACHERS[step.attacher]
        module = any(FUNCTIONS[f].module for f in step.functions)
        if module and "unloaded" in know.switch(know.module, know.movers, MODULE, op):
            why.append(allowances.MODULE_MAY_BE_GONE)
        if kind.ops == "livepatch":
            may, must = self._others_pending(op, step.id)
            if may:
                why.append(allowances.PENDING_ELSEWHERE)
            if must:
                return frozenset()
        certain, possible = know.split(op, self._company(step))
        on_it = set(step.functions)
        programs = any(
            k.made.kind.bpf and on_it & set(k.made.functions) for k in (*certain, *possible)
        )
        if kind.ipmodify and programs and self._busy(op, _BPF):
            why.append(allowances.TRAMPOLINE_LOCKED)
        if any(TRYING in know.values(k, op) for k in possible):
            why.append(allowances.HALF_PATCHED)
        return self._policy(op, step, certain, possible)

    def _company(self, step: Attach) -> list[Known]:
        """Who has a say about an attach."""
        found = []
        for identity, known in self._know.known.items():
            kind = known.made.kind
            # Of kprobes with a post_handler those of other functions have one, too.
            near = bool(set(known.made.functions) & set(step.functions)) or kind.posts
            if identity != step.id and near and (kind.ipmodify or kind.direct or kind.posts):
                found.append(known)
        return found

    def _busy(self, op: Op, attachers: frozenset[str], *kinds: type) -> bool:
        """Whether others attach or detach these, or do such steps, at the same time."""
        return any(
            isinstance(step, kinds)
            or (
                isinstance(step, Attach | Detach)
                and self._know.known[step.id].made.attacher in attachers
            )
            for step in self._know.doing(op)
        )

    def _policy(
        self, op: Op, step: Step, certain: Sequence[Known], possible: Sequence[Known]
    ) -> frozenset[int]:
        """What the policy gives with some of ``possible`` there."""
        know = self._know
        values = know.switch(know.ftrace, know.writers, SWITCH, op)
        return self._errnos(step, certain, possible, values)

    def _errnos(
        self, step: Step, certain: Sequence[Known], possible: Sequence[Known], enabled: Values
    ) -> frozenset[int]:
        key = (step, *(frozenset(k.made.id for k in some) for some in (certain, possible)), enabled)
        if key not in self._cache:
            self._cache[key] = frozenset(
                self._errno(step, (*certain, *some), value == "1")
                for value in enabled
                for some in _some(possible)
            )
        return self._cache[key]

    def _errno(self, step: Step, there: Sequence[Known], enabled: bool) -> int:
        attached = tuple(replace(k.made, phase="on") for k in there)
        posts = [a for a in attached if a.kind.posts and ops.on_ftrace(a, self._profile)]
        state = State(
            attached=attached,
            ftrace_enabled=enabled,
            post_armed=frozenset(f for a in posts for f in a.functions),
            dead=self._know.base.dead,
        )
        slot = self._know.known[step.id].made.slot if isinstance(step, Attach) else None
        return transition(state, step, self._profile, slot)[0].errno

    def _livepatch(self, op: Op, step: Any, why: list[Allowance]) -> frozenset[int]:
        """kernel/livepatch/core.c: enabled_store, force_store."""
        values = self._know.own(self._know.known[step.id], op)
        may, must = self._others_pending(op, step.id)
        right: set[int] = set()
        if isinstance(step, Detach):
            # What is off, or never comes back from being on its way out, only leaves.
            if values != {ON} or not must:
                right.add(0)
        elif OFF in values:
            right.add(errno.ENOENT)
            if values != {OFF}:
                why.append(allowances.FILES_VANISH)
        if isinstance(step, Disable | Detach):
            if ON in values and may:
                why.append(allowances.PENDING_ELSEWHERE)
            if ENABLING in values or (ON in values and not must):
                right.add(0)
            if DISABLING in values and isinstance(step, Disable):
                right.add(errno.EINVAL)
        elif isinstance(step, Enable):
            if DISABLING in values:
                right.add(0)
            if values & {ON, ENABLING}:
                right.add(errno.EINVAL)
        elif isinstance(step, Force):
            if values & PENDING:
                right.add(0)
            if values & {ON, *PENDING}:
                right.add(errno.EINVAL)
        return frozenset(right)

    def _write(self, op: Op, step: Write) -> frozenset[int]:
        permanent = [
            k for k in self._know.known.values() if ops.is_permanent(k.made, self._profile)
        ]
        certain, possible = self._know.split(op, permanent)
        return self._errnos(step, certain, possible, self._know.ftrace.before(op.begin))

    def _unload(self, op: Op, step: Unload, why: list[Allowance]) -> frozenset[int]:
        inside = [
            k
            for k in self._know.known.values()
            if any(FUNCTIONS[f].module for f in k.made.functions)
        ]
        if self._busy(op, _HOLDING, Call, Hold, Release):
            why.append(allowances.MODULE_LOOKED_AT)
        return self._policy(op, step, *self._know.split(op, inside))


def _some(possible: Sequence[Known]) -> Iterator[tuple[Known, ...]]:
    """Each combination; of many only none, all, each one, and each two.

    Whatever refuses does so because of one attachment, and by the order of the rules
    another can be in its place: two decide.
    """
    every = len(possible) <= _COMBINED
    for size in range(len(possible) + 1) if every else (0, 1, 2, len(possible)):
        yield from itertools.combinations(possible, size)


def _text(error: int) -> str:
    return f"{errno_name(error)} ({error})" if error else "0"
