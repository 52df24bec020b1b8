# SPDX-License-Identifier: GPL-2.0-only
"""What changed between two runs of the same scenarios, on two kernels.

Pure: two WholeRuns go in, a Comparison comes out.  A change has an id, one line that is
the same whenever the same change is found again; a file of such lines, or of globs over
them, says what a series is meant to change (``expectations``, ``unexpected``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from harness.errors import UsageError
from harness.report.compareread import Fact, Size, StepFacts, WholeRun, contradiction, mask
from harness.report.model import RunModel
from harness.report.views import NO_RESULT, VERDICTS, Kernel, Scenario, Vm
from harness.report.words import brief, command_line, printable, state_of_run

SCHEMA = 1
"""Raised when a key of the JSON changes its meaning; new keys may come at any time."""

KINDS = {
    "broken": "Broken",
    "untested": "Without a result, by no fault of the kernel",
    "fixed": "Fixed",
    "differs": "Different",
    "message": "New kernel messages",
    "gone": "Only in the base's run",
    "new": "Only in the head's run",
}
"""The kinds of changes, in the order of reports, with their headings."""

_MACHINE = ("engine", "accel", "accel_why", "qemu", "cpu", "cpus", "memory_mb")
_GOOD = frozenset({"PASS", "XFAIL"})
#: What a verdict must become to count as fixed, where that is not any of _GOOD.
_FIXES = {"PASS": frozenset[str](), "XFAIL": frozenset({"PASS"}), "SKIP": frozenset[str]()}


@dataclass(frozen=True)
class Change:
    """One change; ``kind`` is one of KINDS.

    ``subject`` is the scenario's name, or a message; ``detail`` what happened; ``step``
    says where (``step 2``), or is empty; ``cause`` is the same for all changes that are
    to be read as one; ``scenarios``: where a message came.
    """

    kind: str
    subject: str
    detail: str = ""
    step: str = ""
    cause: str = ""
    scenarios: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """``broken NAME``: kind and subject."""
        return f"{self.kind} {self.subject}"

    @property
    def id(self) -> str:
        """The change as one stable line: for what differs, with the detail."""
        return self.line if self.kind == "differs" else self.short

    @property
    def line(self) -> str:
        """Kind, subject, step and detail."""
        rest = " ".join(filter(None, (self.step, self.detail)))
        return f"{self.short}: {rest}" if rest else self.short


@dataclass(frozen=True)
class Item:
    """Changes of one kind with one cause."""

    kind: str
    cause: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Side:
    """One of the two runs: the kernel and what it was run on.

    ``seconds`` is the whole run's; ``state`` what must be known before believing it.
    """

    kernel: Kernel
    vm: Vm | None
    cohabit: str
    started: str
    command: str
    seconds: float
    size: Size
    counts: dict[str, int]
    state: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The outcome.

    ``still`` are the scenarios that fail in both in the same way, ``same`` is the number of
    those that did the same and are fine; ``incomplete`` says why changes may be missing.
    """

    base: Side
    head: Side
    changes: tuple[Change, ...]
    still: tuple[Change, ...]
    same: int
    incomplete: tuple[str, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """The changes by kind and cause, the most frequent cause of a kind first."""
        return grouped(self.changes)

    def count(self, kind: str) -> int:
        """How many changes of a kind there are."""
        return sum(change.kind == kind for change in self.changes)


@dataclass(frozen=True)
class Surprise:
    """What an expectation did not say, and what it said that did not happen."""

    unexpected: tuple[Change, ...] = ()
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.unexpected or self.missing)


def compare(base: WholeRun, head: WholeRun, kernels: Sequence[str] = ("", "")) -> Comparison:
    """Compares a kernel of one run with a kernel of another, scenario by scenario.

    ``kernels`` names the two (the beginning of the id is enough); it may be left empty
    for a run of one kernel.  Raises UsageError for a kernel that cannot be told.
    """
    runs = [_Run(run, _kernel(run, name)) for run, name in zip((base, head), kernels, strict=True)]
    one, other = runs
    changes: list[Change] = []
    still: list[Change] = []
    same = 0
    for name in dict.fromkeys([*one.scenarios, *other.scenarios]):
        pair = (one.scenarios.get(name), other.scenarios.get(name))
        found = list(_scenario(one.run, other.run, *pair))
        again = [change for change in found if change.kind == "still"]
        still += again
        changes += [change for change in found if change.kind != "still"]
        same += not found
    changes += _accidents(one, other)
    changes += _messages(one, other)
    incomplete = [
        f"the {which}: {line}"
        for which, run in zip(("base", "head"), (base, head), strict=True)
        for line in _incomplete(run)
    ]
    if not one.scenarios.keys() & other.scenarios.keys():
        incomplete.append("no scenario is in both runs: nothing was compared")
    return Comparison(one.side(), other.side(), tuple(changes), tuple(still), same,
                      tuple(incomplete))  # fmt: skip


