# SPDX-License-Identifier: GPL-2.0-only
"""Each rule's scenarios would notice if a kernel broke it, or gave another errno.

What ``cohabit rules --survivors`` asks of a run's record, asked of the model alone.
"""

from __future__ import annotations

import errno
import fnmatch
from dataclasses import replace
from typing import Any

import pytest
from policy_help import run

from harness.policy import rules
from harness.policy.profile import NAMED, Profile, choose
from harness.policy.rules import Rule
from harness.scenario import catalogue
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import ANY, Scenario

LANE = next(f.name for f in FUNCTIONS.values() if f.lane is not None)
#: More of a rule's scenarios than this need not be looked through.
ENOUGH = 40
#: Nothing here runs arm64.
OURS = [rule for rule in rules.RULES.values() if "x86-64" in rule.arches]
CASES = [
    pytest.param(rule, glob, id=f"{rule.name}-{glob}") for rule in OURS for glob in rule.scenarios
]


def matching(glob: str) -> list[Scenario]:
    found = [s for s in catalogue.everything() if fnmatch.fnmatchcase(s.name, glob)]
    return [s.placed(LANE) if ANY in s.functions else s for s in found[:ENOUGH]]


def profiles(rule: Rule) -> list[Profile]:
    """Those of known releases that have the rule."""
    until = rule.until or NAMED[-1]
    return [choose(f"{a}.{b}", {}) for a, b in NAMED if rule.since <= (a, b) <= until]


def witnesses(scenario: Scenario, profile: Profile) -> list[dict[str, Any]]:
    """What is predicted of each step, but for the name of the rule."""
    found, _ = run(profile, *scenario.steps, functions=scenario.functions)
    return [prediction.to_json() | {"rule": ""} for prediction in found]


@pytest.mark.parametrize(("rule", "glob"), CASES)
def test_a_model_without_the_rule_says_otherwise(rule: Rule, glob: str) -> None:
    scenarios = matching(glob)
    assert scenarios, "there is no such scenario"
    assert any(
        witnesses(s, profile) != witnesses(s, replace(profile, without=frozenset({rule.name})))
        for profile in profiles(rule)
        for s in scenarios
    ), "no scenario notices"


@pytest.mark.parametrize("rule", [r for r in OURS if r.errno], ids=lambda r: r.name)
def test_the_errno_of_a_rule_is_noticed(rule: Rule) -> None:
    seen = set()
    for profile in profiles(rule):
        mistaken = replace(profile, errnos={rule.name: errno.EDOM})
        for scenario in (s for glob in rule.scenarios for s in matching(glob)):
            pairs = zip(witnesses(scenario, profile), witnesses(scenario, mistaken), strict=True)
            seen |= {a["errno"][0] for a, b in pairs if b["errno"] == [errno.EDOM]}
            if rule.errno in seen:
                return
    pytest.fail(f"{rule.errno} is nowhere, but {seen}")


def test_the_rules_of_misuses_are_rules() -> None:
    for rule, _, _ in rules.MISUSES.values():
        assert rules.RULES[rule.name] is rule
