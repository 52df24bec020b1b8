# SPDX-License-Identifier: GPL-2.0-only
"""Models with a rule gone or wrong: does anything that was recorded contradict them?

A rule whose loss nothing contradicts is one that no scenario tests.
"""

from __future__ import annotations

import errno
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from harness import oracle
from harness.policy.profile import Profile
from harness.policy.rules import RULES, Rule
from harness.replay import Contradiction, Kernel, Run, contradictions, follow

#: Where an errno is to be wrong: what else the kernel might have said.
_OTHER_ERRNO = {errno.EINVAL: errno.EBUSY}
_WRONG_ERRNO = errno.EINVAL


@dataclass(frozen=True)
class Mutant:
    """A model with one rule gone, or with another errno for it (``errno`` not 0)."""

    rule: Rule
    errno: int = 0

    def profile(self, whole: Profile) -> Profile:
        """The profile with it."""
        if self.errno:
            return replace(whole, errnos={self.rule.name: self.errno})
        return replace(whole, without=frozenset({self.rule.name}))

    def __str__(self) -> str:
        wrong = f"gives {oracle.errno_text(self.errno)}" if self.errno else "is forgotten"
        return f"{self.rule.name} {wrong}"


def mutants(rule: Rule) -> tuple[Mutant, ...]:
    """All ways to get a rule wrong."""
    if not rule.errno:
        return (Mutant(rule),)
    return Mutant(rule), Mutant(rule, _OTHER_ERRNO.get(rule.errno, _WRONG_ERRNO))


def owns(rule: Rule, name: str) -> bool:
    """Whether a scenario is one of those that the rule names."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in rule.scenarios)


@dataclass(frozen=True)
class Judgement:
    """What became of a mutant on a kernel.

    ``noticed``: the first contradiction, None where all agree with it; ``own``: whether
    that is one of the rule's scenarios; ``ran`` and ``skipped``: how many of those the
    record has, and how many that the kernel could not run.
    """

    mutant: Mutant
    kernel: str
    noticed: Contradiction | None
    own: bool
    ran: int
    skipped: int

    @property
    def possible(self) -> bool:
        """Whether the kernel could run any of the rule's scenarios, as far as the record says."""
        return bool(self.ran or self.noticed) or not self.skipped


def judge(kernel: Kernel, rule: Rule, runs: Sequence[Run]) -> Iterator[Judgement]:
    """Each mutant of a rule on a kernel, with all that was recorded of it."""
    here = [
        g
        for run in runs
        for g in run.gatherings
        if g.kernel.release == kernel.release and not g.kernel.overridden
    ]
    ran = {name for g in here for name in g.names if owns(rule, name)}
    skipped = {
        name
        for run in runs
        for release, name in run.skipped
        if release == kernel.release and owns(rule, name) and name not in ran
    }
    # A model without a rule that is not asked for is the same model.
    concerned = [g for g in here if rule.name in g.asked and g.names]
    # The rule's own first, and small gatherings before large ones.
    concerned.sort(key=lambda g: (not any(owns(rule, n) for n in g.names), len(g.members)))
    for mutant in mutants(rule):
        noticed = None
        for gathering in concerned:
            found = contradictions(gathering, mutant.profile(gathering.kernel.profile))
            noticed = _first(rule, found) or noticed
            # A model that only came to where it makes no sense: is there a witness too?
            if noticed and noticed.index >= 0:
                break
        own = noticed is not None and owns(rule, noticed.scenario)
        yield Judgement(mutant, kernel.release, noticed, own, len(ran), len(skipped))


def _first(rule: Rule, found: Iterator[Contradiction]) -> Contradiction | None:
    """The first in one of the rule's scenarios; where there is none, the first."""
    other = None
    for contradiction in found:
        if owns(rule, contradiction.scenario):
            return contradiction
        other = other or contradiction
    return other


@dataclass
class Survey:
    """All rules against all runs.

    ``disagreements``: what the whole model says otherwise than the record: where there
    are some, nothing else is judged.  ``nowhere``: rules that are about none of the
    kernels; ``overridden``: kernels that were held to another policy than their own.
    """

    disagreements: list[Contradiction]
    judgements: list[Judgement] = field(default_factory=list)
    nowhere: list[Rule] = field(default_factory=list)
    overridden: list[str] = field(default_factory=list)

    @property
    def survivors(self) -> list[Judgement]:
        """Mutants that no scenario noticed."""
        return [j for j in self.judgements if j.noticed is None and j.possible]

    @property
    def impossible(self) -> list[Judgement]:
        """Those that the kernel has no scenario for."""
        return [j for j in self.judgements if not j.possible]


def survey(runs: Sequence[Run], rules: Iterable[Rule] = RULES.values()) -> Survey:
    """Checks the whole model against the runs, and then each of its mutants."""
    found = Survey([c for run in runs for g in run.gatherings for c in follow(g)])
    kernels = {k.release: k for run in runs for k in run.kernels.values() if not k.overridden}
    found.overridden = sorted(
        {k.release for run in runs for k in run.kernels.values() if k.overridden}
    )
    if found.disagreements:
        return found
    for rule in rules:
        about = [k for k in kernels.values() if k.has(rule)]
        if not about:
            found.nowhere.append(rule)
        for kernel in about:
            found.judgements += judge(kernel, rule, runs)
    return found
