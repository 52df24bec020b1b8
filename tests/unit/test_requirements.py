# SPDX-License-Identifier: GPL-2.0-only
"""What a scenario needs of a kernel."""

from __future__ import annotations

import json

import pytest
from recorded import RUNS

from harness.policy.attachers import ATTACHERS
from harness.run.requirements import needs_compiler, skip_reason
from harness.scenario import catalogue
from harness.scenario.functions import FUNCTIONS, TEST_MODULE
from harness.scenario.steps import Attach, Call, Detach, Scenario

FACTS = {
    "livepatch": True,
    "direct": True,
    "ops_func": True,
    "vmlinux_btf": True,
    "module_btf": True,
}
VMLINUX, MODULE = "security_task_getpgid", "cohabit_f3"
BPF = {"fentry", "fexit", "fmod_ret"}


def one(attacher: str, function: str = VMLINUX) -> Scenario:
    steps = (Attach("a", attacher, function), Call(), Detach("a"))
    return Scenario("one", (function,), steps)


def test_a_kernel_with_all_of_it_runs_all() -> None:
    for scenario in catalogue.everything():
        assert skip_reason(scenario, FACTS) is None, scenario.name


@pytest.mark.parametrize(
    ("fact", "attachers", "words"),
    [
        ("livepatch", {"livepatch"}, "CONFIG_LIVEPATCH"),
        ("direct", {"direct", "direct-share"}, "no direct calls for modules"),
        ("ops_func", {"direct-share"}, "before 6.0"),
        ("vmlinux_btf", BPF, "CONFIG_DEBUG_INFO_BTF"),
        ("module_btf", set(), ""),
    ],
)
def test_what_each_fact_is_for(fact: str, attachers: set[str], words: str) -> None:
    facts = {**FACTS, fact: False}
    skipped = {a for a in ATTACHERS if skip_reason(one(a), facts)}
    assert skipped == attachers
    for attacher in attachers:
        assert words in (skip_reason(one(attacher), facts) or "")


def test_btf_of_modules_is_for_bpf_on_their_functions() -> None:
    facts = {**FACTS, "module_btf": False}
    for attacher in ATTACHERS:
        reason = skip_reason(one(attacher, MODULE), facts)
        assert bool(reason) is (attacher in BPF), attacher
        assert reason is None or "modules" in reason
    # BPF here and a module's function there: nothing is missing.
    steps = (Attach("a", "fexit", VMLINUX), Attach("b", "ops", MODULE), Detach("a"), Detach("b"))
    assert skip_reason(Scenario("two", (VMLINUX, MODULE), steps), facts) is None
    # Without any BTF the first reason is the one that matters.
    reason = skip_reason(one("fexit", MODULE), {**facts, "vmlinux_btf": False})
    assert "CONFIG_DEBUG_INFO_BTF" in (reason or "")


def test_one_attacher_that_cannot_be_is_enough() -> None:
    steps = (Attach("a", "ops", VMLINUX), Attach("b", "livepatch", VMLINUX), Detach("a"))
    scenario = Scenario("two", (VMLINUX,), steps)
    assert "livepatch" in (skip_reason(scenario, {**FACTS, "livepatch": False}) or "")
    assert skip_reason(scenario, {**FACTS, "direct": False, "vmlinux_btf": False}) is None


def test_a_scenario_without_attachers_runs_anywhere() -> None:
    scenario = Scenario("calls", (VMLINUX,), (Call(),))
    assert skip_reason(scenario, dict.fromkeys(FACTS, False)) is None
    assert not needs_compiler(scenario)


@pytest.mark.parametrize("attacher", ATTACHERS)
def test_needs_compiler(attacher: str) -> None:
    assert needs_compiler(one(attacher)) is (attacher in BPF)


@pytest.mark.parametrize("run", ["6.12", "5.10-6.1-7.2-7.3"])
def test_what_real_kernels_said_of_themselves(run: str) -> None:
    """Facts of recorded kernels: what was run there is not skipped."""
    facts, done = {}, 0
    for line in (RUNS / run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["type"] == "vm_ready":
            facts[event["vm"]] = event["facts"]
        elif event["type"] == "scenario_start":
            (scenario,) = catalogue.select([event["name"]])
            assert skip_reason(scenario, facts[event["vm"]]) is None, event["scenario"]
            done += 1
    assert done >= 20
    assert {bool(f["ops_func"]) for f in facts.values()} <= {True, False}
    assert all(FUNCTIONS[name].module == TEST_MODULE for name in (MODULE,))
