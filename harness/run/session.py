# SPDX-License-Identifier: GPL-2.0-only
"""One target with an agent on it: scenarios go in, events come out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InfraError
from harness.monitor import Monitor, Severity
from harness.oracle import Mismatch, Observation, compare, observation
from harness.policy.known import explanation
from harness.policy.predict import applies, planned, predict
from harness.policy.profile import Profile, release_version
from harness.policy.state import State
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import Attach, Scenario
from harness.target.protocol import Target, TargetGoneError, TargetSilentError

from .record import Record
from .requirements import needs_compiler, skip_reason

#: Seconds on a fast machine; the target scales them.
BOOT_TIMEOUT = 12.0
STEP_TIMEOUT = 6.0
COMPILE_TIMEOUT = 12.0
#: What the kernel has for what it does by itself (a livepatch transition).
PATIENCE = 3.0

_BPF_SOURCE = Path(__file__).resolve().parents[2] / "bpf_progs" / "attach.bpf.c"


@dataclass
class AccidentError(Exception):
    """The end of a target: what it amounts to, in words, with what was seen."""

    verdict: str
    detail: str
    backtraces: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.verdict}: {self.detail}"


class PoisonedError(Exception):
    """The kernel still runs, but nothing more that it shows can be trusted."""


class Session:
    """Runs scenarios on one target, one after the other.

    ``start`` and ``run`` raise AccidentError when the target is lost, PoisonedError
    when it must not be used any more; the events are written by then.
    """

    def __init__(self, target: Target, vm: str, kernel: str, profile: Profile, record: Record):
        self._target = target
        self._vm = vm
        self._kernel = kernel
        self._profile = profile
        self._record = record
        self._facts: dict[str, Any] = {}
        self._understood: set[str] = set()
        #: Whether ``vm_start`` was written, and so ``vm_end`` has to be.
        self.begun = False
        #: Whether the BPF programs are compiled on this VM.
        self.compiled = False
        #: The one thing of a scenario's end that the next one may still see.
        self._stale_share: frozenset[str] = frozenset()

    def start(self, compile_bpf: bool = False) -> None:
        """Boots, greets the agent, loads the modules; writes ``vm_start`` and ``vm_ready``.

        ``compile_bpf``: compiles the BPF programs too, where the kernel can have them.
        """
        began = time.monotonic()
        try:
            started = self._target.start()
        except InfraError as error:
            raise AccidentError("INFRA", str(error)) from error
        self.begun = True
        self._record.event("vm_start", vm=self._vm, kernel=self._kernel, **started)
        try:
            hello = self._request(
                BOOT_TIMEOUT,
                op="hello",
                functions={n: dataclasses.asdict(f) for n, f in FUNCTIONS.items()},
                bpf_source=_BPF_SOURCE.read_text(encoding="utf-8"),
                patience=PATIENCE * self._target.slowdown,
                # Before 5.13 a program can be attached once in its life, and a
                # refused one not even that (commit f3a95075549e).
                reload_bpf=release_version(self._kernel) < (5, 13),
            )
        except AccidentError as accident:
            if accident.verdict in ("LOST", "HANG", "CRASH") and (
                reason := self._target.boot_failure()
            ):
                raise AccidentError("BOOT_FAIL", reason, accident.backtraces) from accident
            if accident.verdict == "HANG":
                raise AccidentError(
                    "BOOT_FAIL", "the agent did not come up", accident.backtraces
                ) from accident
            if accident.verdict == "LOST" and (tail := self._target.console_tail()):
                raise AccidentError("LOST", f"{accident.detail} after {tail[-1]!r}") from accident
            raise
        if hello["release"] != self._kernel:
            raise AccidentError("BOOT_FAIL", f"{hello['release']} came up, not {self._kernel}")
        boot = time.monotonic() - began
        self._facts = {**hello, **self._request(STEP_TIMEOUT, op="modules")}
        if compile_bpf and self._facts["vmlinux_btf"]:
            self._compile()
        self._record.event("vm_ready", vm=self._vm, boot_s=round(boot, 3), facts=self._facts)

    def _compile(self) -> None:
        self._request(COMPILE_TIMEOUT, op="compile")
        self.compiled = True

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the agent found on the running kernel."""
        return self._facts

    def _request(self, timeout: float, **message: Any) -> dict[str, Any]:
        """The agent's result; an AccidentError for a target that gives none."""
        try:
            reply = self._target.request(message, timeout)
        except TargetGoneError as gone:
            # The console is behind the channel: let it come to its end.
            self._target.ended(1.0)
            if crash := self._target.crash():
                raise AccidentError("CRASH", crash) from gone
            raise AccidentError("LOST", str(gone)) from gone
        except TargetSilentError as silent:
            if crash := self._target.crash():
                raise AccidentError("CRASH", crash) from silent
            backtraces = self._target.backtraces()
            raise AccidentError(
                "HANG",
                f"no answer to {message['op']!r} within {timeout * self._target.slowdown:.0f} s",
                backtraces,
            ) from silent
        except InfraError as error:
            raise AccidentError("INFRA", str(error)) from error
        result: dict[str, Any] = dict(reply["result"])
        result["agent_s"] = reply["t1"] - reply["t0"]
        result["user_s"] = reply["user"]
        return result

    def run(self, scenario: Scenario, identity: str, attempt: int = 1) -> str:
        """Runs one scenario; returns its verdict."""
        began: dict[str, Any] = {
            "scenario": identity,
            "name": scenario.name,
            "kernel": self._kernel,
            "vm": self._vm,
            "profile": self._profile.name,
            "attempt": attempt,
            "functions": list(scenario.functions),
            "steps": [step.to_json() for step in scenario.steps],
        }
        if scenario.matrix:
            began["matrix"] = list(scenario.matrix)
        self._record.event("scenario_start", **began)
        try:
            return self._run(scenario, identity)
        except AccidentError as accident:
            self._end(identity, accident.verdict, accident.detail)
            raise

    def _end(self, identity: str, verdict: str, reason: str, **more: str) -> str:
        self._record.event(
            "scenario_end", scenario=identity, verdict=verdict, reason=reason, **more
        )
        return verdict

    def _run(self, scenario: Scenario, identity: str) -> str:
        if reason := skip_reason(scenario, self._facts):
            return self._end(identity, "SKIP", reason)
        if needs_compiler(scenario) and not self.compiled:
            self._compile()
        mismatches, splats = self._steps(scenario, identity)
        residue, late = self._clean()
        splats += late
        if splats:
            version = release_version(self._kernel)
            known = [explanation(scenario.name, version, title) for title in splats]
            if (first := known[0]) and all(k is first for k in known):
                self._end(identity, "XFAIL", f"{splats[0]} ({first.page})", xfail=first.name)
                raise PoisonedError(splats[0])
            unexplained = splats[known.index(None)] if None in known else splats[0]
            self._end(identity, "SPLAT", unexplained)
            raise PoisonedError(unexplained)
        if residue:
            self._end(identity, "FAIL", f"left behind: {residue}")
            raise PoisonedError(f"left behind: {residue}")
        if mismatches:
            return self._end(identity, "FAIL", str(mismatches[0]))
        return self._end(identity, "PASS", "")

    def _steps(self, scenario: Scenario, identity: str) -> tuple[tuple[Mismatch, ...], list[str]]:
        """Does the steps up to the first that contradicts the policy."""
        first, splats = self._observe(
            self._request(STEP_TIMEOUT, op="begin", functions=list(scenario.functions))
        )
        if splats:
            return (), splats
        state = State(
            ftrace_enabled=first.ftrace_enabled == 1,
            modified=first.modified(scenario.functions),
            stale_share=self._stale_share,
        )
        for index, step in enumerate(scenario.steps):
            if not applies(state, step):
                self._record.event("step_skip", scenario=identity, index=index)
                continue
            act = step.to_json()
            if isinstance(step, Attach):
                act["slot"] = planned(state, step).slot
            prediction, state = predict(state, step, scenario.functions, self._profile)
            self._stale_share = state.stale_share
            self._record.event(
                "step_start",
                scenario=identity,
                index=index,
                step=act,
                predicted=prediction.to_json(),
            )
            sent = time.monotonic()
            reply = self._request(
                STEP_TIMEOUT + PATIENCE, op="step", step=act, functions=list(scenario.functions)
            )
            seen, splats = self._observe(reply)
            mismatches = compare(prediction, seen, scenario.functions)
            self._record.event(
                "step_end",
                scenario=identity,
                index=index,
                observed=seen.to_json(),
                mismatches=[m.to_json() for m in mismatches],
                registry_text=reply["enabled_functions"] or "",
                log=list(seen.log),
                agent_s=round(reply["agent_s"], 4),
                user_s=round(reply["user_s"], 4),
                host_s=round(time.monotonic() - sent, 4),
            )
            self._say_unknown(seen)
            if mismatches:
                return mismatches, splats
        return (), []

    def _observe(self, reply: Mapping[str, Any]) -> tuple[Observation, list[str]]:
        """The observation, and titles of the kernel's reports among its messages."""
        findings = self._reports(reply["log"])
        return observation(reply, findings), findings

    @staticmethod
    def _reports(log: Sequence[Mapping[str, Any]]) -> list[str]:
        monitor = Monitor()
        found = monitor.feed_records(
            [(int(r["level"]), float(r["t"]), str(r["text"])) for r in log]
        )
        found = [*found, *monitor.finish()]
        return [f.title for f in found if f.severity is not Severity.BENIGN]

    def _clean(self) -> tuple[str, list[str]]:
        """Removes what is left; words for what could not be, and late reports."""
        result = self._request(STEP_TIMEOUT + PATIENCE, op="clean")
        splats = self._reports(result["log"])
        if not result["log_complete"]:
            splats.append("kernel messages were lost")
        return "; ".join(result["residue"]), splats

    def _say_unknown(self, seen: Observation) -> None:
        """Reports, once each, what the registry's grammar did not understand."""
        for record in seen.registry.records:
            for piece in record.unknown:
                if piece not in self._understood:
                    self._understood.add(piece)
                    self._record.note(
                        f"{self._kernel}: not understood in enabled_functions: {piece!r}",
                        "warning",
                    )
