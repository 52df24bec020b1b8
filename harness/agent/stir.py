# SPDX-License-Identifier: GPL-2.0-only
"""Hammers that call functions as fast as they can while stirrers attach and detach."""

from __future__ import annotations

import atexit
import collections
import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Optional

from . import abi, userhammers
from .attachers import Attachment, Control, KmodAttachment
from .hammers import Hammers
from .links import BpfAttachment, MultiAttachment
from .stirrers import Op, Stirrer, Work
from .userhammers import UserHammers

if TYPE_CHECKING:
    from .acts import Acts

#: How often it is looked whether all is done, in seconds.
_LOOK = 0.25
#: So many seconds after the first wrong result it is over: more of them say no more.
_WRONG_IS_ENOUGH = 5.0
_FAULTS = {
    "": abi.FAULT_NONE,
    "body": abi.FAULT_BODY,
    "counter": abi.FAULT_COUNTER,
    "stall": abi.FAULT_STALL,
}


class Allowed:
    """What calls of each hammered function may meet; tells the hammers.

    ``functions``: by name what holds at the start, as userhammers.mask has it.
    """

    def __init__(
        self, functions: dict[str, int], kernel: set[str], hammers: Hammers, user: UserHammers
    ) -> None:
        self._now = dict(functions)
        self._kernel = kernel
        self._hammers = hammers
        self._user = user
        self._lock = threading.Lock()
        #: By thread: what was allowed before the step that it does.
        self._before = threading.local()

    def step(self, step: dict[str, Any], when: Optional[str], functions: Iterable[str]) -> None:
        """See Work.allow; ``functions``: those that the step is about.

        Raises OSError where hammers don't take it over.
        """
        if "during" not in step and "after" not in step:
            return
        if when == "during":
            self._before.masks = dict(self._now)
        wanted = self._before.masks if when is None else _masks(step.get(when), functions)
        # Two at once would leave it open which of them holds; nothing is attached in here.
        with self._lock:
            for function, mask in wanted.items():
                if self._now.get(function, mask) != mask:
                    self._tell(function, mask)

    def _tell(self, function: str, mask: int) -> None:
        error = self._user.allow(function, mask)
        if not error and function in self._kernel:
            error = self._hammers.allow(function, mask)
        if error:
            raise OSError(error, "the hammers of %s go on as before" % function)
        self._now[function] = mask


def _masks(bodies: Any, functions: Iterable[str]) -> dict[str, int]:
    """Sets of bodies by function: one for all of them, or one for each."""
    if bodies is None:
        return {}
    if isinstance(bodies, dict):
        return {name: userhammers.mask(names) for name, names in bodies.items()}
    return {name: userhammers.mask(bodies) for name in functions}


