# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that does what a model says, behind the agent's protocol: whole runs without a VM.

With the model of harness/policy it does everything right; with one that was told to
forget a rule (Profile.without) it does that one thing wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.arch import named
from harness.policy.acts import transition
from harness.policy.predict import RecordPrediction, witnesses
from harness.policy.profile import FIRST, Profile, choose, options, release_version
from harness.policy.site import predict as site
from harness.policy.state import State
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.scenario.functions import FUNCTIONS
from harness.scenario.parse import step_from_json
from harness.scenario.steps import Attach, Scenario, Step

Event = dict[str, Any]


def warning(report: tuple[str, ...]) -> tuple[str, ...]:
    """What a kernel says that makes a report with these texts (Act.report)."""
    where = next((text for text in report if "/" not in text), "__register_ftrace_function")
    return (
        "------------[ cut here ]------------",
        f"WARNING: CPU: 0 PID: 1 at kernel/trace/ftrace.c:321 {where}+0x1/0x2",
        "---[ end trace 0000000000000000 ]---",
    )


#: A call site, and where it may lead: in reach of a BL, and out of it.
SITE, CALLER = 0xFFFF800080010004, 0xFFFF800080049338
NEAR, FAR = SITE + (32 << 20), SITE - (2 << 30)


def bl(target: int) -> int:
    """The BL at SITE that leads there, or to where its 26 bits do."""
    return 0x94000000 | (target - SITE) // 4 & 0x3FFFFFF


class ModelKernel:
    """A target (harness/target/protocol.py) whose kernel is a model with this profile."""

    slowdown = 1.0

    def __init__(self, release: str, profile: Profile, boot: Sequence[str] = ()) -> None:
        self.release = release
        #: Where BPF trampolines are.
        self.reach = "near" if "nokaslr" in boot else "far"
        self.profile = profile
        self.state = State()
        self._log: list[str] = []

    # --- a machine --------------------------------------------------------------------------

    def start(self) -> Mapping[str, Any]:
        return {
            "engine": "model", "accel": "tcg", "accel_why": "no machine", "qemu": "",
            "cpu": "", "cpus": 1, "memory_mb": 0, "command": [],
        }  # fmt: skip

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        operation = getattr(self, f"_on_{message['op']}")
        arguments = {k: v for k, v in message.items() if k != "op"}
        return {"result": operation(**arguments), "t0": 0.0, "t1": 0.001, "user": 0.001}

    def ended(self, timeout: float) -> bool:
        return False

    def console_tail(self) -> Sequence[str]:
        return ()

    def crash(self) -> str | None:
        return None

    def boot_failure(self) -> str | None:
        return None

    def backtraces(self) -> Sequence[str]:
        return ()

    def abort(self) -> None:
        return

    def stop(self) -> None:
        return

    # --- an agent on it ---------------------------------------------------------------------

    def _on_hello(self, **_: Any) -> Event:
        version = release_version(self.release)
        return {
            "release": self.release,
            "notes": "its own",
            "compiled": False,
            "livepatch": version >= FIRST["livepatch"].get(self.profile.arch, (0, 0)),
            "lockdep": False,
            "machine": named(self.profile.arch).machine,
            "kaslr": self.reach == "far",
            "vmlinux_btf": True,
            "kprobe_multi": version >= FIRST["fprobe"][self.profile.arch],
            "tracers": ["function", "function_graph"],
        }

    def _on_modules(self) -> Event:
        old = self.profile.semantics.direct_is_ipmodify
        version = release_version(self.release)
        return {
            "direct": True,
            "ops_func": not old,
            "livepatch_save_regs": self.profile.form.ipmodify_saves_regs,
            "fprobe": version >= FIRST["fprobe"][self.profile.arch],
            "modify": True,
            "has_modify": True,
            "kprobes_on_ftrace": self.profile.semantics.kprobes_on_ftrace,
            "module_btf": True,
        }

    def _on_compile(self, **_: Any) -> Event:
        return {"programs": {}}

    def _on_begin(self, functions: list[str]) -> Event:
        return self._observation(functions)

    def _on_acts(
        self, acts: list[Event], functions: list[str], sites: bool = False, **_: Any
    ) -> Event:
        results = [self._act(act) for act in acts]
        looked = {"sites": {f: self._site(f) for f in functions}} if sites else {}
        return {"results": results, **looked, **self._observation(functions)}

    def _site(self, function: str) -> Event:
        expected = site(self.state, function, self.profile, self.reach)
        if expected.path == "absent":
            return {"errno": 3}
        trampoline = {"near": NEAR, "far": FAR}.get(expected.reach or "", 0)
        target = {"direct": trampoline, "ftrace_caller": CALLER}.get(expected.path)
        return {
            "address": SITE,
            "caller": CALLER,
            "trampoline": trampoline,
            "ops": 0xFFFF000004962F00,
            "direct_call": trampoline if expected.calls_back else 0,
            "instruction": bl(target) if target else 0xD503201F,
            "veneer": [0, 0, 0, 0],
        }

    def _on_clean(self) -> Event:
        self.state = State(modified=self.state.modified, stale_share=self.state.stale_share)
        return {"residue": [], "log": self._take_log(), "log_complete": True}

    def _act(self, json: Event) -> Event:
        act, after = transition(self.state, self._step(json), self.profile, json.get("slot"))
        self.state = after
        if json["do"] == "unload" and not act.errno:
            gone = {f.name for f in FUNCTIONS.values() if f.module}
            self.state = replace(after, modified=after.modified - gone)
        self._log += act.log
        if act.report:
            self._log += warning(act.report)
        held = {"body": act.held, "ret": 0} if act.held else None
        return {"errno": act.errno, "remark": "", "s": 0.0, "held": held}

    @staticmethod
    def _step(json: Event) -> Step:
        if json["do"] == "attach":
            attacher = json["attacher"] + ("-replace" if json.get("replace") else "")
            far = bool(json.get("far"))
            return Attach(json["id"], attacher, tuple(json["functions"]), far=far)
        return step_from_json(json)

    def _observation(self, functions: list[str]) -> Event:
        act, _ = transition(self.state, step_from_json({"do": "call"}), self.profile)
        attached = [f for a in self.state.attached for f in a.functions]
        everywhere = tuple(dict.fromkeys([*functions, *attached]))
        found = witnesses(self.state, act, everywhere, self.profile)
        return {
            "enabled_functions": "".join(
                _line(f, record) for f, record in found.registry.items() if record
            ),
            "touched_functions": "".join(f"{_title(f)} (0) M\n" for f in self.state.modified),
            "calls": {f: self._call(f, found.behaviour[f].to_json()) for f in functions},
            "livepatch": found.livepatch,
            "ftrace_enabled": found.ftrace_enabled,
            "log": self._take_log(),
            "log_complete": True,
        }

    def _call(self, function: str, done: Event) -> Event:
        there = {a.id: a for a in self.state.attached}
        seen: dict[str, Event] = {}
        for identity, hits in done["hits"].items():
            args = done["args"] if hits and done["args"] != "agree" else []
            stat: Event = {"hits": hits, "others": 0, "args": args}
            if there[identity].kind.returns:
                stat["ret"] = (done["ret"] or 0) & (1 << 64) - 1
            if identity in done.get("shares", {}):
                stat["share"] = done["shares"][identity]
            if identity in done.get("via", {}):
                stat["via"] = 8 * done["via"][identity] + there[identity].slot
            seen[identity] = stat
        return {"body": done["body"], "seen": seen}

    def _take_log(self) -> list[Event]:
        texts, self._log = self._log, []
        return [{"level": 4, "t": float(n), "text": text} for n, text in enumerate(texts)]