def _kernel(run: RunModel, name: str) -> str:
    found = [k for k in run.kernels if k == name] or [k for k in run.kernels if k.startswith(name)]
    if len(found) == 1:
        return found[0]
    have = ", ".join(run.kernels) or "none"
    if name:
        fault = f"{'no' if not found else 'more than one'} kernel of the run is {name!r}"
    else:
        fault = "a run of one kernel is compared with another"
    raise UsageError(f"{fault}; the run has {have}", "name one of them: RUN@RELEASE")


@dataclass
class _Run:
    """A kernel of a run."""

    run: WholeRun
    kernel: str
    scenarios: dict[str, Scenario] = field(init=False)

    def __post_init__(self) -> None:
        # Of several tries that count the worst is the result.
        tries = sorted(self.run.of_kernel(self.kernel), key=_goodness)
        worst = {s.name: s for s in reversed(tries)}
        self.scenarios = {s.name: worst[s.name] for s in self.run.of_kernel(self.kernel)}

    def side(self) -> Side:
        """The side of a comparison that this is."""
        run = self.run
        vms = run.vms_of(self.kernel)
        return Side(
            run.kernel_of(self.kernel), vms[0] if vms else None, run.run.cohabit, run.run.started,
            command_line(run), run.seconds, run.sizes.get(self.kernel, Size()),
            _counts(self.scenarios.values()), tuple(state_of_run(run)),
        )  # fmt: skip


def _goodness(scenario: Scenario) -> int:
    """The worse a verdict, the less; one that nobody knows is worse than all."""
    return VERDICTS.index(scenario.verdict) if scenario.verdict in VERDICTS else -1


def _counts(scenarios: Iterable[Scenario]) -> dict[str, int]:
    found: dict[str, int] = {}
    for scenario in scenarios:
        found[scenario.verdict] = found.get(scenario.verdict, 0) + 1
    return found


def _incomplete(run: RunModel) -> list[str]:
    if run.run.interrupted:
        return ["the run was interrupted"]
    if run.cut_short:
        return ["the record has no end"]
    missing = run.not_started()
    return [f"{missing} of {run.run.planned} planned scenarios never began"] if missing else []


# --- one scenario -----------------------------------------------------------------------------


def _scenario(
    base: WholeRun, head: WholeRun, before: Scenario | None, after: Scenario | None
) -> Iterable[Change]:
    """The changes of one scenario; kind ``still`` for one that fails as before."""
    if before is None or after is None:
        there = before or after
        assert there is not None
        kind = "gone" if after is None else "new"
        yield Change(kind, there.name, there.verdict, cause=there.verdict)
        return
    name, verdicts = before.name, f"{before.verdict} -> {after.verdict}"
    if lost := {before.verdict, after.verdict} & NO_RESULT:
        of = before if before.verdict in lost else after
        why = brief(printable(of.reason))
        yield Change("untested", name, f"{verdicts}: {why}", cause=f"{verdicts}: {mask(why)}")
    elif after.verdict in _FIXES.get(before.verdict, _GOOD):
        yield _outcome("fixed", before, verdicts)
    elif after.verdict not in _GOOD and (before.verdict in _GOOD or after.failed):
        if before.verdict == after.verdict:
            yield from _still(before, after)
        elif before.failed:
            yield _outcome("differs", after, verdicts)
        else:
            yield _outcome("broken", after, verdicts)
    elif before.verdict != after.verdict:
        yield _outcome("differs", after, verdicts)
    elif after.verdict in _GOOD:
        steps = base.facts[before.id], head.facts[after.id]
        if before.xfail and before.xfail == after.xfail:
            # A report ends both, and may be read with the answer to one step or the next.
            common = min(map(len, steps))
            steps = steps[0][:common], steps[1][:common]
        alike = before.profile == after.profile
        yield from _steps(name, *steps, alike)


def _outcome(kind: str, told_by: Scenario, verdicts: str) -> Change:
    """A verdict that changed, with the reason of the one that needs one."""
    step, why = _reason(told_by)
    text = f"{verdicts}: {why}" if why else verdicts
    return Change(kind, told_by.name, text, step, _causal(text))


