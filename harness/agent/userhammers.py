# SPDX-License-Identifier: GPL-2.0-only
"""Hammers in user space: processes that make the kernel call a function, over and over.

One process a CPU and function, forked from the agent.  What it counts lies in memory that
it shares with the agent; there is nothing else between the two while it runs.  What its
counters mean is the same as of the kernel's own hammers (kmods/cohabit_abi.h: struct
cohabit_hammered), but for the arguments, which nobody sees from here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import signal
import socket
import struct
import time
import warnings
from typing import Any, Callable, NamedTuple, Optional

from . import abi, system
from .calls import TEXT_PREFIX
from .forked import Forked

#: In the order of enum cohabit_wrong.
WRONGS = ("body", "back", "args", "none", "several", "result")
#: In a set of allowed tags: a thread that has seen another body never sees this one again,
#: until the next set.
MONOTONIC = "monotonic"
#: Tags by the names of the bodies.
TAG_OF = {abi.body_of_tag(tag): tag for tag in range(abi.ALLOW_MONOTONIC)}
TAG_OF[MONOTONIC] = abi.ALLOW_MONOTONIC

#: Where things are in the memory of a process, in words of 64 bits.
GENERATION, ALLOWED, SEEN, CALLS, FIRST_KIND, FIRST_CALL, FIRST_NS, TEXT_LEN = range(8)
WRONG = 8
BODIES = 16
TEXT = BODIES + abi.TAGS
WORDS = 128
_TEXT_SIZE = (WORDS - TEXT) * 8
#: Instead of a generation: the process has to end.
STOP = (1 << 64) - 1
#: In place of a kind: it could not even begin.
_FAILED = 1 << 32

#: Equal calls that are counted at once.
BATCH = 32
#: A deliberate fault happens once in so many calls (kmods/hammer.c).
FAULT_EVERY = 1000
#: Seconds that a process has for ending, or for taking over what is allowed.
PATIENCE = 10.0
#: The priority: stirrers and the kernel's own hammers come first.
_NICE = 10

_PREFIX = TEXT_PREFIX.encode()
_PR_SET_PDEATHSIG = 1

# include/uapi/linux/netlink.h, rtnetlink.h, if_link.h, genetlink.h
_NLMSG = struct.Struct("=IHHII")
_NLM_F_REQUEST, _NLMSG_ERROR = 1, 2
_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS = 29, 8
_GENL_ID_CTRL, _CTRL_CMD_NEWFAMILY, _CTRL_CMD_GETFAMILY = 16, 1, 3
_CTRL_ATTR_FAMILY_ID = 1


class Judged(NamedTuple):
    """What a call showed: the tag of a body, or the kind of what is wrong with it, or both."""

    tag: Optional[int]
    kind: Optional[int] = None


def mask(bodies: list[str]) -> int:
    """A set of bodies, by their names, as the kernel has it; ``monotonic`` is one of them.

    Raises ValueError for a name that no body has.
    """
    unknown = [body for body in bodies if body not in TAG_OF]
    if unknown:
        raise ValueError("no such body: %s" % ", ".join(unknown))
    return sum(1 << tag for tag in {TAG_OF[body] for body in bodies})


class Texts:
    """Tells bodies from what a /proc file gave; all of the original's texts are equal."""

    def __init__(self) -> None:
        self._original = b""

    def judge(self, text: bytes) -> Judged:
        """See Judged."""
        if not text:
            return Judged(None, abi.WRONG_NONE)
        tags = [self._tag(line) for line in text.splitlines(True)]
        if None in tags:
            return Judged(None, abi.WRONG_RESULT)
        return Judged(tags[0], abi.WRONG_SEVERAL if len(tags) > 1 else None)

    def _tag(self, line: bytes) -> Optional[int]:
        if line.startswith(_PREFIX) and line.endswith(b"\n"):
            tag = TAG_OF.get(line[len(_PREFIX) : -1].decode("utf-8", "replace"))
            return None if tag == abi.ALLOW_MONOTONIC else tag
        self._original = self._original or line
        return abi.TAG_ORIGINAL if line == self._original and line.endswith(b"\n") else None


