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
from policy_help import ARM_BARE, run

from harness.policy import rules
from harness.policy.profile import NAMED, Profile, choose, release_version
from harness.policy.rules import Rule
from harness.scenario import catalogue
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import ANY, Scenario

LANE = next(f.name for f in FUNCTIONS.values() if f.lane is not None)
#: More of a rule's scenarios than this need not be looked through.
ENOUGH = 40
#: A kernel of each release that was run, and one without CALL_OPS.
KERNELS = {
    "x86-64": [choose(f"{a}.{b}", {}) for a, b in NAMED],
    "arm64": [*(choose(f"{a}.{b}", {}, arch="arm64") for a, b in NAMED[2:]), ARM_BARE],
}


def profiles(rule: Rule, arch: str) -> list[Profile]:
    """Those of known kernels that have the rule."""
    return [
        profile
        for profile in KERNELS[arch]
        if rule.holds(arch, release_version(profile.name)) and rule.concerns(profile)
    ]


OURS = [(rule, arch) for rule in rules.RULES.values() for arch in KERNELS if arch in rule.arches]
CASES = [
    pytest.param(rule, arch, glob, id=f"{rule.name}-{arch}-{glob}")
    for rule, arch in OURS
    for glob in rule.scenarios
]


def matching(glob: str) -> list[Scenario]:
    found = [s for s in catalogue.everything() if fnmatch.fnmatchcase(s.name, glob)]
    return [s.placed(LANE) if ANY in s.functions else s for s in found[:ENOUGH]]


def witnesses(scenario: Scenario, profile: Profile) -> list[dict[str, Any]]:
    """What is predicted of each step, but for the name of the rule."""
    found, _ = run(profile, *scenario.steps, functions=scenario.functions, reach=scenario.reach)
    return [prediction.to_json() | {"rule": ""} for prediction in found]


def test_every_rule_is_about_a_kernel_that_was_run() -> None:
    assert [(r.name, arch) for r, arch in OURS if not profiles(r, arch)] == []


@pytest.mark.parametrize(("rule", "arch", "glob"), CASES)
def test_a_model_without_the_rule_says_otherwise(rule: Rule, arch: str, glob: str) -> None:
    scenarios = matching(glob)
    assert scenarios, "there is no such scenario"
    assert any(
        witnesses(s, profile) != witnesses(s, replace(profile, without=frozenset({rule.name})))
        for profile in profiles(rule, arch)
        for s in scenarios
    ), "no scenario notices"


@pytest.mark.parametrize(
    ("rule", "arch"), [pytest.param(r, a, id=f"{r.name}-{a}") for r, a in OURS if r.errno]
)
def test_the_errno_of_a_rule_is_noticed(rule: Rule, arch: str) -> None:
    seen = set()
    for profile in profiles(rule, arch):
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
