# SPDX-License-Identifier: GPL-2.0-only
"""Hammers in user space and stirrers, as far as they need no kernel of their own."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.agent import abi, userhammers
from harness.agent.stir import Allowed, told
from harness.agent.stirrers import Op, Stirrer, Work, pauses
from harness.agent.userhammers import Judged, Tally, Texts, UserHammers, mask
from harness.scenario.functions import FUNCTIONS

LIVEPATCH = abi.TAG_LIVEPATCH
ORIGINAL = abi.TAG_ORIGINAL
TABLE = {name: dataclasses.asdict(function) for name, function in FUNCTIONS.items()}


# --- judging one call -----------------------------------------------------------------------


def test_masks() -> None:
    assert mask([]) == 0
    assert mask(["original"]) == 1 << ORIGINAL
    assert mask(["livepatch-b", "original"]) == 1 << ORIGINAL | 1 << (LIVEPATCH + 1)
    assert mask(["monotonic", "ipmodify-7"]) == 1 << 63 | 1 << (abi.TAG_IPMODIFY + 7)
    with pytest.raises(ValueError, match="no such body: livepatch-e"):
        mask(["livepatch-a", "livepatch-e"])


def test_texts() -> None:
    texts = Texts()
    assert texts.judge(b"cohabit: livepatch-a\n") == (LIVEPATCH, None)
    assert texts.judge(b"root=/dev/vda quiet\n") == (ORIGINAL, None)
    assert texts.judge(b"root=/dev/vda quiet\n") == (ORIGINAL, None)
    # Another original, half of one, or of a body nobody has.
    for text in (b"root=/dev/vdb quiet\n", b"root=/dev", b"cohabit: livepatch-a", b"cohabit: x\n"):
        assert texts.judge(text) == (None, abi.WRONG_RESULT)
    assert texts.judge(b"") == (None, abi.WRONG_NONE)
    both = b"cohabit: livepatch-b\nroot=/dev/vda quiet\n"
    assert texts.judge(both) == (LIVEPATCH + 1, abi.WRONG_SEVERAL)
    assert texts.judge(b"cohabit: monotonic\n") == (None, abi.WRONG_RESULT)


def test_errnos() -> None:
    assert userhammers.judged_errno(0) == (ORIGINAL, None)
    assert userhammers.judged_errno(abi.ERRNO_BASE + LIVEPATCH) == (LIVEPATCH, None)
    assert userhammers.judged_errno(errno.ENOMEM) == (None, abi.WRONG_RESULT)
    assert userhammers.judged_errno(abi.ERRNO_BASE + 63) == (None, abi.WRONG_RESULT)


def test_replies() -> None:
    def message(kind: int, error: int) -> bytes:
        return struct.pack("=IHHIIi", 36, kind, 0, 1, 0, error) + bytes(16)

    judge = userhammers.judged_reply
    assert judge(message(16, 0), 16) == (ORIGINAL, None)
    assert judge(message(17, 0), 16) == (None, abi.WRONG_RESULT)
    assert judge(message(2, -(abi.ERRNO_BASE + LIVEPATCH)), 16) == (LIVEPATCH, None)
    assert judge(message(2, -errno.EBUSY), 16) == (None, abi.WRONG_RESULT)
    assert judge(message(2, 0), 16) == (None, abi.WRONG_RESULT)
    assert judge(b"", 16) == (None, abi.WRONG_NONE)
    assert judge(b"short", 16) == (None, abi.WRONG_RESULT)


@pytest.mark.parametrize("name", ["rtnl_getlink", "ctrl_getfamily"])
def test_requests_are_answered_by_this_kernel(name: str) -> None:
    call, judge = userhammers.ways(TABLE[name])
    answers = [call() for _ in range(3)]
    assert [judge(answer) for answer in answers] == [(ORIGINAL, None)] * 3
    # So that the loop has to look at the first one only.
    assert answers[0] == answers[1] == answers[2]


def test_what_user_space_cannot_call() -> None:
    with pytest.raises(ValueError, match="user space can't call cohabit_f1"):
        userhammers.ways(TABLE["cohabit_f1"])


# --- counting -------------------------------------------------------------------------------


class Counted:
    """A tally over memory of its own."""

    def __init__(self, allowed: list[str], fault: str = "") -> None:
        self.words = [0] * userhammers.WORDS
        self.tally = Tally(self.words, fault)
        self.allow(allowed)

    def allow(self, allowed: list[str]) -> None:
        self.words[userhammers.ALLOWED] = mask(allowed)
        self.tally.phase()

    def see(self, *tags: int) -> list[bool]:
        return [self.tally.judge(Judged(tag), b"") for tag in tags]

    @property
    def calls(self) -> int:
        return self.words[userhammers.CALLS]

    @property
    def bodies(self) -> dict[int, int]:
        found = self.words[userhammers.BODIES :][: abi.TAGS]
        return {tag: count for tag, count in enumerate(found) if count}

    @property
    def wrong(self) -> dict[str, int]:
        found = self.words[userhammers.WRONG :][: len(userhammers.WRONGS)]
        return {k: n for k, n in zip(userhammers.WRONGS, found, strict=True) if n}

    def adds_up(self) -> bool:
        unseen = self.wrong.get("none", 0) + self.wrong.get("result", 0)
        return sum(self.bodies.values()) + unseen == self.calls


def test_a_body_that_is_not_allowed() -> None:
    counted = Counted(["livepatch-a"])
    assert counted.see(LIVEPATCH, ORIGINAL, LIVEPATCH) == [True, False, True]
    assert counted.wrong == {"body": 1}
    assert counted.bodies == {LIVEPATCH: 2, ORIGINAL: 1}
    assert (counted.calls, counted.adds_up()) == (3, True)
    assert counted.words[userhammers.FIRST_CALL] == 2


def test_back() -> None:
    seen = (ORIGINAL, ORIGINAL, LIVEPATCH, ORIGINAL, LIVEPATCH, ORIGINAL)
    counted = Counted(["original", "livepatch-a", "monotonic"])
    assert counted.see(*seen) == [True, True, True, False, True, False]
    assert counted.wrong == {"back": 2}
    assert counted.adds_up()
    # With the next phase all is forgotten.
    counted.allow(["original", "livepatch-a", "monotonic"])
    assert counted.see(ORIGINAL, LIVEPATCH) == [True, True]
    # Where nothing says so, it may be as it likes.
    assert Counted(["original", "livepatch-a"]).see(*seen) == [True] * 6


def test_sums_over_all_kinds() -> None:
    chance = random.Random(6)
    for _ in range(20):
        counted = Counted(["original", "livepatch-a"])
        for _ in range(50):
            kind = chance.choice([None, None, *range(len(userhammers.WRONGS))])
            unseen = kind in (abi.WRONG_NONE, abi.WRONG_RESULT)
            tag = None if unseen else chance.choice([ORIGINAL, LIVEPATCH, LIVEPATCH + 1])
            counted.tally.judge(Judged(tag, kind), b"")
        counted.tally.right(ORIGINAL, 7)
        assert counted.calls == 57
        assert counted.adds_up()


def test_a_lost_count() -> None:
    counted = Counted(["original"], "counter")
    assert all(counted.see(*[ORIGINAL] * 2500))
    assert counted.calls == 2500
    assert counted.bodies == {ORIGINAL: 2498}
    assert not counted.adds_up()


def test_a_faulty_body() -> None:
    counted = Counted(["original"], "body")
    assert counted.see(*[ORIGINAL] * 2500).count(False) == 2
    assert counted.wrong == {"body": 2}
    assert counted.adds_up()


def test_the_first_wrong_call_is_kept() -> None:
    process = userhammers._Process("cmdline_proc_show", 3, "user")
    tally = Tally(process.words)
    tally.judge(Judged(None, abi.WRONG_RESULT), b"r\xc3\xa4tsel\xff")
    tally.judge(Judged(None, abi.WRONG_NONE), b"")
    first = process.result()["first"]
    assert 0 < time.monotonic() - first.pop("t") < 5
    assert first == {"cpu": 3, "call": 1, "kind": "result", "seen": "rätsel\\xff", "stack": []}
    tally = Tally(process.words)
    userhammers.note(process.words, abi.WRONG_BODY, b"x" * 10000)
    assert set(process.result()["first"]["seen"]) == {"x"}
    # What follows in memory is nobody's, and there is none of it.
    assert userhammers.TEXT * 8 + len(process.result()["first"]["seen"]) == userhammers.WORDS * 8


def test_hammers_as_the_result_has_them() -> None:
    thread = {
        "function": "cohabit_hot", "cpu": 1, "calls": 7, "bodies": {1: 4, 2: 2},
        "wrong": [1, 0, 0, 1, 0, 0],
        "first": {
            "kind": 0, "call": 3, "ns": 1_500_000_000, "result": 1 << 32 | 0xBEEF, "cpu": 0,
            "stack": ["a+0x1/0x2"],
        },
    }  # fmt: skip
    assert told(thread, "kernel") == {
        "function": "cohabit_hot", "by": "kernel", "cpu": 1, "calls": 7,
        "bodies": {"original": 4, "livepatch-a": 2}, "wrong": {"body": 1, "none": 1},
        "first": {
            "t": 1.5, "cpu": 0, "call": 3, "kind": "body", "seen": "original, 0xbeef",
            "stack": ["a+0x1/0x2"],
        },
    }  # fmt: skip


# --- processes ------------------------------------------------------------------------------


@pytest.fixture
def hammers() -> Iterator[UserHammers]:
    made = UserHammers()
    yield made
    made.stop()
    assert all(process.ended() for process in made._processes)


def of_cmdline(path: Path) -> dict[str, Any]:
    return {**TABLE["cmdline_proc_show"], "path": str(path)}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def calls(hammers: UserHammers) -> list[int]:
    return [found["calls"] for found in hammers.read()]


def test_processes_count_and_end(hammers: UserHammers, tmp_path: Path) -> None:
    """Each on its CPU; what they may see changes while they run, and not one call is amiss."""
    path = tmp_path / "text"
    path.write_bytes(b"cohabit: livepatch-a\n")
    hammers.start(of_cmdline(path), mask(["livepatch-a"]))
    cpus = sorted(os.sched_getaffinity(0))
    for process in hammers._processes:
        wait_for(lambda process=process: os.sched_getaffinity(process.pid) == {process.cpu})
    wait_for(lambda: min(calls(hammers)) > 1000)
    other = tmp_path / "other"
    for body in ("livepatch-b", "original", "livepatch-a") * 3:
        text = b"as ever\n" if body == "original" else b"cohabit: %s\n" % body.encode()
        assert hammers.allow("cmdline_proc_show", mask([*userhammers.TAG_OF][:-1])) == 0
        # Equally long for none, but in one piece: whoever reads has one or the other.
        other.write_bytes(text.ljust(32)[:-1] + b"\n" if body == "original" else text)
        with path.open("r+b") as file:
            file.write(other.read_bytes())
            file.truncate()
        assert hammers.allow("cmdline_proc_show", mask([body])) == 0
    assert hammers.stop() == []
    found = hammers.read()
    assert [f["cpu"] for f in found] == cpus
    for one in found:
        unseen = one["wrong"][abi.WRONG_NONE] + one["wrong"][abi.WRONG_RESULT]
        assert sum(one["bodies"].values()) + unseen == one["calls"] > 1000
        # Between a write and the cut a text may be read that is none; a body of before never.
        assert one["wrong"][abi.WRONG_BODY] == one["wrong"][abi.WRONG_BACK] == 0
        assert "failed" not in one


def test_a_process_that_is_gone_is_told(hammers: UserHammers, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"as ever\n")
    hammers.start(of_cmdline(path), mask(["original"]))
    wait_for(lambda: min(calls(hammers)) > 0)
    os.kill(hammers._processes[0].pid, signal.SIGKILL)
    assert hammers.allow("cmdline_proc_show", mask(["original"])) == errno.ETIMEDOUT
    assert hammers.stop() == []
    assert hammers.read()[0]["failed"] == "the process ended with status 0x9"


def test_a_process_that_cannot_begin(hammers: UserHammers, tmp_path: Path) -> None:
    hammers.start(of_cmdline(tmp_path / "nothing"), mask(["original"]))
    assert hammers.stop() == []
    for found in hammers.read():
        assert found["calls"] == 0
        assert found["failed"].startswith("FileNotFoundError: ")


def test_a_stalled_cpu(hammers: UserHammers, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"as ever\n")
    hammers.start(of_cmdline(path), mask(["original"]), "stall")
    wait_for(lambda: len(calls(hammers)) == 1 or min(calls(hammers)[:-1]) > 0)
    assert hammers.allow("cmdline_proc_show", mask(["original"])) == 0
    hammers.stop()
    assert calls(hammers)[-1] == 0


def test_processes_keep_nothing_open(hammers: UserHammers, tmp_path: Path) -> None:
    """A link that the agent closes has to go, and a module to be unloaded."""
    path = tmp_path / "text"
    path.write_bytes(b"as ever\n")
    ours, theirs = socket.socketpair()
    hammers.start(of_cmdline(path), mask(["original"]))
    wait_for(lambda: min(calls(hammers)) > 0)
    theirs.close()
    ours.settimeout(20)
    assert ours.recv(1) == b""
    ours.close()


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