def judged_errno(error: int) -> Judged:
    """A body by the positive errno that it gave; 0: the original."""
    if error == 0:
        return Judged(abi.TAG_ORIGINAL)
    tag = error - abi.ERRNO_BASE
    return Judged(tag) if 0 < tag < abi.ALLOW_MONOTONIC else Judged(None, abi.WRONG_RESULT)


def judged_reply(reply: bytes, wanted: int) -> Judged:
    """A body by a netlink message; ``wanted``: the type of the original's."""
    if not reply:
        return Judged(None, abi.WRONG_NONE)
    if len(reply) < _NLMSG.size + 4:
        return Judged(None, abi.WRONG_RESULT)
    _, kind, *_ = _NLMSG.unpack_from(reply)
    if kind == _NLMSG_ERROR:
        (error,) = struct.unpack_from("=i", reply, _NLMSG.size)
        # No acknowledgement was asked for.
        return judged_errno(-error) if error < 0 else Judged(None, abi.WRONG_RESULT)
    return Judged(abi.TAG_ORIGINAL) if kind == wanted else Judged(None, abi.WRONG_RESULT)


def link_request(index: int) -> bytes:
    """RTM_GETLINK of one interface, without statistics: they would not always be equal."""
    body = struct.pack("=BBHiII", 0, 0, 0, index, 0, 0)
    body += struct.pack("=HHI", 8, _IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    return _NLMSG.pack(_NLMSG.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST, 1, 0) + body


def family_request() -> bytes:
    """CTRL_CMD_GETFAMILY of the controller itself."""
    body = struct.pack("=BBH", _CTRL_CMD_GETFAMILY, 1, 0)
    body += struct.pack("=HHHH", 6, _CTRL_ATTR_FAMILY_ID, _GENL_ID_CTRL, 0)
    return _NLMSG.pack(_NLMSG.size + len(body), _GENL_ID_CTRL, _NLM_F_REQUEST, 1, 0) + body


class Tally:
    """The counters of one process, and what it may see now; ``words``: its memory."""

    def __init__(self, words: Any, fault: str = "") -> None:
        self._words = words
        self._fault = fault
        self._allowed = 0
        self._now: Optional[int] = None
        self._gone: set[int] = set()

    def phase(self) -> None:
        """Takes over what is allowed from now on."""
        self._allowed = int(self._words[ALLOWED])
        self._now = None
        self._gone.clear()

    def right(self, tag: int, times: int) -> None:
        """Counts calls that are as the last one, which was right."""
        self._words[CALLS] += times
        self._words[BODIES + tag] += times

    def judge(self, judged: Judged, answer: object) -> bool:
        """Counts one call; whether it was right."""
        tag, kind = judged
        words = self._words
        fault = self._fault if words[CALLS] % FAULT_EVERY == FAULT_EVERY - 1 else ""
        if tag is not None:
            if kind is None:
                kind = abi.WRONG_BODY if fault == "body" else self._looked_at(tag)
            words[BODIES + tag] += 0 if fault == "counter" else 1
        words[CALLS] += 1
        if kind is None:
            return True
        words[WRONG + kind] += 1
        if not words[FIRST_KIND]:
            note(words, kind, answer)
        return False

    def _looked_at(self, tag: int) -> Optional[int]:
        """The kind of what is wrong with that body now."""
        if not self._allowed >> tag & 1:
            return abi.WRONG_BODY
        if self._allowed >> abi.ALLOW_MONOTONIC & 1:
            if tag in self._gone:
                return abi.WRONG_BACK
            if self._now is not None and tag != self._now:
                self._gone.add(self._now)
            self._now = tag
        return None


def note(words: Any, kind: int, answer: object) -> None:
    """Keeps the first wrong call."""
    text = answer if isinstance(answer, bytes) else ("errno %s" % answer).encode()
    text = text[:_TEXT_SIZE]
    for number in range(0, len(text), 8):
        word = text[number : number + 8].ljust(8, b"\0")
        words[TEXT + number // 8] = int.from_bytes(word, "little")
    words[TEXT_LEN] = len(text)
    words[FIRST_NS] = time.monotonic_ns()
    words[FIRST_CALL] = words[CALLS]
    words[FIRST_KIND] = kind + 1


def hammer(words: Any, call: Callable[[], Any], judge: Callable[[Any], Judged], fault: str) -> None:
    """The loop of a process, until it is told to stop."""
    tally = Tally(words, fault)
    usual: Any = None
    tag, same, generation = 0, 0, 0
    while True:
        if words[GENERATION] != generation:
            if same:
                tally.right(tag, same)
            same, usual = 0, None
            generation = words[GENERATION]
            if generation == STOP:
                return
            # A lock is released and taken in this: what was written before the generation
            # is seen.
            time.sleep(0)
            tally.phase()
            words[SEEN] = generation
        answer = call()
        if answer == usual:
            same += 1
            if same == BATCH:
                tally.right(tag, same)
                same = 0
                # RCU tasks' grace periods wait until each task has given way (see links.py).
                os.sched_yield()
            continue
        if same:
            tally.right(tag, same)
            same = 0
        judged = judge(answer)
        usual = None
        # A faulty one looks at each call.
        if tally.judge(judged, answer) and judged.tag is not None and not fault:
            usual, tag = answer, judged.tag


def ways(function: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[Any], Judged]]:
    """How to call a function of the table once, and how to tell what the call showed.

    Raises ValueError for one that user space can't reach, OSError where that fails.
    """
    trigger = function["trigger"]
    if trigger == "read":
        fd = os.open(function["path"], os.O_RDONLY | os.O_CLOEXEC)
        return lambda: os.pread(fd, 4096, 0), Texts().judge
    if trigger == "getpgid":
        pid = os.getpid()

        def getpgid() -> int:
            try:
                # kernel/sys.c: do_getpgid asks the security module only for a pid other than 0.
                os.getpgid(pid)
            except OSError as error:
                return error.errno or errno.EIO
            return 0

        return getpgid, judged_errno
    if trigger not in ("rtnl_getlink", "ctrl_getfamily"):
        raise ValueError("user space can't call %s" % function["name"])
    route = trigger == "rtnl_getlink"
    family = socket.NETLINK_ROUTE if route else 16  # NETLINK_GENERIC
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
    sock.bind((0, 0))
    request = link_request(1) if route else family_request()
    wanted = _RTM_NEWLINK if route else _GENL_ID_CTRL

    def ask() -> bytes:
        sock.send(request)
        try:
            # The kernel answers before send() returns, or not at all.
            return sock.recv(8192, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    return ask, lambda reply: judged_reply(reply, wanted)


def _close_inherited() -> None:
    """Whatever the agent has open: links that it closes are to go, modules to be unloaded."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _child(
    words: Any, function: dict[str, Any], cpu: int, fault: str, parent: int, forks: bool
) -> None:
    """What the process does; never returns."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Nothing of the agent's is to be torn down here.
        gc.disable()
        _close_inherited()
        os.sched_setaffinity(0, {cpu})
        os.nice(_NICE)
        call, judge = ways(function)
        if forks:
            call = Forked(call)
        if fault == "stall":
            while words[GENERATION] != STOP:
                words[SEEN] = words[GENERATION]
                time.sleep(system.POLL)
        else:
            hammer(words, call, judge, fault)
        if isinstance(call, Forked):
            call.close()
        os._exit(0)
    except BaseException as error:
        note(words, _FAILED, ("%s: %s" % (type(error).__name__, error)).encode())
    finally:
        os._exit(1)


class _Process:
    """One of them, as the agent sees it."""

    def __init__(self, function: str, cpu: int, by: str) -> None:
        self.function = function
        self.cpu = cpu
        self.by = by
        self.words: Any = memoryview(mmap.mmap(-1, WORDS * 8)).cast("Q")
        self.pid = 0
        #: Its status as waitpid(2) has it, once it has ended.
        self.status: Optional[int] = None

    def ended(self) -> bool:
        """Whether it has; takes its status."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def result(self) -> dict[str, Any]:
        """See UserHammers.read."""
        words = self.words
        kind = int(words[FIRST_KIND]) - 1
        length = int(words[TEXT_LEN])
        raw = b"".join(int(words[TEXT + n]).to_bytes(8, "little") for n in range(-(-length // 8)))
        said = raw[:length].decode("utf-8", "backslashreplace")
        first: Optional[dict[str, Any]] = None
        if 0 <= kind < len(WRONGS):
            first = {
                "t": round(int(words[FIRST_NS]) / 1e9, 6),
                "cpu": self.cpu,
                "call": int(words[FIRST_CALL]),
                "kind": WRONGS[kind],
                "seen": said,
                "stack": [],
            }
        found: dict[str, Any] = {
            "function": self.function,
            "by": self.by,
            "cpu": self.cpu,
            "calls": int(words[CALLS]),
            "bodies": {t: int(words[BODIES + t]) for t in range(abi.TAGS) if words[BODIES + t]},
            "wrong": [int(words[WRONG + n]) for n in range(len(WRONGS))],
            "first": first,
        }
        if kind >= len(WRONGS):
            found["failed"] = said
        elif self.status:
            found["failed"] = "the process ended with status %#x" % self.status
        return found


class UserHammers:
    """All processes; start them before any thread that may hold a lock."""

    def __init__(self) -> None:
        self._processes: list[_Process] = []
        self._generation = 0

    def start(
        self, function: dict[str, Any], allowed: int, fault: str = "", by: str = "user"
    ) -> None:
        """Starts one process on each CPU, for a function of the table; ``by`` ``fork``: one
        that forks another for each call.

        ``allowed``: what it may see, as ``mask`` has it; ``fault``: what one of them does
        wrong on purpose (``body``, ``counter``, ``stall``).  Raises OSError.
        """
        parent = os.getpid()
        self._generation += 1
        cpus = sorted(os.sched_getaffinity(0))
        for cpu in cpus:
            process = _Process(function["name"], cpu, by)
            process.words[ALLOWED] = allowed
            process.words[GENERATION] = self._generation
            # As the kernel's: the last one stalls, the first one miscounts.
            wrong = fault if cpu == cpus[-1 if fault == "stall" else 0] else ""
            with warnings.catch_warnings():
                # Threads of the agent that wait in the kernel don't matter to the child.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.pid = os.fork()
            if process.pid == 0:
                _child(process.words, function, cpu, wrong, parent, by == "fork")
            self._processes.append(process)

    def allow(self, function: str, allowed: int, patience: float = PATIENCE) -> int:
        """Sets what calls may see from now on; the errno.

        Returns when each of the function's processes has begun a call after that, or
        ETIMEDOUT after ``patience`` seconds.
        """
        mine = [p for p in self._processes if p.function == function]
        self._generation += 1
        generation = self._generation
        for process in mine:
            process.words[ALLOWED] = allowed
        # See hammer().
        time.sleep(0)
        for process in mine:
            process.words[GENERATION] = generation
        deadline = time.monotonic() + patience
        for process in mine:
            while process.words[SEEN] != generation:
                if process.ended() or time.monotonic() > deadline:
                    return errno.ETIMEDOUT
                time.sleep(0.001)
        return 0

    def read(self) -> list[dict[str, Any]]:
        """Of each process: ``function``, ``by``, ``cpu``, ``calls``, ``bodies`` (by tag), ``wrong``
        (by kind, in the order of WRONGS), ``first``: the first wrong call or None, and
        ``failed``, in words, where it did not end by itself.
        """
        return [process.result() for process in self._processes]

    def stop(self) -> list[str]:
        """Ends all of them; words for what would not end."""
        for process in self._processes:
            process.words[GENERATION] = STOP
        self._wait(PATIENCE)
        for process in self._processes:
            if not process.ended():
                os.kill(process.pid, signal.SIGKILL)
        self._wait(PATIENCE)
        return [
            "process %d on CPU %d, which calls %s, does not end" % (p.pid, p.cpu, p.function)
            for p in self._processes
            if not p.ended()
        ]

    def _wait(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        system.wait(lambda: all(p.ended() for p in self._processes), deadline)
