# SPDX-License-Identifier: GPL-2.0-only
"""One target with an agent on it: scenarios go in, events come out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.consistency import nothing_to_stir
from harness.errors import InfraError
from harness.monitor import emulator_failed
from harness.oracle import observation
from harness.policy import known
from harness.policy.profile import Profile, release_version
from harness.policy.state import State
from harness.target.protocol import Target, TargetGoneError, TargetSilentError

from .company import Company, Member, SharedTroubleError
from .greeting import BOOT_TIMEOUT, COMPILE_TIMEOUT, PATIENCE, STEP_TIMEOUT
from .greeting import hello as greeting
from .programs import Programs
from .record import Record
from .reports import Reports
from .requirements import needs_compiler, skip_reason

#: For each act more than the first.
ACT_TIMEOUT = 0.5


@dataclass
class AccidentError(Exception):
    """The end of a target: what it amounts to, in words, with what was seen."""

    verdict: str
    detail: str
    backtraces: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.verdict}: {self.detail}"


class PoisonedError(Exception):
    """The kernel still runs, but nothing more that it shows can be trusted.

    ``planned``: the scenario was meant to be the last of its VM.
    """

    def __init__(self, why: str, planned: bool = False) -> None:
        super().__init__(why)
        self.planned = planned


class RegroupError(Exception):
    """Members of a company have to be run again, each alone.

    ``verdict`` and ``reason`` are the company's; ``accident``: what the target ended
    by, if it did; ``ended``: the kernel is not to be used any more.
    """

    def __init__(
        self,
        verdict: str,
        reason: str,
        members: Sequence[Member],
        accident: AccidentError | None,
        ended: bool,
    ) -> None:
        super().__init__(f"{verdict}: {reason}")
        self.verdict = verdict
        self.reason = reason
        self.members = members
        self.accident = accident
        self.ended = ended


class Session:
    """Runs scenarios on one target, one after the other.

    ``start`` and ``run`` raise AccidentError when the target is lost, PoisonedError
    when it must not be used any more; the events are written by then.  ``programs``:
    compiled BPF programs, which all sessions share once the first has compiled them;
    ``notes``: as in harness.kernels.model.Kernel.
    """

    def __init__(
        self,
        target: Target,
        vm: str,
        kernel: str,
        profile: Profile,
        record: Record,
        programs: Programs,
        notes: str = "",
    ) -> None:
        self._target = target
        self.vm = vm
        self._kernel = kernel
        self._profile = profile
        self._record = record
        self._programs = programs
        self._notes = notes
        self._facts: dict[str, Any] = {}
        self._understood: set[str] = set()
        #: Whether ``vm_start`` was written, and so ``vm_end`` has to be.
        self.begun = False
        #: Whether the VM goes on from a snapshot.
        self.restored = False
        #: Whether the BPF programs are compiled on this VM.
        self.compiled = False
        #: What the kernel complains of goes into the record by this.
        self.reports = Reports(record, vm, self._place)
        #: Where a report would come: what is done, by whom.
        self._when = "boot"
        self._members: Sequence[Member] = ()
        self._group = ""
        self._acting: Company | None = None
        self._state = State()

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
        self.restored = started.get("start") == "snapshot"
        if started.get("start_why"):
            self._record.note(f"{self._kernel}: {self.vm} boots cold: {started['start_why']}")
        self._record.event("vm_start", vm=self.vm, kernel=self._kernel, **started)
        try:
            hello = self._request(BOOT_TIMEOUT, **greeting(self._kernel, self._target.slowdown))
        except AccidentError as accident:
            if accident.verdict in ("LOST", "HANG", "CRASH") and (
                reason := self._target.boot_failure()
            ):
                verdict = "INFRA" if emulator_failed(reason) else "BOOT_FAIL"
                raise AccidentError(verdict, reason, accident.backtraces) from accident
            if accident.verdict == "HANG":
                raise AccidentError(
                    "BOOT_FAIL", "the agent did not come up", accident.backtraces
                ) from accident
            if accident.verdict == "LOST" and (tail := self._target.console_tail()):
                raise AccidentError("LOST", f"{accident.detail} after {tail[-1]!r}") from accident
            raise
        if hello["release"] != self._kernel:
            raise AccidentError("BOOT_FAIL", f"{hello['release']} came up, not {self._kernel}")
        if self._notes and hello["notes"] != self._notes:
            raise AccidentError(
                "INFRA", f"another build of {self._kernel} came up than the one that was built"
            )
        # Making a snapshot is nothing that each VM does.
        boot = time.monotonic() - began - float(started.get("made_s", 0.0))
        self._facts = {**hello, **self._request(STEP_TIMEOUT, op="modules")}
        self.compiled = bool(self._facts["compiled"])
        if compile_bpf and self._facts["vmlinux_btf"] and not self.compiled:
            self._compile()
        self._record.event("vm_ready", vm=self.vm, boot_s=round(boot, 3), facts=self._facts)

    def _compile(self) -> None:
        # Only the source decides what comes of it, so one VM's compiler is enough.
        reply = self._request(COMPILE_TIMEOUT, op="compile", programs=self._programs.get())
        self._programs.put(reply["programs"])
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

    def run(self, members: Sequence[Member], group: str = "") -> None:
        """Runs scenarios side by side, or one alone (with an empty ``group``).

        Raises RegroupError too: members that have to be run again alone, because what
        went wrong is nobody's own.
        """
        for member in members:
            self._begin(member, group)
        if not group:
            self._alone(members[0])
            return
        self._record.event(
            "group_start",
            group=group,
            vm=self.vm,
            kernel=self._kernel,
            scenarios=[m.identity for m in members],
        )
        try:
            self._together(members, group)
        except RegroupError as regroup:
            self._end_group(group, regroup.verdict, regroup.reason)
            raise
        self._end_group(group, "PASS", "")

    def _end_group(self, group: str, verdict: str, reason: str) -> None:
        self._record.event("group_end", group=group, verdict=verdict, reason=reason)

    def _begin(self, member: Member, group: str) -> None:
        scenario = member.scenario
        began: dict[str, Any] = {
            "scenario": member.identity,
            "name": scenario.name,
            "kernel": self._kernel,
            "vm": self.vm,
            "profile": self._profile.name,
            "attempt": member.attempt,
            "attachers": list(scenario.attachers),
            "functions": list(scenario.functions),
            "steps": [step.to_json() for step in scenario.steps],
        }
        for key, value in (
            ("matrix", list(scenario.matrix or ())),
            ("group", group),
            ("watch", scenario.watch),
            ("ends_vm", scenario.ends_vm),
            *scenario.wants().items(),
        ):
            if value:
                began[key] = value
        self._record.event("scenario_start", **began)

    def _end(self, member: Member, verdict: str, reason: str, **more: str) -> None:
        member.verdict = verdict
        self._record.event(
            "scenario_end", scenario=member.identity, verdict=verdict, reason=reason, **more
        )

    def _skipped(self, member: Member) -> bool:
        reason = skip_reason(member.scenario, self._facts)
        reason = reason or nothing_to_stir(member.scenario, self._profile)
        if reason:
            self._end(member, "SKIP", reason)
            return True
        return False

    def _alone(self, member: Member) -> None:
        """Runs one scenario; raises PoisonedError, AccidentError."""
        if self._skipped(member):
            return
        try:
            company = self._company([member], "")
            company.run()
            self._done(company)
            residue, late = self._clean_after(company)
        except AccidentError as accident:
            self._end(member, accident.verdict, accident.detail)
            raise
        splats = company.splats + late
        if splats:
            raise PoisonedError(self._splat(member, splats))
        if member.mismatches:
            self._failed(member)
        elif residue and not member.scenario.ends_vm:
            self._end(member, "FAIL", f"left behind: {residue}")
        elif member.untrusted:
            # Not tried again: the next try would give as little.
            self._end(member, "INFRA", "; ".join(member.untrusted))
        else:
            self._end(member, "PASS", "")
        if residue or member.scenario.ends_vm:
            raise PoisonedError(
                f"left behind: {residue}" if residue else "the scenario is the last of its VM",
                planned=member.scenario.ends_vm,
            )

    def _failed(self, member: Member) -> None:
        """Ends a scenario that a witness contradicted in."""
        first = member.mismatches[0]
        seen = known.Contradiction(member.failed, first.witness, first.expected, first.seen)
        version, arch = release_version(self._kernel), self._profile.arch
        if found := known.of_contradiction(member.scenario.name, version, seen, arch):
            self._end(member, "XFAIL", f"{first} ({found.page})", xfail=found.name)
        else:
            self._end(member, "FAIL", str(first))

    def _splat(self, member: Member, splats: Sequence[str]) -> str:
        """Ends a scenario that the kernel complained in; gives what it said."""
        version, arch = release_version(self._kernel), self._profile.arch
        lockdep, name = bool(self._facts["lockdep"]), member.scenario.name
        found = [known.of_report(name, version, t, lockdep, arch) for t in splats]
        if (first := found[0]) and all(k is first for k in found):
            self._end(member, "XFAIL", f"{splats[0]} ({first.page})", xfail=first.name)
            return splats[0]
        unexplained = splats[found.index(None)] if None in found else splats[0]
        self._end(member, "SPLAT", unexplained)
        return unexplained

    def _together(self, members: Sequence[Member], group: str) -> None:
        there = [m for m in members if not self._skipped(m)]
        if not there:
            return
        trouble: tuple[str, str] | None = None
        accident: AccidentError | None = None
        ended = False
        try:
            company = self._company(there, group)
            try:
                company.run()
            except SharedTroubleError as shared:
                trouble = ("FAIL", str(shared))
            self._done(company)
            residue, late = self._clean_after(company)
            if splats := company.splats + late:
                trouble, ended = self._shared_splat(splats), True
            elif residue:
                trouble, ended = trouble or ("FAIL", f"left behind: {residue}"), True
        except AccidentError as error:
            trouble, accident = (error.verdict, error.detail), error
        again = []
        for member in there:
            if member.mismatches:
                self._failed(member)
            elif trouble:
                self._record.event("scenario_regroup", scenario=member.identity, reason=trouble[1])
                again.append(member)
            else:
                self._end(member, "PASS", "")
        if trouble:
            raise RegroupError(*trouble, again, accident, ended)

    def _shared_splat(self, splats: Sequence[str]) -> tuple[str, str]:
        """Verdict and reason of a company that the kernel complained in."""
        version, lockdep = release_version(self._kernel), bool(self._facts["lockdep"])
        found = [known.of_company(version, title, lockdep, self._profile.arch) for title in splats]
        if (first := found[0]) and all(k is first for k in found):
            return "XFAIL", f"{splats[0]} ({first.page})"
        return "SPLAT", splats[found.index(None)] if None in found else splats[0]

    def _company(self, members: Sequence[Member], group: str) -> Company:
        """A company with a fresh look at its functions."""
        self._when, self._members, self._group = "begin", members, group
        if any(needs_compiler(m.scenario) for m in members) and not self.compiled:
            self._compile()
        functions = tuple(f for m in members for f in m.scenario.functions)
        reply = self._request(STEP_TIMEOUT, op="begin", functions=list(functions))
        first = observation(reply)
        self._state = State(
            ftrace_enabled=first.ftrace_enabled == 1,
            modified=first.modified(functions),
            # The one thing of a scenario's end that the next one may still see.
            stale_share=self._state.stale_share,
        )
        reports = self.reports.of_reply
        company = Company(
            members, self._profile, self._record, self._acts, reports, self._state, group,
            self._hang, self._target.slowdown,
        )  # fmt: skip
        company.splats = reports(reply)
        self._when, self._acting = "step", company
        return company

    def _place(self) -> dict[str, Any]:
        """Where a report comes: keys of its event."""
        place: dict[str, Any] = {"when": self._when}
        members = self._members
        if self._when == "step" and self._acting:
            members = self._acting.acting
            place["index"] = self._acting.index
        if members:
            place["scenarios"] = [m.identity for m in members]
        if self._group:
            place["group"] = self._group
        return place

    def _acts(self, waits: float = 0.0, **request: Any) -> dict[str, Any]:
        """Sends acts; time for each of them that the kernel waits in, and ``waits`` more."""
        slow = sum(act["do"] != "call" for act in request.get("acts", ()))
        waits += float(request.get("wait", 0.0))
        return self._request(STEP_TIMEOUT + PATIENCE + ACT_TIMEOUT * slow + waits, **request)

    def _hang(self, words: str) -> None:
        """Ends the target although its agent answers: something else on it does not go on."""
        if crash := self._target.crash():
            raise AccidentError("CRASH", crash)
        raise AccidentError("HANG", words, self._target.backtraces())

    def _clean_after(self, company: Company) -> tuple[str, list[str]]:
        """As _clean, unless the VM is lost anyway: a kernel that reported a fault of its own
        may well crash over what is left, and that would hide what the fault was."""
        return ("", []) if company.splats else self._clean()

    def _clean(self) -> tuple[str, list[str]]:
        """Removes what is left; words for what could not be, and late reports."""
        self._when = "clean"
        result = self._request(STEP_TIMEOUT + PATIENCE, op="clean")
        splats = self.reports.of_reply(result)
        if not result["log_complete"]:
            splats.append("kernel messages were lost")
        return "; ".join(result["residue"]), splats

    def _done(self, company: Company) -> None:
        """Keeps what outlives a company; reports, once each, what no grammar understood."""
        self._state = company.state
        for piece in company.unknown - self._understood:
            self._record.note(
                f"{self._kernel}: not understood in enabled_functions: {piece!r}", "warning"
            )
        self._understood |= company.unknown
