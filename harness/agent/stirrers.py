# SPDX-License-Identifier: GPL-2.0-only
"""Stirrers: threads that repeat a cycle of acts while others repeat theirs.

No lock of ours is held over an act: what they do at once, the kernel does at once.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, Optional

from . import system

#: What each act is about, by the key of its name: these make it,
_MAKERS = {"attach": "id", "hold": "id", "load": "module"}
#: these take it away,
_UNMAKERS = {"detach": "id", "release": "id", "unload": "module"}
#: and these, too, make no sense without it.
_USERS = {"modify": "id", "disable": "id", "enable": "id", "force": "id"}


#: Slept after each cycle, in seconds.
_BREATH = 0.001


class Op(NamedTuple):
    """One act that a stirrer did: ``stirrer`` and ``step`` are numbers, times time.monotonic()."""

    stirrer: int
    step: int
    errno: int
    t0: float
    t1: float


class Work(NamedTuple):
    """What stirrers work with.

    ``act`` does one act and gives what Acts.act does; ``present`` tells whether what a step
    is about is there; ``allow`` sets what calls may meet ``"during"`` a step or ``"after"``
    it, None: what they might before; ``log`` gets each Op; ``patience``: seconds for one act.
    """

    act: Callable[[dict[str, Any]], dict[str, Any]]
    present: Callable[[dict[str, Any]], bool]
    allow: Callable[[dict[str, Any], Optional[str]], None]
    log: Callable[[Op], None]
    patience: float


def pauses(seed: int, name: str) -> Iterator[float]:
    """Seconds to wait before each step: mostly none, and the same for the same seed."""
    chance = random.Random("%d/%s" % (seed, name))  # noqa: S311
    while True:
        luck = chance.random()
        if luck < 0.85:
            yield 0.0
        else:
            yield chance.random() * (0.002 if luck < 0.98 else 0.02)


def _about(step: dict[str, Any]) -> Optional[str]:
    """The name of what a step makes, takes away or uses; None: nothing."""
    do = step["do"]
    key = _MAKERS.get(do) or _UNMAKERS.get(do) or _USERS.get(do)
    return None if key is None else str(step[key])


class Stirrer:
    """One of them; ``steps`` are the acts of its cycle, after each of which it rests: ``rest``
    times as long as the cycle took, so that others get a lock that it would have again.

    ``rounds`` counts whole cycles; ``outcomes`` how often each step gave each errno;
    ``trouble``, in words, is why it ended before it was told to, or what it left.
    """

    def __init__(
        self,
        number: int,
        name: str,
        steps: list[dict[str, Any]],
        seed: int,
        work: Work,
        rest: float = 0.0,
    ) -> None:
        self.name = name
        self.rounds = 0
        self.outcomes: dict[tuple[int, int], int] = {}
        self.trouble = ""
        self._number = number
        self._steps = steps
        self._work = work
        self._rest = rest
        self._pauses = pauses(seed, name)
        self._stop = threading.Event()
        #: What the cycle is about, in the reverse of the order of its making: a step that is
        #: about it, and whether it was there at the start.
        self._first: dict[str, tuple[dict[str, Any], bool]] = {}
        #: The number of the step that is being done, and when it has to be over.
        self._doing: Optional[tuple[int, float]] = None
        self._thread = threading.Thread(target=self._run, name="stir-" + name, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Lets it end after its cycle."""
        self._stop.set()

    def join(self, patience: float) -> bool:
        """Waits for its end, so many seconds; whether it came."""
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def stuck(self) -> str:
        """Words for the step that takes too long, or ""."""
        doing = self._doing
        if doing is None or time.monotonic() < doing[1]:
            return ""
        return "step %d (%s) does not end" % (doing[0], self._steps[doing[0]]["do"])

    def _run(self) -> None:
        try:
            for step in reversed(self._steps):
                if (key := _about(step)) is not None:
                    self._first[key] = step, self._work.present(step)
            while not self._stop.is_set() and not self.trouble:
                began = time.monotonic()
                self._cycle()
                self.rounds += 1
                if self._rest:
                    self._stop.wait(self._rest * (time.monotonic() - began))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.trouble = "%s: %s (%s:%d)" % (
                type(error).__name__, error, where.filename.rpartition("/")[2], where.lineno or 0,
            )  # fmt: skip

    def _cycle(self) -> None:
        for number, step in enumerate(self._steps):
            # What another stirrer's doing had refused before: what follows from it is left out.
            if step["do"] in _MAKERS:
                senseless = self._work.present(step)
            else:
                senseless = _about(step) is not None and not self._work.present(step)
            if senseless:
                continue
            if pause := next(self._pauses):
                time.sleep(pause)
            self._op(number)
        self._tidy()
        # A cycle may be nothing that waits in the kernel: the others' threads come first.
        time.sleep(_BREATH)

    def _tidy(self) -> None:
        """Goes back to how it was before the first cycle, where a refused step is in the way."""
        deadline = time.monotonic() + self._work.patience
        for key, (step, wanted) in self._first.items():
            error = 0
            while self._work.present(step) != wanted:
                if time.monotonic() > deadline:
                    state = "not there" if wanted else "still there"
                    self.trouble = "%s is %s: errno %d to the end" % (key, state, error)
                    break
                time.sleep(system.POLL)
                back = _MAKERS if wanted else _UNMAKERS
                numbers = [
                    n for n, s in enumerate(self._steps) if s["do"] in back and _about(s) == key
                ]
                if numbers:
                    error = self._op(numbers[-1])

    def _op(self, number: int) -> int:
        """Does one step; its errno."""
        step = self._steps[number]
        work = self._work
        patience = float(step.get("patience", work.patience))
        self._doing = number, time.monotonic() + 2 * max(patience, work.patience)
        try:
            work.allow(step, "during")
            t0 = time.monotonic()
            result = work.act(step)
            t1 = time.monotonic()
            error = int(result["errno"])
            # A transition that goes on after all patience: what may be during it still may.
            if error or result.get("done", True):
                work.allow(step, None if error else "after")
        finally:
            self._doing = None
        self.outcomes[number, error] = self.outcomes.get((number, error), 0) + 1
        work.log(Op(self._number, number, error, t0, t1))
        return error
