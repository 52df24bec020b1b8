# SPDX-License-Identifier: GPL-2.0-only
"""Hammers in user space, as far as they need no kernel of their own."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for

from harness.agent import abi, userhammers
from harness.agent.stir import told
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