class Stir:
    """One stir step: ``step`` is the agent's form of it, ``functions`` the table of them.

    ``start``; ``progress`` until it says that it is over; ``end``.  ``abort`` at any time.
    """

    def __init__(
        self,
        acts: Acts,
        step: dict[str, Any],
        allowed: dict[str, list[str]],
        functions: dict[str, dict[str, Any]],
        patience: float,
    ) -> None:
        self._acts = acts
        self._step = step
        self._table = functions
        self._fault = str(step.get("fault", ""))
        self._hammers = Hammers(acts.control.fd)
        self._user = UserHammers()
        wanted = step.get("hammers", [])
        self._wanted = [(hammer["function"], hammer["by"]) for hammer in wanted]
        self._names = list(dict.fromkeys(name for name, _ in self._wanted))
        self._masks = {n: userhammers.mask(allowed.get(n, ["original"])) for n in self._names}
        kernel = {name for name, by in self._wanted if by == "kernel"}
        self._allowed = Allowed(self._masks, kernel, self._hammers, self._user)
        self._ops: collections.deque[Op] = collections.deque()
        work = Work(acts.act, acts.present, self._allow, self._log, patience)
        seed = int(step.get("seed", 0))
        self._stirrers = [
            Stirrer(
                number, stirrer["name"], stirrer["steps"], seed, work, float(stirrer.get("rest", 0))
            )
            for number, stirrer in enumerate(step.get("stirrers", []))
        ]
        self._patience = patience
        self._began = 0.0
        #: What SIGTERM does otherwise.
        self._handler: Any = signal.SIG_DFL
        self._stopped: Optional[float] = None
        #: When a wrong result was first seen.
        self._wrong: Optional[float] = None
        self._throughout = Throughout(acts)
        self._site = Site(self._hammers, acts.control, self._names[0] if self._names else None)

    def start(self) -> None:
        """Starts the hammers, then the stirrers.  Raises where it can't; then all is ended."""
        try:
            self._at_exit()
            self._acts.prepare_stir(
                [s for one in self._step.get("stirrers", []) for s in one["steps"]]
            )
            self._throughout.begin()
            self._began = time.monotonic()
            for number, (name, by) in enumerate(self._wanted):
                self._start_hammer(name, by, self._fault if number == 0 else "")
            # However short it is: each of them makes a call.  One that can't is in the result.
            for name, by in self._wanted:
                hammers = self._hammers if by == "kernel" else self._user
                hammers.allow(name, self._masks[name])
            self._site.begin(int(self._step.get("widen_us", 0)))
            for stirrer in self._stirrers:
                stirrer.start()
        except BaseException:
            self.abort()
            raise

    def _at_exit(self) -> None:
        """The kernel's hammers would outlive us."""
        atexit.register(self.abort)
        self._handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def _ended(self) -> None:
        self._acts.finish_stir()
        atexit.unregister(self.abort)
        signal.signal(signal.SIGTERM, self._handler)

    def _start_hammer(self, name: str, by: str, fault: str) -> None:
        function = self._table[name]
        if by != "kernel":
            self._user.start(function, self._masks[name], fault, by)
            return
        path = function["path"] if function["trigger"] == "read" else ""
        error = self._hammers.start(name, path, self._masks[name], _FAULTS[fault])
        if error:
            raise OSError(error, "hammering %s: %s" % (name, os.strerror(error)))

    def _allow(self, step: dict[str, Any], when: Optional[str]) -> None:
        concerned = set(self._acts.functions_of(step)) & set(self._names)
        self._allowed.step(step, when, concerned or self._names)

    def _log(self, op: Op) -> None:
        self._ops.append(op)
        self._site.look()

    # --- while it runs ----------------------------------------------------------------------

    def progress(self, wait: float) -> dict[str, Any]:
        """What was done since the last time, after ``wait`` seconds or when it is over.

        ``over`` also says that each stirrer has come to the end of its cycle; ``stuck``, if it
        is there, has words for each that has not, long after it should have.
        """
        deadline = time.monotonic() + wait
        while True:
            self._look()
            over = self._stopped is not None and all(s.over for s in self._stirrers)
            if over or time.monotonic() >= deadline:
                break
            time.sleep(min(_LOOK, max(0.0, deadline - time.monotonic())))
        stuck = {s.name: s.stuck() for s in self._stirrers if s.stuck()}
        return {
            "over": over,
            "calls": sum(int(thread["calls"]) for thread in self._threads()),
            "patches": self._site.patches(),
            "rounds": {s.name: s.rounds for s in self._stirrers},
            "elapsed": round(self._elapsed(), 3),
            "ops": self._take(),
            **({"stuck": stuck} if stuck else {}),
        }

    def _look(self) -> None:
        """Lets the stirrers end when enough was tried, time is up, results are wrong, or one of
        them has given up."""
        if self._stopped is not None:
            return
        elapsed = self._elapsed()
        step = self._step
        threads = self._threads()
        if self._wrong is None and any(any(thread["wrong"]) for thread in threads):
            self._wrong = elapsed
        done = elapsed >= float(step.get("at_least", 0)) and (
            all(s.rounds >= int(step.get("rounds", 0)) for s in self._stirrers)
            and self._site.patches() >= int(step.get("patches", 0))
            and sum(int(thread["calls"]) for thread in threads) >= int(step.get("calls", 0))
        )
        done |= self._wrong is not None and elapsed >= self._wrong + _WRONG_IS_ENOUGH
        if done or elapsed >= float(step["seconds"]) or any(s.trouble for s in self._stirrers):
            for stirrer in self._stirrers:
                stirrer.stop()
            self._stopped = time.monotonic()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _threads(self) -> list[dict[str, Any]]:
        """What the hammers have counted so far."""
        by_kernel = any(by == "kernel" for _, by in self._wanted)
        kernel = self._hammers.read(stop=False) if by_kernel else []
        return [*kernel, *self._user.read()]

    def _take(self) -> list[list[Any]]:
        ops = [self._ops.popleft() for _ in range(len(self._ops))]
        return [
            [op.stirrer, op.step, op.errno, round(op.t0, 6), round(op.t1, 6)]
            for op in sorted(ops, key=lambda op: op.t1)
        ]

    # --- the end ----------------------------------------------------------------------------

    def end(self) -> dict[str, Any]:
        """Ends everything that still runs; the result."""
        for stirrer in self._stirrers:
            stirrer.stop()
        elapsed = self._elapsed()
        left = {}
        for stirrer in self._stirrers:
            if not stirrer.join(self._patience):
                left[stirrer.name] = stirrer.stuck() or "its cycle does not end"
            elif stirrer.trouble:
                left[stirrer.name] = stirrer.trouble
        if stuck := self._user.stop():
            left["hammers"] = "; ".join(stuck)
        # No call is made from here on.
        kernel = self._hammers.read(stop=True)
        window = self._site.end()
        self._ended()
        throughout = self._throughout.end()
        threads = [(thread, "kernel") for thread in kernel]
        threads += [(process, process["by"]) for process in self._user.read()]
        return {
            "began": round(self._began, 6),
            "elapsed": round(elapsed, 3),
            "cpus": len(os.sched_getaffinity(0)),
            **window,
            "hammers": [told(thread, by) for thread, by in threads],
            "rounds": {s.name: s.rounds for s in self._stirrers},
            "outcomes": {
                s.name: [[step, error, n] for (step, error), n in sorted(s.outcomes.items())]
                for s in self._stirrers
            },
            "left": left,
            "throughout": throughout,
            "ops": self._take(),
        }

    def abort(self) -> list[str]:
        """Ends everything, whatever it did; words for what would not end."""
        for stirrer in self._stirrers:
            stirrer.stop()
        residue = self._user.stop()
        with contextlib.suppress(OSError):
            self._hammers.read(stop=True)
        with contextlib.suppress(OSError):
            self._site.end()
        for stirrer in self._stirrers:
            if not stirrer.join(self._patience):
                residue.append("stirrer %s: %s" % (stirrer.name, stirrer.stuck() or "goes on"))
        self._ended()
        return residue