def _title(function: str) -> str:
    module = FUNCTIONS[function].module
    return f"{function} [{module}]" if module else function


def _line(function: str, record: RecordPrediction) -> str:
    text = f"{_title(function)} ({record.count}) {' '.join(sorted(record.flags))}\n"
    if record.direct:
        # Where both are right it is a trampoline that outlived its programs, and called.
        jmp = "(jmp)" if record.jmp else ""
        text += f"\tdirect{jmp}-->{record.direct}+0x0/0x10\n"
    if record.ops:
        head, _, rest = text.partition("\n")
        text = f"{head}\tops: 0xffff000004962f00 ({record.ops}+0x0/0x10)\n{rest}"
    return text


def record_run(
    directory: Path,
    scenarios: Sequence[Scenario],
    versions: Sequence[str] = ("6.12",),
    wrong: Callable[[Profile], Profile] = lambda profile: profile,
    side_by_side: int = 128,
    arch: str = "x86_64",
    config: Mapping[str, str] | None = None,
) -> list[Event]:
    """The events of a run on kernels that do what the model says, after ``wrong``."""
    events: list[Event] = []
    with Record(directory, (lambda event: events.append(dict(event)),)) as record:
        works = []
        for version in versions:
            release = f"{version}.0-model"
            profile = choose(release, config or {}, arch=arch)
            record.event(
                "kernel", kernel=release, reference=f"model:{version}", release=release,
                arch=arch, origin="made up", profile=profile.name, profile_why=profile.why,
                config=options(config or {}),
            )  # fmt: skip

            for boot in dict.fromkeys(s.boot for s in scenarios):

                def make(
                    _vm: str,
                    release: str = release,
                    profile: Profile = profile,
                    boot: tuple[str, ...] = boot,
                ) -> ModelKernel:
                    return ModelKernel(release, wrong(profile), boot)

                there = [s for s in scenarios if s.boot == boot]
                works.append(Work(release, profile, make, there))
        Schedule(works, record, 1, side_by_side).run()
    return events


def names(events: Sequence[Event], verdict: str) -> list[str]:
    """The scenarios that ended so."""
    by_id = {e["scenario"]: e["name"] for e in events if e["type"] == "scenario_start"}
    return [
        by_id[e["scenario"]]
        for e in events
        if e["type"] == "scenario_end" and e["verdict"] == verdict
    ]