def _still(before: Scenario, after: Scenario) -> Iterable[Change]:
    (_, was), (step, why) = _reason(before), _reason(after)
    if _causal(was) == _causal(why):
        text = f"{after.verdict}: {why}"
        yield Change("still", after.name, text, step, _causal(text))
    else:
        text = f"{after.verdict}, but otherwise: {was} -> {why}"
        yield Change("differs", after.name, text, step, _causal(text))


def _causal(text: str) -> str:
    """A detail without the ids of attachments, which differ between like scenarios."""
    return re.sub(r"\b(hits|ops_func|trampoline|exit) (?:of|by) (?:\d+:)?[a-z]\b", r"\1", text)


def _reason(scenario: Scenario) -> tuple[str, str]:
    """Where and why a scenario did not pass."""
    for step in scenario.steps:
        if step.mismatches:
            where = f"step {step.index + 1}"
            return where, contradiction(scenario, step, step.mismatches[0])
    if scenario.verdict == "PASS":
        return "", ""
    last = scenario.steps[-1] if scenario.steps else None
    where = f"step {last.index + 1}" if last and last.observed is None else ""
    return where, mask(scenario.reason)


def _steps(
    name: str, before: Sequence[StepFacts], after: Sequence[StepFacts], alike: bool
) -> Iterable[Change]:
    """What two passed attempts showed otherwise.

    Each fact counts where it first differs.  After an errno that differs the two kernels
    are in different states, and any further difference only follows from it.
    """
    told: set[str] = set()
    for one, other in itertools.zip_longest(before, after):
        if one is None or other is None or (one.index, one.act) != (other.index, other.act):
            here = one or other
            step, text = f"step {here.index + 1}", f"{here.act}: not a step of both"
            yield Change("differs", name, text, step, text)
            return
        for key, was, now in _differing(one, other, alike):
            if key not in told:
                told.add(key)
                text = f"{one.act}: {key} {was} -> {now}"
                yield Change("differs", name, text, f"step {one.index + 1}", _causal(text))
            if key == "errno":
                return


def _differing(one: StepFacts, other: StepFacts, alike: bool) -> Iterable[tuple[str, str, str]]:
    """(key, value, value) of the facts that differ, the errno first.

    ``alike``: both runs are held to the same policy.  Where that expects two things, they
    come from what ran before on the function or runs beside it, not from the kernels.
    """
    facts = [{fact.key: fact for fact in step.facts} for step in (one, other)]
    found: list[tuple[str, str, str]] = []
    for key in dict.fromkeys([*facts[0], *facts[1]]):
        was, now = (f.get(key) or _missing(key) for f in facts)
        if was is None or now is None or was.seen == now.seen:
            continue
        if not alike or was.predicted == now.predicted:
            found.append((key, was.seen, now.seen))
    # Where one has no record at all, that is the whole difference of the two.
    gone = {key.partition(" of ")[2] for key, _, _ in found if key.startswith("record")}
    for key, was_seen, now_seen in found:
        part_of_record = key.startswith(("flag ", "count", "direct"))
        if not (part_of_record and key.partition(" of ")[2] in gone):
            yield key, was_seen, now_seen


def _missing(key: str) -> Fact | None:
    """What a fact that a step does not have stands for; None: nothing to compare."""
    if key.startswith("flag "):
        return Fact(key, "no", "no")
    if key.startswith(("hits of ", "calls of ", "trampoline of ", "held call")):
        return Fact(key, "none", "none")
    return None


# --- what is no scenario's own ----------------------------------------------------------------


def _accidents(base: _Run, head: _Run) -> Iterable[Change]:
    """Accidents of companies and VMs in the head that no scenario stands for."""
    known = set(_of_nobody(base))
    for what in dict.fromkeys(_of_nobody(head)):
        if what not in known:
            subject, verdict, why = what
            kind = "untested" if verdict in NO_RESULT else "broken"
            text = f"{verdict}: {why}"
            yield Change(kind, subject, text, cause=text)


def _of_nobody(side: _Run) -> Iterable[tuple[str, str, str]]:
    for group in side.run.group_failures():
        if group.kernel == side.kernel:
            yield "(side by side)", group.verdict, mask(group.reason)
    for vm in side.run.vm_failures():
        if vm.kernel == side.kernel:
            yield "(the VM)", vm.verdict, mask(vm.detail)