class Site:
    """Counts how often a function's call site was patched; ``function`` None: nobody's.

    By a look from inside the kernel's patching, where that can be had (x86-64), else by
    looking after each op at what stands there, and at what it leads to: no more than that
    can be sure of.  A branch that is out of reach of its trampoline is left as it is, and
    the trampoline in the ops that is stored there exchanged (arch/arm64/kernel/ftrace.c:
    ftrace_find_callable_addr).
    """

    def __init__(self, hammers: Hammers, control: Control, function: Optional[str]) -> None:
        self._hammers = hammers
        self._control = control
        self._function = function
        self._window = False
        self._widen = 0
        self._lock = threading.Lock()
        self._last: Any = None
        self._changes = 0

    def _look(self, function: str) -> tuple[Any, ...]:
        leads = self._control.site(function)
        return self._hammers.text(function), leads.get("ops"), leads.get("direct_call")

    def begin(self, widen_us: int) -> None:
        """Begins to count; ``widen_us``: how long to wait in the window, if there is one."""
        self._widen = widen_us
        if self._function is None:
            return
        error = self._hammers.window(self._function, widen_us, True)
        if error and error != errno.EOPNOTSUPP:
            raise OSError(error, "the window of %s" % self._function)
        self._window = not error
        if error:
            self._last = self._look(self._function)

    def look(self) -> None:
        """Looks whether it has changed."""
        if self._function is None or self._window:
            return
        with self._lock:
            seen = self._look(self._function)
            self._changes += seen != self._last
            self._last = seen

    def patches(self) -> int:
        """How often it was patched so far."""
        return int(self._hammers.windowed()["at_site"]) if self._window else self._changes

    def end(self) -> dict[str, Any]:
        """Counts no more; this part of the result."""
        found = {"pokes": 0, "windows": 0, "inside": 0, "most": 0}
        patches, by = self._changes, "site"
        if self._window:
            self._window = False
            self._hammers.window(self._function or "", self._widen, False)
            found = self._hammers.windowed()
            patches, by = found["at_site"], "text-poke"
        return {
            "patches": patches,
            "patches_by": by,
            "pokes": found["pokes"],
            "windows": found["windows"],
            "inside": found["inside"],
            "inside_most": found["most"],
            "widen_us": self._widen,
        }


class Throughout:
    """What the attachments that are there all the time count meanwhile.

    Not tracers: what they write down is overwritten.
    """

    def __init__(self, acts: Acts) -> None:
        self._acts = acts
        #: By id: the attachment, and what it had missed before.
        self._before: dict[str, tuple[Attachment, int]] = {}

    def begin(self) -> None:
        """Sets all counters to zero."""
        for source in self._acts.sources:
            source.clear()
        self._before = {a.identity: (a, count["misses"]) for a, count in self._counts()}

    def end(self) -> dict[str, dict[str, Any]]:
        """By attachment: ``hits`` by all callers, ``misses``, and ``via`` of a direct one."""
        found = {}
        for attachment, count in self._counts():
            before, missed = self._before.get(attachment.identity, (None, 0))
            # A stirrer may have attached it anew.
            if before is attachment:
                count["misses"] -= missed
                found[attachment.identity] = count
        return found

    def _counts(self) -> Iterable[tuple[Attachment, dict[str, Any]]]:
        for attachment in self._acts.attachments().values():
            if isinstance(attachment, KmodAttachment):
                yield attachment, self._acts.control.total(attachment)
            elif isinstance(attachment, (BpfAttachment, MultiAttachment)):
                yield attachment, attachment.total()


def told(thread: dict[str, Any], by: str) -> dict[str, Any]:
    """A hammer's counters as the result has them."""
    kinds = userhammers.WRONGS
    first = thread["first"]
    if first is not None and by == "kernel":
        tag, low = first["result"] >> 32, first["result"] & 0xFFFFFFFF
        first = {
            "t": round(first["ns"] / 1e9, 6),
            "cpu": first["cpu"],
            "call": first["call"],
            "kind": kinds[first["kind"]],
            "seen": "%s, %#x" % (abi.body_of_tag(tag), low) if tag else "%#x" % low,
            "stack": first["stack"],
        }
    return {
        "function": thread["function"],
        "by": by,
        "cpu": thread["cpu"],
        "calls": thread["calls"],
        "bodies": {abi.body_of_tag(tag): n for tag, n in thread["bodies"].items()},
        "wrong": {kinds[kind]: n for kind, n in enumerate(thread["wrong"]) if n},
        "first": first,
        **({"failed": thread["failed"]} if "failed" in thread else {}),
    }
