# SPDX-License-Identifier: GPL-2.0-only
"""Which scenarios run where: several VMs at a time, a fresh one after an accident."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.agent.abi import LANES
from harness.policy import known
from harness.policy.profile import Profile, release_version
from harness.scenario.company import gather, sociable
from harness.scenario.steps import Scenario
from harness.target.protocol import Target, TargetAbortedError

from .company import Member
from .programs import Programs
from .record import Record
from .requirements import needs_compiler
from .session import AccidentError, PoisonedError, RegroupError, Session

#: A second VM for the same kernel is booted only for more work than this.
_WORTH_A_BOOT = 12
#: What may be tried again, once, on a fresh VM: our own fault, or nobody knows whose.
_RETRIED = ("LOST", "INFRA")
#: What needs no confirmation when it was seen in a restored VM.
_UNDISPUTED = ("PASS", "SKIP", "XFAIL")
#: This many VMs in a row that did not come up, and the kernel's rest is given up.
_BOOTS = 2

TargetMaker = Callable[[str], Target]


@dataclass(frozen=True)
class Job:
    """A scenario to be run: for the how-manyth time, and whether it must be alone.

    ``cold``: only where the VM was booted, not restored: it failed in one that was.
    """

    scenario: Scenario
    attempt: int = 1
    alone: bool = False
    cold: bool = False

    def identity(self, kernel: str) -> str:
        """Its name in the record."""
        end = ("#alone" if self.alone else "") + ("#cold" if self.cold else "")
        return f"{kernel}/{self.scenario.name}#{self.attempt}{end}"


@dataclass
class Work:
    """A kernel and what is to be run on it; ``make`` gives a target for a VM's name.

    ``notes``: as in harness.kernels.model.Kernel; ``programs``: what compiled BPF programs
    there are for it; ``make_cold`` gives a target that is booted for certain, where ``make``
    may give one that goes on from a snapshot; ``cpus``: virtual CPUs of each of its VMs.
    """

    kernel: str
    profile: Profile
    make: TargetMaker
    scenarios: Sequence[Scenario]
    notes: str = ""
    programs: Programs = field(default_factory=Programs)
    make_cold: TargetMaker | None = None
    cpus: int = 1
    queue: collections.deque[Job] = field(default_factory=collections.deque)
    #: Whether a VM that was restored did not get as far as its first scenario.
    distrusted: bool = False
    workers: int = 0
    failed_boots: int = 0
    #: The VM that compiles the BPF programs and takes the scenarios that need them.
    compiler: Session | None = None

    def cold(self) -> bool:
        """Whether all that is left wants a VM that was booted."""
        return bool(self.queue) and all(job.cold for job in self.queue)

    def left(self) -> int:
        """How much is left to do, in scenarios; one that costs its VM has a boot to itself."""
        return sum(1 + _WORTH_A_BOOT * job.scenario.ends_vm for job in self.queue)


def _here(scenario: Scenario, work: Work) -> Scenario:
    """The scenario as it is on a kernel: what costs its VM on one need not on another."""
    spared = scenario.ends_vm and known.spares(scenario.name, work.profile.arch)
    return dataclasses.replace(scenario, ends_vm=False) if spared else scenario


class Schedule:
    """Runs all work with ``jobs`` VMs at a time, on threads; the record has the outcome.

    ``side_by_side``: how many scenarios may share a kernel at a time; ``host_cpus``: the
    host's, 0 for as many as there are.

    ``run`` returns when everything was run or ``stop`` was called; ``stop`` is
    safe from any thread.
    """

    def __init__(
        self,
        works: Sequence[Work],
        record: Record,
        jobs: int,
        side_by_side: int = LANES,
        host_cpus: int = 0,
    ) -> None:
        self._works = works
        self._record = record
        self._jobs = jobs
        self._side_by_side = side_by_side
        #: Where scenarios need several CPUs, the VMs that are there must not want more.
        self._host_cpus = host_cpus or len(os.sched_getaffinity(0))
        self._lock = threading.Lock()
        self._left_vm = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._finished = threading.Event()
        self._targets: dict[str, Target] = {}
        self._vms = 0
        self._groups = 0
        self._errors: list[BaseException] = []
        for work in works:
            work.queue.extend(Job(_here(scenario, work)) for scenario in work.scenarios)

    def run(self) -> None:
        """Runs everything; raises what a worker died of."""
        # No join() here: Python before 3.13 takes a thread for ended when an interrupt
        # ends its join(), and would leave without it.
        thread = threading.Thread(target=self._workers)
        try:
            thread.start()
            self._finished.wait()
        except BaseException:
            self.stop()
            if thread.ident is not None:
                self._finished.wait()
            raise
        if self._errors:
            raise self._errors[0]

    def _workers(self) -> None:
        threads = [threading.Thread(target=self._worker) for _ in range(self._jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._finished.set()

    def stop(self) -> None:
        """Ends all VMs and lets the workers finish."""
        with self._left_vm:
            self._stop.set()
            self._left_vm.notify_all()
            targets = list(self._targets.values())
        for target in targets:
            target.abort()

    def _worker(self) -> None:
        try:
            while (work := self._next_work()) is not None:
                try:
                    self._one_vm(work)
                finally:
                    with self._left_vm:
                        work.workers -= 1
                        self._left_vm.notify_all()
        except BaseException as error:
            self._errors.append(error)
            self.stop()

    def _next_work(self) -> Work | None:
        """The kernel with the most left to do for each VM that would be on it.

        Waits where there is work, but no room for another VM now.
        """
        with self._left_vm:
            while not self._stop.is_set():
                open_works = [
                    w for w in self._works
                    if w.queue and (w.workers == 0 or w.left() / (w.workers + 1) > _WORTH_A_BOOT)
                ]  # fmt: skip
                if not open_works:
                    return None
                if there_is_room := [w for w in open_works if self._room(w)]:
                    work = max(there_is_room, key=lambda w: w.left() / (w.workers + 1))
                    work.workers += 1
                    return work
                self._left_vm.wait()
            return None

    def _room(self, work: Work) -> bool:
        """Whether another VM leaves CPUs to those whose scenarios need several at once."""
        there = [w for w in self._works if w.workers]
        if not there or max(w.cpus for w in (work, *there)) == 1:
            return True
        return work.cpus + sum(w.workers * w.cpus for w in there) <= self._host_cpus

    def _take(self, work: Work, session: Session) -> list[Job]:
        """What a VM runs next: one job, or several to be run side by side.

        Compiling BPF takes as long as a boot, so of several VMs only the first does it,
        unless much is left to share.
        """
        with self._lock:
            if not work.queue or self._stop.is_set():
                return []
            fitting = [job for job in work.queue if not (job.cold and session.restored)]
            # Those that cost their VM wait for their turn.
            jobs = [job for job in fitting if not job.scenario.ends_vm] or fitting
            if not jobs:
                return []
            ready = session.compiled or work.programs.there
            first = next((j for j in jobs if needs_compiler(j.scenario) == ready), None)
            if first is None:
                if not ready and work.workers > 1 and work.left() <= _WORTH_A_BOOT:
                    return []
                first = jobs[0]
            taken = self._with_company(first, jobs, work, session)
            for job in taken:
                work.queue.remove(job)
            return taken

    def _with_company(
        self, first: Job, jobs: Sequence[Job], work: Work, session: Session
    ) -> list[Job]:
        version, arch = release_version(work.kernel), work.profile.arch
        if (
            first.alone
            or not sociable(first.scenario)
            or known.breaks(first.scenario.name, version, arch)
        ):
            return [first]
        others = {
            job.scenario.name: job
            for job in jobs
            if not job.alone
            and job is not first
            and (job.attempt, job.cold) == (first.attempt, first.cold)
            and needs_compiler(job.scenario) == needs_compiler(first.scenario)
            and not known.breaks(job.scenario.name, version, arch)
        }
        # Several VMs share what there is.
        limit = max(1, min(self._side_by_side, -(-(len(others) + 1) // work.workers)))
        names = gather(
            first.scenario,
            [job.scenario for job in others.values()],
            bool(session.facts["module_btf"]),
            limit,
        )
        return [first, *(others[s.name] for s in names[1:])]

    def _one_vm(self, work: Work) -> None:
        """Boots one VM and runs scenarios on it until there are none or it is lost."""
        with self._lock:
            name = f"vm{self._vms}"
            self._vms += 1
            boots = work.distrusted or work.cold()
            make = (work.make_cold if boots else None) or work.make
        target = make(name)
        session = Session(
            target, name, work.kernel, work.profile, self._record, work.programs, work.notes
        )
        with self._lock:
            self._targets[name] = target
        end: dict[str, Any] = {"reason": "done"}
        try:
            # Whoever stops after this aborts the target.
            if not self._stop.is_set() and self._boot(session, work, end):
                self._run_all(session, work, end)
        except TargetAbortedError:
            pass
        finally:
            if self._stop.is_set():
                end = {"reason": "stopped"}
            if end["reason"] != "done":
                end["console_tail"] = list(target.console_tail())
            target.stop()
            with self._lock:
                del self._targets[name]
                if work.compiler is session:
                    work.compiler = None
            if session.begun:
                if end["reason"] == "died":
                    # It may have had more to say than the agent could pass on.
                    console = self._record.console(name)
                    session.reports.of_console(console, asked="backtraces" in end)
                self._record.event("vm_end", vm=name, **end)

    def _boot(self, session: Session, work: Work, end: dict[str, Any]) -> bool:
        try:
            with self._lock:
                needs = [needs_compiler(job.scenario) for job in work.queue]
                compile_bpf = any(needs) and (work.compiler is None or all(needs))
                if compile_bpf:
                    work.compiler = session
            session.start(compile_bpf)
        except AccidentError as accident:
            self._accident(accident, end)
            if self._stop.is_set():
                return False
            with self._lock:
                work.failed_boots += 1
                # A kernel that does not come up will not; anything else gets one more try.
                certain = accident.verdict == "BOOT_FAIL" and not session.restored
                give_up = certain or work.failed_boots >= _BOOTS
                work.distrusted |= session.restored
                rest = list(work.queue) if give_up else []
                if give_up:
                    work.queue.clear()
            if not give_up:
                self._record.note(
                    f"{work.kernel}: {accident}; once more with a fresh VM", "warning"
                )
            for job in rest:
                self._never_ran(work, job, accident)
            return False
        work.failed_boots = 0
        return True

    def _run_all(self, session: Session, work: Work, end: dict[str, Any]) -> None:
        while taken := self._take(work, session):
            placed = gather(
                taken[0].scenario,
                [job.scenario for job in taken[1:]],
                bool(session.facts["module_btf"]),
                len(taken),
            )
            group = ""
            if len(taken) > 1:
                self._groups += 1
                group = f"{session.vm}:g{self._groups}"
            members = [
                Member(scenario, job.identity(work.kernel), job.attempt, f"{n}:" if group else "")
                for n, (job, scenario) in enumerate(zip(taken, placed, strict=True))
            ]
            try:
                session.run(members, group)
            except PoisonedError as poisoned:
                if not poisoned.planned:
                    end.update(reason="poisoned", detail=str(poisoned))
                return
            except RegroupError as regroup:
                self._again(work, session, taken, group, regroup)
                if regroup.accident:
                    self._accident(regroup.accident, end)
                    return
                if regroup.ended:
                    end.update(reason="poisoned", detail=str(regroup))
                    return
            except AccidentError as accident:
                self._accident(accident, end)
                job = taken[0]
                if session.restored or self._stop.is_set():
                    # What failed in a restored VM is confirmed below.
                    return
                if accident.verdict in _RETRIED and job.attempt == 1:
                    self._record.note(
                        f"{work.kernel}: {job.scenario.name}: {accident}; once more on a fresh VM",
                        "warning",
                    )
                    with self._lock:
                        work.queue.appendleft(replace(job, attempt=2))
                return
            finally:
                self._confirm(work, session, taken, members)

    def _again(
        self, work: Work, session: Session, taken: Sequence[Job], group: str, regroup: RegroupError
    ) -> None:
        """Has those run again whose company was void: alone, or first in a booted VM."""
        names = {m.scenario.name for m in regroup.members}
        again = [job for job in taken if job.scenario.name in names]
        how = "each alone"
        if session.restored and work.make_cold and regroup.verdict not in _UNDISPUTED:
            how = "together in a VM that was booted, to confirm it"
            again = [replace(job, cold=True) for job in again]
            self._record.event("group_confirm", group=group)
        else:
            again = [replace(job, alone=True) for job in again]
        self._record.note(
            f"{work.kernel}: {group}: {regroup}; {len(again)} scenarios once more, {how}",
            "warning",
        )
        with self._lock:
            work.queue.extend(again)

    def _confirm(
        self, work: Work, session: Session, taken: Sequence[Job], members: Sequence[Member]
    ) -> None:
        """Has scenarios that failed in a restored VM run again in one that was booted.

        Nothing else changes: who was alone is alone, who had company may have some.  What
        they give there is what counts then (harness/report/model.py).
        """
        if not session.restored or work.make_cold is None or self._stop.is_set():
            return
        failed = [
            (job, member)
            for job, member in zip(taken, members, strict=True)
            if member.verdict not in ("", *_UNDISPUTED)
            # Too little was tried, or by hammers that are wrong: it would be so again.
            and not (member.verdict == "INFRA" and member.untrusted)
        ]
        for job, member in failed:
            self._record.event("scenario_confirm", scenario=member.identity)
            alone = job.alone or len(taken) == 1
            with self._lock:
                work.queue.append(replace(job, alone=alone, cold=True))
        if failed:
            first = f"{failed[0][1].verdict} of {failed[0][0].scenario.name}"
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            self._record.note(
                f"{work.kernel}: {first}{more} in a restored VM; once more in one that is booted"
            )

    @staticmethod
    def _accident(accident: AccidentError, end: dict[str, Any]) -> None:
        end.update(reason="died", verdict=accident.verdict, detail=accident.detail)
        if accident.backtraces:
            end["backtraces"] = list(accident.backtraces)

    def _never_ran(self, work: Work, job: Job, accident: AccidentError) -> None:
        scenario, identity = job.scenario, job.identity(work.kernel)
        self._record.event(
            "scenario_start", scenario=identity, name=scenario.name, kernel=work.kernel,
            vm=None, profile=work.profile.name, attempt=job.attempt,
            attachers=list(scenario.attachers),
            functions=list(scenario.functions), steps=[s.to_json() for s in scenario.steps],
            **({"matrix": list(scenario.matrix)} if scenario.matrix else {}), **scenario.wants(),
        )  # fmt: skip
        self._record.event(
            "scenario_end", scenario=identity, verdict=accident.verdict, reason=accident.detail
        )