def _messages(base: _Run, head: _Run) -> Iterable[Change]:
    before = base.run.messages.get(base.kernel, {})
    for text, names in head.run.messages.get(head.kernel, {}).items():
        if text not in before:
            yield Change("message", text, cause=text, scenarios=tuple(dict.fromkeys(names)))


def grouped(changes: Iterable[Change]) -> tuple[Item, ...]:
    """Changes by kind and cause: KINDS in order, the most frequent cause first."""
    found: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        found.setdefault((change.kind, change.cause), []).append(change)
    order = [*KINDS, "still"]
    ranked = sorted(found.items(), key=lambda item: (order.index(item[0][0]), -len(item[1])))
    return tuple(Item(kind, cause, tuple(some)) for (kind, cause), some in ranked)


# --- what was expected ------------------------------------------------------------------------


def expectations(text: str, name: str) -> tuple[str, ...]:
    """The lines of an ``--expect`` file: a kind and a glob, ``#`` begins a comment.

    ``name`` is the file's, for the UsageError that a line without a kind raises.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        wanted = re.sub(r"(^|\s)#(\s.*)?$", "", line).strip()
        if not wanted or wanted.startswith("#"):
            continue
        kind, _, rest = wanted.partition(" ")
        if kind not in KINDS or kind == "untested" or not rest.strip():
            kinds = ", ".join(k for k in KINDS if k != "untested")
            raise UsageError(
                f"{name}, line {number}: {wanted!r} is no expected change",
                f"a line is a kind ({kinds}) and a scenario's name or a glob",
            )
        found.append(wanted)
    return tuple(found)


def matches(line: str, change: Change) -> bool:
    """Whether a line of an expectation speaks of a change, with its detail or without."""
    texts = (change.short, change.line)
    return line in texts or any(fnmatchcase(text, line) for text in texts)


def unexpected(comparison: Comparison, lines: Sequence[str]) -> Surprise:
    """The changes that no line speaks of, and the lines that speak of no change.

    What has no result is neither: it makes the comparison incomplete (``exit_status``).
    """
    changes = [c for c in comparison.changes if c.kind != "untested"]
    used = [False] * len(lines)
    left = []
    for change in changes:
        hit = [number for number, line in enumerate(lines) if matches(line, change)]
        for number in hit:
            used[number] = True
        if not hit:
            left.append(change)
    missing = tuple(line for line, seen in zip(lines, used, strict=True) if not seen)
    return Surprise(tuple(left), missing)


def exit_status(comparison: Comparison, surprise: Surprise | None = None) -> int:
    """0, 1 or 3.

    With a ``surprise`` (of an expectation; an empty one is none) 0 if exactly the expected
    happened, else 0 if nothing is broken; 1 if not; 3 if that cannot be known, because
    something has no result or did not run.
    """
    unknown = bool(comparison.incomplete or comparison.count("untested"))
    if surprise is None:
        wrong = comparison.count("broken") > 0
    else:
        # What is missing may be among what has no result.
        wrong = bool(surprise.unexpected) or (bool(surprise.missing) and not unknown)
    if wrong:
        return 1
    return 3 if unknown else 0


# --- JSON -------------------------------------------------------------------------------------


def to_json(comparison: Comparison, surprise: Surprise | None = None) -> dict[str, Any]:
    """The comparison as plain data; ``surprise`` where there was an expectation."""
    return {
        "schema": SCHEMA,
        "exit_status": exit_status(comparison, surprise),
        "base": _side(comparison.base),
        "head": _side(comparison.head),
        "counts": {kind: comparison.count(kind) for kind in KINDS},
        "still_failing": [_change(change) for change in comparison.still],
        "same": comparison.same,
        "incomplete": list(comparison.incomplete),
        "changes": [_change(change) for change in comparison.changes],
        "unexpected": None if surprise is None else [c.id for c in surprise.unexpected],
        "missing": None if surprise is None else list(surprise.missing),
    }


def _change(change: Change) -> dict[str, Any]:
    return {"id": change.id, **asdict(change)}


def _side(side: Side) -> dict[str, Any]:
    vm = side.vm
    return {
        "kernel": asdict(side.kernel),
        "vm": None if vm is None else {key: getattr(vm, key) for key in _MACHINE},
        "cohabit": side.cohabit,
        "started": side.started,
        "command": side.command,
        "seconds": side.seconds,
        **asdict(side.size),
        "counts": side.counts,
        "state": list(side.state),
    }
