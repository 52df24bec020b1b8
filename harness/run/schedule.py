# SPDX-License-Identifier: GPL-2.0-only
"""Which scenarios run where: several VMs at a time, a fresh one after an accident."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.policy.profile import Profile
from harness.scenario.steps import Scenario
from harness.target.protocol import Target, TargetAbortedError

from .record import Record
from .requirements import needs_compiler
from .session import AccidentError, PoisonedError, Session

#: A second VM for the same kernel is booted only for more work than this.
_WORTH_A_BOOT = 12
#: What may be tried again, once, on a fresh VM: our own fault, or nobody knows whose.
_RETRIED = ("LOST", "INFRA")
#: This many VMs in a row that did not come up, and the kernel's rest is given up.
_BOOTS = 2

TargetMaker = Callable[[str], Target]


@dataclass
class Work:
    """A kernel and what is to be run on it; ``make`` gives a target for a VM's name."""

    kernel: str
    profile: Profile
    make: TargetMaker
    scenarios: Sequence[Scenario]
    queue: collections.deque[tuple[Scenario, int]] = field(default_factory=collections.deque)
    workers: int = 0
    failed_boots: int = 0
    #: The VM that compiles the BPF programs and takes the scenarios that need them.
    compiler: Session | None = None


class Schedule:
    """Runs all work with ``jobs`` VMs at a time, on threads; the record has the outcome.

    ``run`` returns when everything was run or ``stop`` was called; ``stop`` is
    safe from any thread.
    """

    def __init__(self, works: Sequence[Work], record: Record, jobs: int) -> None:
        self._works = works
        self._record = record
        self._jobs = jobs
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._finished = threading.Event()
        self._targets: dict[str, Target] = {}
        self._vms = 0
        self._errors: list[BaseException] = []
        for work in works:
            work.queue.extend((scenario, 1) for scenario in work.scenarios)

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
        with self._lock:
            self._stop.set()
            targets = list(self._targets.values())
        for target in targets:
            target.abort()

    def _worker(self) -> None:
        try:
            while (work := self._next_work()) is not None:
                try:
                    self._one_vm(work)
                finally:
                    with self._lock:
                        work.workers -= 1
        except BaseException as error:
            self._errors.append(error)
            self.stop()

    def _next_work(self) -> Work | None:
        """The kernel with the most left to do for each VM that would be on it."""
        with self._lock:
            if self._stop.is_set():
                return None
            open_works = [
                w for w in self._works
                if w.queue and (w.workers == 0 or len(w.queue) / (w.workers + 1) > _WORTH_A_BOOT)
            ]  # fmt: skip
            if not open_works:
                return None
            work = max(open_works, key=lambda w: len(w.queue) / (w.workers + 1))
            work.workers += 1
            return work

    def _take(self, work: Work, session: Session) -> tuple[Scenario, int] | None:
        """The next scenario for a VM: with the BPF compiler's work done, one that needs it.

        Compiling takes as long as a boot, so of several VMs only the first does it,
        unless much is left to share.
        """
        with self._lock:
            if not work.queue or self._stop.is_set():
                return None
            # The last one may cost its VM: it waits for its turn.
            first = list(work.queue)[:-1] or list(work.queue)
            for taken in first:
                if needs_compiler(taken[0]) == session.compiled:
                    work.queue.remove(taken)
                    return taken
            if not session.compiled and work.workers > 1 and len(work.queue) <= _WORTH_A_BOOT:
                return None
            return work.queue.popleft()

    def _one_vm(self, work: Work) -> None:
        """Boots one VM and runs scenarios on it until there are none or it is lost."""
        with self._lock:
            name = f"vm{self._vms}"
            self._vms += 1
        target = work.make(name)
        session = Session(target, name, work.kernel, work.profile, self._record)
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
                self._record.event("vm_end", vm=name, **end)

    def _boot(self, session: Session, work: Work, end: dict[str, Any]) -> bool:
        try:
            with self._lock:
                needs = [needs_compiler(scenario) for scenario, _ in work.queue]
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
                give_up = accident.verdict == "BOOT_FAIL" or work.failed_boots >= _BOOTS
                rest = list(work.queue) if give_up else []
                if give_up:
                    work.queue.clear()
            if not give_up:
                self._record.note(
                    f"{work.kernel}: {accident}; once more with a fresh VM", "warning"
                )
            for scenario, attempt in rest:
                self._never_ran(work, scenario, attempt, accident)
            return False
        work.failed_boots = 0
        return True

    def _run_all(self, session: Session, work: Work, end: dict[str, Any]) -> None:
        while (taken := self._take(work, session)) is not None:
            scenario, attempt = taken
            try:
                session.run(scenario, f"{work.kernel}/{scenario.name}#{attempt}", attempt)
            except PoisonedError as poisoned:
                end.update(reason="poisoned", detail=str(poisoned))
                return
            except AccidentError as accident:
                self._accident(accident, end)
                if accident.verdict in _RETRIED and attempt == 1 and not self._stop.is_set():
                    self._record.note(
                        f"{work.kernel}: {scenario.name}: {accident}; once more on a fresh VM",
                        "warning",
                    )
                    with self._lock:
                        work.queue.appendleft((scenario, 2))
                return

    @staticmethod
    def _accident(accident: AccidentError, end: dict[str, Any]) -> None:
        end.update(reason="died", verdict=accident.verdict, detail=accident.detail)
        if accident.backtraces:
            end["backtraces"] = list(accident.backtraces)

    def _never_ran(
        self, work: Work, scenario: Scenario, attempt: int, accident: AccidentError
    ) -> None:
        identity = f"{work.kernel}/{scenario.name}#{attempt}"
        self._record.event(
            "scenario_start", scenario=identity, name=scenario.name, kernel=work.kernel,
            vm=None, profile=work.profile.name, attempt=attempt,
            functions=list(scenario.functions), steps=[s.to_json() for s in scenario.steps],
            **({"matrix": list(scenario.matrix)} if scenario.matrix else {}),
        )  # fmt: skip
        self._record.event(
            "scenario_end", scenario=identity, verdict=accident.verdict, reason=accident.detail
        )
