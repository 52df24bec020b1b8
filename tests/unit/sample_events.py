# SPDX-License-Identifier: GPL-2.0-only
"""Runs made up for the tests of the reports: realistic events, no kernel.

A small world stands in for the kernel, so that errnos, flags, bodies and hits
of a scenario agree with each other; TROUBLE says which pairs go wrong and how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]

OLD = "5.10.0-46-cloud-amd64"
NEW = "6.12.117+deb13-cloud-amd64"
ATTACHERS = (
    "livepatch", "direct", "direct-share", "fentry", "fexit", "fmod_ret", "ipmodify", "ops",
    "ops-regs",
)  # fmt: skip
EBUSY = 16
BPF = {"fentry", "fexit", "fmod_ret"}
DIRECT = BPF | {"direct", "direct-share"}

#: (kernel, first, second) to what goes wrong there.
TROUBLE = {
    (OLD, "fmod_ret", "livepatch"): "errno",
    (OLD, "fentry", "ops-regs"): "lost-once",
    (NEW, "livepatch", "fexit"): "body",
    (NEW, "ops", "direct"): "splat",
    (NEW, "ipmodify", "direct-share"): "hang",
    (NEW, "direct-share", "livepatch"): "xfail",
    (NEW, "ops-regs", "fmod_ret"): "lost",
}


@dataclass
class World:
    """One function on one kernel: who is attached, and what that shows."""

    old: bool
    function: str
    attached: dict[str, str] = field(default_factory=dict)
    touched: bool = False

    def attach(self, name: str, kind: str) -> int:
        kinds = set(self.attached.values())
        ip = {"livepatch", "ipmodify"}
        clash = (
            (kind in ip and kinds & ip and {kind, *(kinds & ip)} != {"livepatch"})
            or (kind in DIRECT and kinds & DIRECT and not {kind, *kinds & DIRECT} <= BPF)
            or ({kind} & (ip | DIRECT) and self._no_sharing(kind, kinds))
        )
        if clash:
            return EBUSY
        self.attached[name] = kind
        self.touched = True
        return 0

    def _no_sharing(self, kind: str, kinds: set[str]) -> bool:
        ip, direct = {"livepatch", "ipmodify"}, {"direct"} | (DIRECT if self.old else set())
        return bool((kind in ip and kinds & direct) or (kind in direct and kinds & ip))

    def registry(self) -> Event | None:
        kinds = list(self.attached.values())
        if not kinds:
            return None
        direct = [k for k in kinds if k in DIRECT]
        count = len([k for k in kinds if k not in DIRECT and k != "livepatch"])
        count += ("livepatch" in kinds) + bool(direct)
        letters = set()
        if {"livepatch", "ipmodify"} & set(kinds):
            letters |= {"I", "R"} if self.old else {"I"}
        if direct:
            letters |= {"D", "R"}
        letters |= {"R"} if "ops-regs" in kinds else set()
        letters |= set() if self.old else {"M"}
        symbol = "bpf_trampoline_6442500515" if set(direct) & BPF else "cohabit_tramp_0"
        return {
            "count": count,
            "flags": sorted(letters),
            "direct": symbol if direct else None,
            "jmp": False,
        }

    def text(self) -> str:
        record = self.registry()
        if record is None:
            return ""
        columns = "".join(f" {x}" if x in record["flags"] else "  " for x in "RID")
        columns += "" if self.old else ("   M " if "M" in record["flags"] else "     ")
        line = f"{self.function} ({record['count']}){columns}"
        line += "\ttramp: ftrace_regs_caller+0x0/0x65 (call_direct_funcs+0x0/0x20)"
        return line + (f"\n\tdirect-->{record['direct']}+0x0/0x120" if record["direct"] else "")

    def body(self) -> str:
        kinds = self.attached.values()
        for kind, body in (
            ("fmod_ret", "fmod_ret-a"), ("livepatch", "livepatch-a"), ("ipmodify", "ipmodify-0"),
        ):  # fmt: skip
            if kind in kinds:
                return body
        return "original"

    def witness(self, number: int) -> Event:
        hits = {a: 1 for a, k in self.attached.items() if k not in {"livepatch", "ipmodify"}}
        return {
            "errno": number,
            "registry": {self.function: self.registry()},
            "behaviour": {
                self.function: {"body": self.body(), "hits": hits, "args": "agree", "ret": None}
            },
            "livepatch": {"cohabit_klp_a": {"enabled": 1, "transition": 0}}
            if "livepatch" in self.attached.values()
            else {},
            "sysctl": {"kernel.ftrace_enabled": 1},
        }


class Recorder:
    """Numbers the events and lets the clock run."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.t = 0.0

    def emit(self, type_: str, after: float = 0.01, **keys: Any) -> None:
        self.t = round(self.t + after, 3)
        self.events.append({"seq": len(self.events), "t": self.t, "type": type_, **keys})


