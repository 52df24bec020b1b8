# SPDX-License-Identifier: GPL-2.0-only
"""Runs in a guest, beside the agent: hammers do what they can, and JSON says what came of it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, "/cohabit")

from agent import abi, system
from agent.hammers import Hammers, mask
from agent.livepatch import in_transition

HOT, READ, PATH = "cohabit_hot", "cmdline_proc_show", "/proc/cmdline"
ORIGINAL = mask([abi.TAG_ORIGINAL])
PATCHED = mask([abi.TAG_LIVEPATCH])
EITHER = mask([abi.TAG_ORIGINAL, abi.TAG_LIVEPATCH], monotonic=True)
#: All kinds of attachers that may share a function, by number, with their flags.
KINDS = {
    "ops": (abi.KIND_OPS, 0),
    "direct": (abi.KIND_DIRECT, 0),
    "kprobe": (abi.KIND_KPROBE, 0),
    "kretprobe": (abi.KIND_KRETPROBE, 0),
    "fprobe": (abi.KIND_FPROBE, 0),
    "fprobe-exit": (abi.KIND_FPROBE, abi.F_EXIT),
}
#: Wait at most so long for anything, in seconds.
PATIENCE = 120.0


def request(fd: int, number: int, argument: Any) -> int:
    try:
        fcntl.ioctl(fd, number, argument)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


class Guest:
    def __init__(self) -> None:
        for name in ("cohabit", "cohabit_funcs"):
            if not system.module_loaded(name):
                error = system.load_module(system.kmod(name))
                assert error == 0, (name, error)
        self.fd = os.open("/dev/cohabit", os.O_RDWR)
        self.hammers = Hammers(self.fd)

    def attach(self, kind: int, slot: int, function: str, flags: int = 0) -> int:
        names = abi.names([function])
        address = ctypes.addressof(names)
        argument = abi.Attach(kind=kind, slot=slot, flags=flags, nr=1, names=address)
        return request(self.fd, abi.IOC_ATTACH, argument)

    def detach(self, kind: int, slot: int) -> int:
        return request(self.fd, abi.IOC_DETACH, abi.Attach(kind=kind, slot=slot))

    def stats(self) -> list[Any]:
        room = (abi.Stat * 64)()
        stats = abi.Stats(stats=ctypes.addressof(room), nr=64)
        assert request(self.fd, abi.IOC_STATS, stats) == 0
        return [room[index] for index in range(stats.nr)]

    def start(self, function: str, allowed: int = ORIGINAL, fault: int = 0) -> None:
        error = self.hammers.start(function, PATH if function == READ else "", allowed, fault)
        assert error == 0, (function, error)

    def wait_for_calls(self, calls: int, idle: int = 0) -> None:
        """Until each thread but ``idle`` has made so many more calls."""
        before = [thread["calls"] for thread in self.hammers.read(False)]

        def enough() -> bool:
            now = [thread["calls"] for thread in self.hammers.read(False)]
            behind = [n for n, b in zip(now, before, strict=True) if n - b < calls]
            return len(behind) <= idle

        assert system.wait(enough, time.monotonic() + PATIENCE), "the hammers do not call"

    def stop(self) -> list[dict[str, Any]]:
        return self.hammers.read(True)


def rates(guest: Guest) -> dict[str, Any]:
    """Both ways of calling, nothing attached."""
    result: dict[str, Any] = {}
    for function in (HOT, READ):
        guest.start(function)
        again = guest.hammers.start(function, PATH, ORIGINAL, 0)
        guest.wait_for_calls(1000)
        before, began = guest.hammers.read(False), time.monotonic()
        guest.wait_for_calls(100_000)
        after, seconds = guest.hammers.read(False), time.monotonic() - began
        more = [a["calls"] - b["calls"] for a, b in zip(after, before, strict=True)]
        rate = [round(calls / seconds) for calls in more]
        result[function] = {"again": again, "rate": rate, "threads": guest.stop()}
        result["left"] = guest.stop()
    return result


def refused(guest: Guest) -> dict[str, int]:
    """What is no hammer."""
    start = guest.hammers.start
    return {
        "unknown": start("cohabit_f1", "", ORIGINAL, 0),
        "no file": start("nothing", "/proc/nothing", ORIGINAL, 0),
        "fault": start(HOT, "", ORIGINAL, 4),
        "allow": guest.hammers.allow(HOT, ORIGINAL),
    }


def faults(guest: Guest) -> dict[str, Any]:
    """Each deliberate fault, with both ways of calling at once."""
    result = {}
    for name, fault in (
        ("body", abi.FAULT_BODY), ("counter", abi.FAULT_COUNTER), ("stall", abi.FAULT_STALL)
    ):  # fmt: skip
        guest.start(HOT, fault=fault)
        guest.start(READ, fault=fault)
        guest.wait_for_calls(5000, idle=2 if name == "stall" else 0)
        allowed = guest.hammers.allow(HOT, ORIGINAL)
        result[name] = {"threads": guest.stop(), "allow": allowed}
    return result


def bodies(guest: Guest) -> dict[str, Any]:
    """Bodies that are right, wrong, and seen again."""
    result = {}
    other = mask([abi.TAG_IPMODIFY])
    for name, allowed in (
        ("right", ORIGINAL | other), ("wrong", ORIGINAL),
        ("back", mask([abi.TAG_ORIGINAL, abi.TAG_IPMODIFY], monotonic=True)),
    ):  # fmt: skip
        for function in (HOT, READ):
            guest.start(function, allowed)
        guest.wait_for_calls(1000)
        for function, slot in ((HOT, 0), (READ, 0)):
            assert guest.attach(abi.KIND_IPMODIFY, slot, function) == 0
            guest.wait_for_calls(1000)
            assert guest.detach(abi.KIND_IPMODIFY, slot) == 0
            guest.wait_for_calls(1000)
        result[name] = guest.stop()
    return result


def livepatch(guest: Guest) -> dict[str, Any]:
    """A livepatch comes and goes under the hammers; what is allowed follows it.

    Empty where the kernel has no livepatches.
    """
    if not Path(system.kmod("cohabit_klp_a")).exists():
        return {}
    deadline = time.monotonic() + PATIENCE
    guest.start(HOT)
    guest.wait_for_calls(1000)
    errors = [guest.hammers.allow(HOT, EITHER)]
    params = f"funcs={HOT},{READ}"
    enabled = Path("/sys/kernel/livepatch/cohabit_klp_a/enabled")
    errors.append(system.load_module(system.kmod("cohabit_klp_a"), params))
    done = system.wait(lambda: not in_transition(), deadline)
    errors.append(guest.hammers.allow(HOT, PATCHED))
    guest.start(READ, PATCHED)
    guest.wait_for_calls(1000)
    # What the call site leads to changes each time.
    for _ in range(3):
        for function in (HOT, READ):
            errors += [guest.attach(abi.KIND_OPS, 0, function), guest.detach(abi.KIND_OPS, 0)]
    there = guest.stop()
    guest.start(HOT, PATCHED)
    guest.wait_for_calls(1000)
    errors.append(guest.hammers.allow(HOT, EITHER))
    errors.append(system.write(str(enabled), "0"))
    gone = system.wait(lambda: not enabled.exists(), deadline)
    errors.append(guest.hammers.allow(HOT, ORIGINAL))
    guest.wait_for_calls(1000)
    threads = guest.stop()
    errors.append(system.unload_module("cohabit_klp_a", deadline))
    return {"errors": errors, "done": done, "gone": gone, "there": there, "threads": threads}


def exact(guest: Guest) -> dict[str, Any]:
    """What attachments count, of the calls of threads on several CPUs."""
    errors = {}
    for slot, (name, (kind, flags)) in enumerate(KINDS.items()):
        errors[name] = guest.attach(kind, slot, HOT, flags)
    guest.start(HOT)
    guest.wait_for_calls(5000)
    modified = request(guest.fd, abi.IOC_MODIFY, abi.Modify(slot=1, alternate=1))
    guest.wait_for_calls(5000)
    calls = sum(thread["calls"] for thread in guest.stop())
    seen = {}
    for stat in guest.stats():
        name = list(KINDS)[stat.slot]
        seen[name] = [stat.hits, stat.others, stat.misses, list(stat.through)]
    detached = [guest.detach(kind, slot) for slot, (kind, _) in enumerate(KINDS.values())]
    return {
        "errors": errors, "detached": detached, "calls": calls, "seen": seen, "modified": modified,
    }  # fmt: skip


def window(guest: Guest) -> dict[str, Any]:
    """The call site is patched while it is looked at, with and without a wait."""
    guest.start(HOT)
    result: dict[str, Any] = {}
    for name, delay in (("counted", 0), ("widened", 2000)):
        text = guest.hammers.text(HOT)
        on = guest.hammers.window(HOT, delay, True)
        twice = guest.hammers.window(HOT, delay, True)
        texts = []
        for _ in range(3):
            attached = guest.attach(abi.KIND_OPS, 0, HOT)
            texts.append(guest.hammers.text(HOT) != text)
            detached = guest.detach(abi.KIND_OPS, 0)
            texts.append(guest.hammers.text(HOT) == text)
            # Somewhere else.
            guest.attach(abi.KIND_OPS, 0, READ)
            guest.detach(abi.KIND_OPS, 0)
            assert attached == detached == 0
        seen = guest.hammers.windowed() if not on else {}
        off = guest.hammers.window(HOT, 0, False)
        result[name] = {
            "on": on, "twice": twice, "off": off, "seen": seen, "texts": texts, "delay": delay,
            "nowhere": guest.hammers.text("cohabit_nothing") is None,
        }  # fmt: skip
    result["threads"] = guest.stop()
    return result


def pinned(guest: Guest) -> dict[str, Any]:
    """Hammers go on when nobody has the device open, and keep both modules."""
    guest.start(HOT)
    os.close(guest.fd)
    deadline = time.monotonic()
    errors = [system.unload_module(name, deadline) for name in ("cohabit", "cohabit_funcs")]
    guest.fd = os.open("/dev/cohabit", os.O_RDWR)
    guest.hammers = Hammers(guest.fd)
    guest.wait_for_calls(1000)
    threads = guest.stop()
    os.close(guest.fd)
    deadline = time.monotonic() + PATIENCE
    gone = [system.unload_module(name, deadline) for name in ("cohabit", "cohabit_funcs")]
    return {"kept": errors, "gone": gone, "threads": threads}


def races(guest: Guest) -> dict[str, Any]:
    """Attachers of several slots at once, while somebody reads all counters."""
    failed: list[Any] = []
    rounds: dict[str, int] = {}
    over = threading.Event()

    def again(name: str, slot: int, kind: int, flags: int) -> None:
        while not over.is_set():
            for error in (guest.attach(kind, slot, HOT, flags), guest.detach(kind, slot)):
                if error:
                    failed.append([name, error])
                    return
            rounds[name] = rounds.get(name, 0) + 1

    def look() -> None:
        while not over.is_set():
            for stat in guest.stats():
                if stat.slot >= len(KINDS) or stat.index:
                    failed.append(["stats", stat.kind, stat.slot, stat.index])
            rounds["stats"] = rounds.get("stats", 0) + 1

    guest.start(HOT)
    threads = [
        threading.Thread(target=again, args=(name, slot, kind, flags))
        for slot, (name, (kind, flags)) in enumerate(KINDS.items())
    ]
    threads.append(threading.Thread(target=look))
    for thread in threads:
        thread.start()
    system.wait(
        lambda: bool(failed) or (len(rounds) == len(threads) and min(rounds.values()) >= 2),
        time.monotonic() + PATIENCE,
    )
    over.set()
    for thread in threads:
        thread.join()
    return {"failed": failed, "rounds": rounds, "left": len(guest.stats()), "threads": guest.stop()}


PARTS: list[Callable[[Guest], dict[str, Any]]] = [
    refused, rates, faults, bodies, livepatch, exact, window, races, pinned,
]  # fmt: skip


def main(wanted: list[str]) -> None:
    guest = Guest()
    results: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        if not wanted or part.__name__ in wanted:
            began = time.monotonic()
            results[part.__name__] = part(guest)
            results[part.__name__]["seconds"] = time.monotonic() - began
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
