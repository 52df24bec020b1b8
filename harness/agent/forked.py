# SPDX-License-Identifier: GPL-2.0-only
"""Calls that are each made by a process of their own."""

from __future__ import annotations

import collections
import ctypes
import mmap
import os
import signal
import time
from typing import Any, Callable

#: One child of so many stays, and so many stay at a time: seconds, longer than a transition.
OF_WHICH_ONE_STAYS, STAYING = 16, 48
#: Words of 64 bits that a process shares with its children: whether there is an answer (1: a
#: number, 2: a text), its length, and itself.
_WORDS = 514
#: Seconds that a child has for its call.
_PATIENCE = 10.0
_PR_SET_PDEATHSIG = 1


class Forked:
    """Makes each call in a process that is forked for it, and that stays for a while.

    A task is patched like the one that forked it (kernel/livepatch/transition.c:
    klp_copy_process); whether it was is seen when it calls, and by the next transition.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._words: Any = memoryview(mmap.mmap(-1, _WORDS * 8)).cast("Q")
        self._there: collections.deque[int] = collections.deque()
        self._forks = 0

    def __call__(self) -> Any:
        """The answer that the child got; raises ChildProcessError where it got none."""
        words = self._words
        words[0] = 0
        pid = os.fork()
        if pid == 0:
            self._child()
        deadline = time.monotonic() + _PATIENCE
        while not words[0] and time.monotonic() < deadline:
            os.sched_yield()
        self._forks += 1
        if self._forks % OF_WHICH_ONE_STAYS:
            self._end(pid)
        else:
            self._there.append(pid)
        if len(self._there) > STAYING:
            self._end(self._there.popleft())
        if not words[0]:
            raise ChildProcessError("the call that a child makes does not return")
        return self._answer()

    def _child(self) -> None:
        words = self._words
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            answer = self._call()
            raw = answer if isinstance(answer, bytes) else int(answer).to_bytes(8, "little")
            raw = raw[: (_WORDS - 2) * 8]
            for number in range(0, len(raw), 8):
                word = raw[number : number + 8].ljust(8, b"\0")
                words[2 + number // 8] = int.from_bytes(word, "little")
            words[1] = len(raw)
            words[0] = 2 if isinstance(answer, bytes) else 1
            while True:
                signal.pause()
        finally:
            os._exit(1)

    def _answer(self) -> Any:
        words = self._words
        length = int(words[1])
        raw = b"".join(int(words[2 + n]).to_bytes(8, "little") for n in range(-(-length // 8)))
        return raw[:length] if words[0] == 2 else int.from_bytes(raw[:length], "little")

    @staticmethod
    def _end(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def close(self) -> None:
        """Ends all that stay."""
        while self._there:
            self._end(self._there.pop())
