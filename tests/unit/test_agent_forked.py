# SPDX-License-Identifier: GPL-2.0-only
"""Calls in forked processes: that they are made there, and that no process is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from harness.agent import forked
from harness.agent.forked import Forked


def children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(word) for word in text.split()]


def test_each_call_is_in_a_process_of_its_own() -> None:
    before = set(children())
    call = Forked(os.getpid)
    pids = [call() for _ in range(40)]
    assert len(set(pids)) == 40
    assert os.getpid() not in pids
    # Some stay, and call no more.
    staying = set(children()) - before
    assert staying == {pids[15], pids[31]}
    call.close()
    assert set(children()) == before


def test_as_many_stay_as_are_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "OF_WHICH_ONE_STAYS", 1)
    monkeypatch.setattr(forked, "STAYING", 3)
    before = set(children())
    call = Forked(os.getpid)
    pids = [call() for _ in range(8)]
    assert set(children()) - before == set(pids[-3:])
    call.close()


def test_texts_and_numbers() -> None:
    text = Path("/proc/version").read_bytes()
    fd = os.open("/proc/version", os.O_RDONLY)
    read = Forked(lambda: os.pread(fd, 4096, 0))
    assert [read() for _ in range(3)] == [text] * 3
    os.close(fd)
    read.close()
    for answer in (b"", b"x" * 4096, 0, errno.EPERM):
        call = Forked(lambda answer=answer: answer)
        assert call() == answer
        call.close()


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "_PATIENCE", 0.2)
    call = Forked(lambda: 1 // 0)
    with pytest.raises(ChildProcessError):
        call()
    call.close()
    assert not children()
