# SPDX-License-Identifier: GPL-2.0-only
"""Running the kernel's own livepatch selftests on a target, with the time they take."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.errors import InfraError
from harness.kernels.selftests import DIRECTORY
from harness.target.protocol import Target, TargetGoneError, TargetSilentError

#: Seconds on a fast machine; the target scales them.
BOOT_TIMEOUT = 12.0
#: A script waits up to a minute in its own time before it gives up (functions.sh: loop_until).
SCRIPT_TIMEOUT = 60.0
REPLY_TIMEOUT = 6.0

#: One test's result is somewhere up to the next test: what a program says on its standard
#: error can come before it.
_TEST = re.compile(r"^TEST: (.*?) \.\.\. (.*?)(?=^TEST: |\Z)", re.M | re.S)
_REASON = re.compile(r"^(ERROR|SKIP): (.*)$", re.M)


@dataclass(frozen=True)
class Result:
    """One ``TEST:`` line: ``outcome`` is ok, not ok or SKIP; ``reason`` why it is not ok."""

    name: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Script:
    """One script that was run: ``seconds`` of the host; ``trouble`` is "" when all went well."""

    name: str
    seconds: float
    tests: tuple[Result, ...]
    trouble: str


@dataclass(frozen=True)
class Rate:
    """What scripts did that went well: the others' time says nothing."""

    tests: int
    seconds: float

    @classmethod
    def of(cls, scripts: Sequence[Script]) -> Rate:
        """Adds up."""
        well = [script for script in scripts if not script.trouble]
        return cls(sum(len(s.tests) for s in well), sum(s.seconds for s in well))

    @property
    def a_second(self) -> float:
        """Tests a second; 0 when none went well."""
        return self.tests / self.seconds if self.tests else 0.0


def parse(output: str) -> tuple[Result, ...]:
    """Returns the tests that a script's output (both streams) tells of, in order."""
    return tuple(_test(name, rest) for name, rest in _TEST.findall(output))


def _test(name: str, rest: str) -> Result:
    # functions.sh: check_result, die, skip; after the dots or on a line of their own.
    if re.search(r"^ok$", rest, re.M):
        return Result(name, "ok")
    if reason := _REASON.search(rest):
        return Result(name, "SKIP" if reason[1] == "SKIP" else "not ok", reason[2])
    return Result(name, "not ok", "" if "not ok" in rest else "it has no result")


def run(
    make: Callable[[str], Target],
    scripts: Sequence[str],
    say: Callable[[str], None],
) -> tuple[Script, ...]:
    """Runs the scripts one after the other on a target that has the selftests' layer.

    ``make`` gives a target that is not started, by a name for its record.  What goes wrong
    with a script is in its result; the next one then gets a fresh target.  Raises
    InfraError when a target does not come up, or its agent fails.
    """
    done: list[Script] = []
    target: Target | None = None
    try:
        for script in scripts:
            if target is None:
                target = make(f"selftests{len(done)}")
                _boot(target)
            done.append(_run(target, script))
            say(_words(done[-1]))
            if done[-1].trouble:
                target.stop()
                target = None
    finally:
        if target is not None:
            target.stop()
    return tuple(done)


def _words(script: Script) -> str:
    well = sum(test.outcome == "ok" for test in script.tests)
    trouble = f"; {script.trouble}" if script.trouble else ""
    return f"selftests/livepatch/{script.name}: {well} ok, {script.seconds:.1f} s{trouble}"


def _boot(target: Target) -> None:
    target.start()
    try:
        target.request({"op": "run", "argv": ["true"], "timeout": REPLY_TIMEOUT}, BOOT_TIMEOUT)
    except (TargetGoneError, TargetSilentError) as error:
        reason = target.boot_failure() or target.crash() or str(error) or "no answer"
        raise InfraError(f"the VM for selftests/livepatch did not come up: {reason}") from error


def _run(target: Target, script: str) -> Script:
    argv = ["env", "-C", f"/{DIRECTORY}", "bash", f"./{script}"]
    limit = SCRIPT_TIMEOUT * target.slowdown
    request = {"op": "run", "argv": argv, "timeout": limit}
    began = time.monotonic()
    try:
        result = target.request(request, SCRIPT_TIMEOUT + REPLY_TIMEOUT)["result"]
    except TargetGoneError as gone:
        # The console is behind the channel: let it come to its end.
        target.ended(1.0)
        return Script(script, time.monotonic() - began, (), target.crash() or str(gone))
    except TargetSilentError:
        return Script(script, time.monotonic() - began, (), target.crash() or "the VM hung")
    seconds = time.monotonic() - began
    tests = parse(result["output"])
    return Script(script, seconds, tests, _trouble(result["status"], result["output"], tests))


def _trouble(status: int | None, output: str, tests: Sequence[Result]) -> str:
    if status is None:
        return "not over in time" + (f", in {tests[-1].name!r}" if tests else "")
    bad = next((test for test in tests if test.outcome != "ok"), None)
    if bad is not None:
        return ": ".join(filter(None, (bad.name, bad.outcome, bad.reason)))
    if status or not tests:
        return f"status {status}: {(output.strip() or 'no output').splitlines()[-1]}"
    return ""
