# SPDX-License-Identifier: GPL-2.0-only
"""Stirrers, as far as they need no kernel of their own."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import threading
from typing import Any

import pytest
from waiting import wait_for

from harness.agent import abi
from harness.agent.stir import Allowed
from harness.agent.stirrers import Op, Stirrer, Work, pauses
from harness.agent.userhammers import mask
from harness.scenario.functions import FUNCTIONS

LIVEPATCH = abi.TAG_LIVEPATCH
ORIGINAL = abi.TAG_ORIGINAL
TABLE = {name: dataclasses.asdict(function) for name, function in FUNCTIONS.items()}


# --- stirrers -------------------------------------------------------------------------------


class Bench:
    """A kernel that a test makes up; ``answers`` are the errnos of a step, by what it does."""

    def __init__(self, **answers: list[int]) -> None:
        self.answers = {do: iter(errnos) for do, errnos in answers.items()}
        #: What goes on in the kernel after the act, once.
        self.slow: set[str] = set()
        self.there: set[str] = set()
        self.done: list[str] = []
        self.ops: list[Op] = []
        self.allowed: list[tuple[str, str | None]] = []
        self.enough = threading.Event()

    def act(self, step: dict[str, Any]) -> dict[str, Any]:
        self.done.append(step["do"])
        if step["do"] in self.slow:
            self.slow.remove(step["do"])
            return {"errno": 0, "done": False}
        error = next(self.answers.get(step["do"], iter(())), 0)
        if not error and step["do"] in ("attach", "load"):
            assert step["id"] not in self.there
            self.there.add(step["id"])
        elif not error and step["do"] in ("detach", "unload"):
            self.there.remove(step["id"])
        return {"errno": error}

    def present(self, step: dict[str, Any]) -> bool:
        return step["id"] in self.there

    def allow(self, step: dict[str, Any], when: str | None) -> None:
        self.allowed.append((step["do"], when))

    def stirrer(self, *dos: str, rounds: int = 1, patience: float = 10.0) -> Stirrer:
        """One that ends after so many rounds, with one thing of the name x."""
        steps = [{"do": do, "id": "x"} for do in dos]
        work = Work(self.act, self.present, self.allow, self.ops.append, patience)
        made = Stirrer(3, "one", steps, 1, work)
        cycle = made._cycle
        counter = itertools.count(1)

        def cycle_and_stop() -> None:
            if next(counter) == rounds:
                made.stop()
            cycle()

        made._cycle = cycle_and_stop  # type: ignore[method-assign]
        return made

    def run(self, *dos: str, rounds: int = 1, patience: float = 10.0) -> Stirrer:
        made = self.stirrer(*dos, rounds=rounds, patience=patience)
        made.start()
        assert made.join(20)
        return made


def test_cycles() -> None:
    bench = Bench()
    made = bench.run("attach", "modify", "detach", rounds=3)
    assert bench.done == ["attach", "modify", "detach"] * 3
    assert (made.rounds, made.trouble) == (3, "")
    assert made.outcomes == {(0, 0): 3, (1, 0): 3, (2, 0): 3}
    assert [(op.stirrer, op.step, op.errno) for op in bench.ops] == [
        (3, n, 0) for n in (0, 1, 2)
    ] * 3
    times = [t for op in bench.ops for t in (op.t0, op.t1)]
    assert times == sorted(times)
    assert bench.allowed[:4] == [
        ("attach", "during"), ("attach", "after"), ("modify", "during"), ("modify", "after"),
    ]  # fmt: skip


def test_what_follows_from_a_refused_attach_is_left_out() -> None:
    bench = Bench(attach=[errno.EBUSY, 0])
    made = bench.run("attach", "modify", "detach", rounds=2)
    assert bench.done == ["attach", "attach", "modify", "detach"]
    assert made.outcomes == {(0, errno.EBUSY): 1, (0, 0): 1, (1, 0): 1, (2, 0): 1}
    # And what calls may meet is as it was before.
    assert bench.allowed[:2] == [("attach", "during"), ("attach", None)]


def test_a_refused_detach_is_done_again() -> None:
    bench = Bench(detach=[errno.EBUSY, errno.EBUSY, 0])
    made = bench.run("attach", "detach", "attach", "detach")
    # The second attach makes no sense while it is there.
    assert bench.done == ["attach", "detach", "detach", "detach"]
    assert (made.trouble, bench.there) == ("", set())
    assert made.outcomes == {(0, 0): 1, (1, errno.EBUSY): 1, (3, errno.EBUSY): 1, (3, 0): 1}


def test_a_transition_that_does_not_end_in_time() -> None:
    """What calls may meet during it they may meet until the next step says otherwise."""
    bench = Bench()
    bench.slow.add("detach")
    made = bench.run("attach", "detach")
    assert bench.done == ["attach", "detach", "detach"]
    assert bench.allowed[2:] == [("detach", "during"), ("detach", "during"), ("detach", "after")]
    assert (made.trouble, bench.there) == ("", set())


def test_what_is_there_at_the_start_is_there_at_the_end() -> None:
    bench = Bench(attach=[errno.EBUSY, 0])
    bench.there.add("x")
    made = bench.run("detach", "attach")
    assert bench.done == ["detach", "attach", "attach"]
    assert (made.trouble, bench.there) == ("", {"x"})


def test_what_cannot_be_taken_away_is_told() -> None:
    made = Bench(detach=[errno.EBUSY] * 1000).run("attach", "detach", rounds=5, patience=0.1)
    assert made.trouble == "x is still there: errno 16 to the end"
    assert made.rounds == 1


def test_an_accident_of_ours_is_told() -> None:
    bench = Bench()
    bench.act = None  # type: ignore[method-assign,assignment]
    made = bench.run("attach")
    assert made.trouble.startswith("TypeError: 'NoneType' object is not callable (stirrers.py:")
    assert made.rounds == 0


def test_stuck() -> None:
    bench = Bench()
    go_on = threading.Event()
    entered = threading.Event()

    def act(step: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        go_on.wait(20)
        return {"errno": 0}

    bench.act = act  # type: ignore[method-assign]
    made = bench.stirrer("call", patience=0.01)
    made.start()
    assert entered.wait(20)
    wait_for(lambda: made.stuck() == "step 0 (call) does not end")
    assert not made.join(0)
    go_on.set()
    assert made.join(20)
    assert made.stuck() == ""


def test_pauses_are_the_seeds() -> None:
    def some(seed: int, name: str) -> list[float]:
        return list(itertools.islice(pauses(seed, name), 1000))

    assert some(1, "ops") == some(1, "ops")
    assert some(1, "ops") != some(2, "ops")
    assert some(1, "ops") != some(1, "kprobe")
    assert 800 < some(1, "ops").count(0.0) < 900
    assert max(some(1, "ops")) <= 0.02


# --- what is allowed ------------------------------------------------------------------------


class Told:
    """Hammers that only keep what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.error = 0

    def allow(self, function: str, mask: int) -> int:
        self.told.append((function, mask))
        return self.error


def test_allowed() -> None:
    kernel, user = Told(), Told()
    start = {"f": mask(["original"]), "g": mask(["original"])}
    allowed = Allowed(start, {"f"}, kernel, user)  # type: ignore[arg-type]
    step = {"during": ["original", "livepatch-a"], "after": {"f": ["livepatch-a"]}}
    allowed.step({}, "during", ["f"])
    allowed.step(step, "during", ["f", "g"])
    both, new = mask(["original", "livepatch-a"]), mask(["livepatch-a"])
    assert user.told == [("f", both), ("g", both)]
    assert kernel.told == [("f", both)]
    allowed.step(step, "after", ["f", "g"])
    assert user.told[2:] == [("f", new)]
    # What holds already needs no word; what was refused leaves all as before.
    allowed.step(step, "after", ["f", "g"])
    allowed.step(step, "during", ["f", "g"])
    allowed.step(step, None, ["f", "g"])
    assert user.told[3:] == [("f", both), ("f", new)]
    kernel.error = errno.ETIMEDOUT
    with pytest.raises(OSError, match="the hammers of f go on as before"):
        allowed.step(step, "during", ["f"])