class SampleRun:
    """Builds a run; ``events`` is the result."""

    def __init__(
        self,
        kernels: tuple[str, ...] = (OLD, NEW),
        attachers: tuple[str, ...] = ATTACHERS,
        trouble: Mapping[tuple[str, str, str], str] = TROUBLE,
    ) -> None:
        self.rec = Recorder()
        self.kernels, self.attachers, self.trouble = kernels, attachers, trouble
        self.vms = 0
        self.scenarios = 0
        self.vm = ""
        planned = len(kernels) * (len(attachers) ** 2 + 1)
        self.rec.emit(
            "run_start", format=1, cohabit="0.1.0", argv=["cohabit", "run", "pair/*"],
            started="2026-11-21T11:50:00Z", planned=planned,
            host={"system": "Debian GNU/Linux 13 (trixie)", "cpus": 2, "memory_mb": 7950},
        )  # fmt: skip
        for kernel in kernels:
            self._kernel(kernel)

    @property
    def events(self) -> list[Event]:
        return self.rec.events

    def end(self, interrupted: bool = False) -> list[Event]:
        steps = sum(e["type"] == "step_end" for e in self.events)
        self.rec.emit(
            "run_end", counts={}, steps=steps, exit_status=130 if interrupted else 1,
            interrupted=interrupted,
        )  # fmt: skip
        return self.events

    def _kernel(self, kernel: str) -> None:
        old = kernel == OLD
        self.rec.emit(
            "kernel", kernel=kernel, reference=f"debian:{kernel.split('-cloud')[0]}",
            release=kernel, arch="x86_64", origin="Debian package linux-image, signed repository",
            profile="x86-64, separate direct and IPMODIFY" if old else "x86-64, SHARE_IPMODIFY",
            profile_why="release 5.10 < 6.0" if old else "release 6.12 >= 6.0",
        )  # fmt: skip
        self._boot(kernel)
        for first in self.attachers:
            for second in self.attachers:
                what = self.trouble.get((kernel, first, second), "")
                self._pair(kernel, first, second, what.removesuffix("-once"), 1)
                if what in {"lost", "lost-once"}:
                    self.rec.emit("note", level="warning", text=f"{first}+{second}: trying again")
                    self._pair(kernel, first, second, "lost" if what == "lost" else "", 2)
        self._sysctl(kernel)
        self.rec.emit("vm_end", vm=self.vm, reason="done")

    def _boot(self, kernel: str) -> None:
        self.vm = f"vm{self.vms}"
        self.vms += 1
        self.rec.emit(
            "vm_start", vm=self.vm, kernel=kernel, engine="virtme", accel="tcg",
            accel_why="/dev/kvm opens, but no guest booted with it (0.4 s)", qemu="10.0.2",
            cpu="qemu64", cpus=1, memory_mb=1024, command=["qemu-system-x86_64", "-m", "1024"],
        )  # fmt: skip
        facts = {"release": kernel, "arch": "x86_64", "livepatch": True, "btf": True}
        self.rec.emit("vm_ready", after=6.2, vm=self.vm, boot_s=6.2, facts=facts)

    def _end_vm(self, kernel: str, reason: str, verdict: str = "", detail: str = "") -> None:
        trouble: Event = {"verdict": verdict} if verdict else {}
        backtraces = ["task:insmod state:D", " __schedule+0x3a2/0x1430", " schedule+0x27/0xd0"]
        self.rec.emit(
            "vm_end", after=1.0, vm=self.vm, reason=reason, detail=detail,
            console_tail=["[   61.20] cohabit: attach", "[   61.21] \x1b[31mred\x1b[0m <b>"],
            backtraces=backtraces if verdict == "HANG" else [], **trouble,
        )  # fmt: skip
        self._boot(kernel)

    def _start(self, kernel: str, name: str, function: str, steps: list[Event], **keys: Any) -> str:
        scenario = f"s{self.scenarios}"
        self.scenarios += 1
        self.rec.emit(
            "scenario_start", scenario=scenario, name=name, kernel=kernel, vm=self.vm,
            profile=kernel, functions=[function], steps=steps, **{"attempt": 1, **keys},
        )  # fmt: skip
        return scenario

    def _pair(self, kernel: str, first: str, second: str, what: str, attempt: int) -> None:
        function = "security_task_getpgid" if "fmod_ret" in (first, second) else "cmdline_proc_show"
        steps: list[Event] = [
            {"do": "attach", "id": "a", "attacher": first, "function": function},
            {"do": "attach", "id": "b", "attacher": second, "function": function},
            {"do": "detach", "id": "a"},
            {"do": "detach", "id": "b"},
        ]
        world = World(kernel == OLD, function)
        probe = World(kernel == OLD, function)
        probe.attach("a", first)
        if probe.attach("b", second):
            steps.pop()
        scenario = self._start(
            kernel, f"pair/{first}+{second}", function, steps, matrix=[first, second],
            attempt=attempt,
        )  # fmt: skip
        if kernel == OLD and "direct-share" in (first, second):
            self._verdict(scenario, "SKIP", "a module's direct call has no ops_func before 6.0")
            return
        for index, step in enumerate(steps):
            number = 0
            if step["do"] == "attach":
                number = world.attach(step["id"], step["attacher"])
            else:
                world.attached.pop(step["id"], None)
            if not self._step(kernel, scenario, index, step, world, number, what):
                return
        self._verdict(scenario, "PASS", "")

    def _step(
        self, kernel: str, scenario: str, index: int, step: Event, world: World, number: int,
        what: str,
    ) -> bool:  # fmt: skip
        seen = world.witness(number)
        predicted = json.loads(json.dumps(seen))
        predicted["errno"] = [number]
        predicted["log"] = []
        self.rec.emit("step_start", scenario=scenario, index=index, step=step, predicted=predicted)
        mismatches: list[Event] = []
        log = [{"level": 6, "t": 12.25 + index, "text": f"cohabit: {step['do']} done"}]
        if index == 1 and what in {"lost", "hang"}:
            verdict, why = {
                "lost": ("LOST", "no reply for 60 s, the console is silent"),
                "hang": ("HANG", "no reply for 60 s; insmod in state D"),
            }[what]
            self._verdict(scenario, verdict, why, after=60.0)
            self._end_vm(kernel, "died", verdict, why)
            return False
        if index == 1 and what == "errno":
            mismatches = [_mismatch("errno", "errno", [EBUSY], 0, "P6: register_ftrace_function")]
            seen["errno"] = 0
        if index == 1 and what in {"body", "xfail"}:
            behaviour = seen["behaviour"][world.function]
            mismatches = [
                _mismatch("behaviour", f"{world.function} body", behaviour["body"], "original",
                          "B2: the livepatch's body runs under a BPF trampoline"),
                _mismatch("registry", world.function, predicted["registry"][world.function],
                          {**seen["registry"][world.function], "flags": ["D", "M", "R"]},
                          "R1: I is set while an IPMODIFY ops is there"),
            ]  # fmt: skip
            behaviour["body"] = "original"
        if index == 1 and what == "splat":
            text = "WARNING: CPU: 0 PID: 91 at kernel/trace/ftrace.c:2109 <register> & 'more'"
            log.append({"level": 4, "t": 13.5, "text": text})
        self.rec.emit(
            "step_end", after=0.4, scenario=scenario, index=index, observed=seen,
            mismatches=mismatches, registry_text=world.text(), log=log, agent_s=0.012, host_s=0.014,
        )  # fmt: skip
        if index == 1 and what == "splat":
            self._verdict(scenario, "SPLAT", "WARNING at kernel/trace/ftrace.c:2109")
            self._end_vm(kernel, "poisoned")
            return False
        if mismatches:
            if what == "xfail":
                self._verdict(scenario, "XFAIL", "share-callback", xfail="direct-share-peer")
            else:
                first = mismatches[0]
                why = f"{first['what']}: expected {first['expected']}, saw {first['seen']}"
                self._verdict(scenario, "FAIL", f"{first['witness']}: {why}")
            return False
        return True

    def _sysctl(self, kernel: str) -> None:
        function = "cmdline_proc_show"
        steps: list[Event] = [
            {"do": "attach", "id": "a", "attacher": "livepatch", "function": function},
            {"do": "write", "sysctl": "kernel.ftrace_enabled", "value": "0"},
            {"do": "call"},
            {"do": "detach", "id": "a"},
        ]
        world = World(kernel == OLD, function)
        scenario = self._start(kernel, "sysctl/ftrace-off-under-livepatch", function, steps)
        for index, step in enumerate(steps):
            number = EBUSY if step["do"] == "write" else 0
            if step["do"] == "attach":
                world.attach("a", "livepatch")
            elif step["do"] == "detach":
                world.attached.clear()
            self._step(kernel, scenario, index, step, world, number, "")
        self._verdict(scenario, "PASS", "")

    def _verdict(self, scenario: str, verdict: str, reason: str, **keys: Any) -> None:
        self.rec.emit("scenario_end", scenario=scenario, verdict=verdict, reason=reason, **keys)


def _mismatch(witness: str, what: str, expected: Any, seen: Any, rule: str) -> Event:
    return {"witness": witness, "what": what, "expected": expected, "seen": seen, "rule": rule}


def full_run() -> list[Event]:
    """Two kernels, every kind of verdict, complete."""
    return SampleRun().end()


def passing_run() -> list[Event]:
    """One kernel, three attachers, nothing wrong."""
    return SampleRun((NEW,), ("livepatch", "fentry", "ops"), {}).end()


def write(events: list[Event], directory: Path, cut: int = 0) -> Path:
    """Write ``events.jsonl``, without the last ``cut`` characters; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(e) + "\n" for e in events)
    (directory / "events.jsonl").write_text(text[: len(text) - cut])
    return directory
