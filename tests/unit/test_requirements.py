# SPDX-License-Identifier: GPL-2.0-only
"""What a scenario needs of a kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from policy_help import on
from recorded import RUNS

from harness.policy import rules
from harness.policy.attachers import ATTACHERS
from harness.run.requirements import needs_compiler, skip_reason
from harness.scenario import catalogue
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import ANY, Call, Detach, Misuse, Modify, Scenario

FACTS: dict[str, Any] = {
    "release": "7.3.0",
    "livepatch": True,
    "direct": True,
    "ops_func": True,
    "has_modify": True,
    "fprobe": True,
    "kprobe_multi": True,
    "tracers": ["function_graph", "function", "nop"],
    "vmlinux_btf": True,
    "module_btf": True,
    "machine": "aarch64",
    "kaslr": True,
}
VMLINUX, MODULE = "security_task_getpgid", "cohabit_f3"
BPF = {"fentry", "fexit", "fmod_ret"}
DIRECT = {"direct", "direct-share", "direct-refuse"}


def one(attacher: str, function: str = VMLINUX) -> Scenario:
    steps = (on("a", attacher, function), Call(), Detach("a"))
    return Scenario("one", (function,), steps)


def test_a_kernel_with_all_of_it_runs_all() -> None:
    for scenario in catalogue.everything():
        assert skip_reason(scenario, FACTS) is None, scenario.name


@pytest.mark.parametrize(
    ("fact", "without", "attachers", "words"),
    [
        ("livepatch", False, {"livepatch", "livepatch-replace"}, "CONFIG_LIVEPATCH"),
        ("direct", False, DIRECT, "no direct calls for modules"),
        ("ops_func", False, DIRECT - {"direct"}, "before 6.0"),
        ("fprobe", False, {"fprobe", "fprobe-exit"}, "no fprobes for modules"),
        ("kprobe_multi", False, {"kprobe-multi"}, "no kprobe-multi links"),
        ("tracers", ["function"], {"function-graph"}, "no tracer function_graph"),
        ("tracers", ["function_graph"], {"function-tracer", "instance"}, "no tracer function"),
        ("vmlinux_btf", False, BPF | {"kprobe-multi"}, "CONFIG_DEBUG_INFO_BTF"),
        ("module_btf", False, set(), ""),
        ("has_modify", False, set(), ""),
    ],
)
def test_what_each_fact_is_for(fact: str, without: object, attachers: set[str], words: str) -> None:
    facts = {**FACTS, fact: without}
    skipped = {a for a in ATTACHERS if skip_reason(one(a), facts)}
    assert skipped == attachers
    for attacher in attachers:
        assert words in (skip_reason(one(attacher), facts) or "")


def test_every_fact_is_for_something() -> None:
    """Those that are not there are asked for, or scenarios need them no more."""
    asked = set()

    class Facts(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            asked.add(key)
            return super().__getitem__(key)

    for scenario in catalogue.default():
        assert skip_reason(scenario, Facts(FACTS)) is None
        # Behind the one that is missing there may be another.
        skip_reason(scenario, Facts({**FACTS, "module_btf": False}))
    assert asked == set(FACTS)


def test_btf_of_modules_is_for_bpf_on_their_functions() -> None:
    facts = {**FACTS, "module_btf": False}
    for attacher in ATTACHERS:
        reason = skip_reason(one(attacher, MODULE), facts)
        assert bool(reason) is (attacher in BPF), attacher
        assert reason is None or "modules" in reason
        # For ANY there is a place in vmlinux.
        assert skip_reason(one(attacher, ANY), facts) is None
    # BPF here and a module's function there: nothing is missing.
    steps = (on("a", "fexit", VMLINUX), on("b", "ops", MODULE), Detach("a"), Detach("b"))
    assert skip_reason(Scenario("two", (VMLINUX, MODULE), steps), facts) is None
    # Without any BTF the first reason is the one that matters.
    reason = skip_reason(one("fexit", MODULE), {**facts, "vmlinux_btf": False})
    assert "CONFIG_DEBUG_INFO_BTF" in (reason or "")


def test_modify_needs_a_kernel_that_can() -> None:
    scenario = Scenario("m", (VMLINUX,), (on("d", "direct", VMLINUX), Modify("d", 1)))
    assert skip_reason(scenario, FACTS) is None
    reason = skip_reason(scenario, {**FACTS, "has_modify": False})
    assert "cannot be modified" in (reason or "")


@pytest.mark.parametrize("what", rules.MISUSES)
def test_misuses_are_of_the_releases_that_have_the_call(what: str) -> None:
    scenario = Scenario(what, (MODULE,), (Misuse(what, MODULE),))
    since = rules.MISUSES[what][0].since
    skipped = {release for release in ("5.10.0", "5.16.1", "6.0.3", "7.2")
               if skip_reason(scenario, {**FACTS, "release": release})}  # fmt: skip
    expected = {(5, 5): set(), (5, 16): {"5.10.0"}, (6, 0): {"5.10.0", "5.16.1"}}
    assert skipped == expected[since]


def test_one_attacher_that_cannot_be_is_enough() -> None:
    steps = (on("a", "ops", VMLINUX), on("b", "livepatch", VMLINUX), Detach("a"))
    scenario = Scenario("two", (VMLINUX,), steps)
    assert "livepatch" in (skip_reason(scenario, {**FACTS, "livepatch": False}) or "")
    assert skip_reason(scenario, {**FACTS, "direct": False, "vmlinux_btf": False}) is None


def test_a_scenario_without_attachers_runs_anywhere() -> None:
    scenario = Scenario("calls", (VMLINUX,), (Call(),))
    nothing = {**dict.fromkeys(FACTS, False), "tracers": []}
    assert skip_reason(scenario, nothing) is None
    assert not needs_compiler(scenario)


@pytest.mark.parametrize("attacher", ATTACHERS)
def test_needs_compiler(attacher: str) -> None:
    assert needs_compiler(one(attacher)) is (attacher in BPF | {"kprobe-multi"})


@pytest.mark.parametrize("run", ["6.12", "5.10-6.1-7.2-7.3"])
def test_what_real_kernels_said_of_themselves(run: str) -> None:
    """Facts of recorded kernels: what was run there is not skipped."""
    facts: dict[str, dict[str, Any]] = {}
    done = 0
    for line in (RUNS / run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["type"] == "vm_ready":
            # Facts that nobody asked for then.
            facts[event["vm"]] = {"tracers": [], "fprobe": False, **event["facts"]}
        elif event["type"] == "scenario_start":
            (scenario,) = catalogue.select([event["name"]])
            assert skip_reason(scenario, facts[event["vm"]]) is None, event["scenario"]
            done += 1
    assert done >= 20
    assert {bool(f["ops_func"]) for f in facts.values()} <= {True, False}


def test_the_functions_here_are_what_they_are_taken_for() -> None:
    assert FUNCTIONS[VMLINUX].module is None
    assert FUNCTIONS[VMLINUX].fmod_ret
    assert FUNCTIONS[MODULE].module is not None


# --- what is stirred ---------------------------------------------------------------------------


def stirred(name: str) -> Scenario:
    (scenario,) = catalogue.select([f"consistency/{name}"])
    return scenario


def test_what_stirrers_attach_is_needed_too() -> None:
    fentry = stirred("fentry/livepatch/on:cmdline_proc_show")
    assert needs_compiler(fentry)
    no_btf = {**FACTS, "vmlinux_btf": False}
    assert "no BTF" in (skip_reason(fentry, no_btf) or "")
    assert skip_reason(stirred("ops/ops/on:cohabit_hot"), no_btf) is None
    on_module = stirred("fentry/livepatch/on:cohabit_hot")
    assert "no BTF for modules" in (skip_reason(on_module, {**FACTS, "module_btf": False}) or "")
    modify = stirred("direct-modify/direct/on:cohabit_hot")
    assert "cannot be modified" in (skip_reason(modify, {**FACTS, "has_modify": False}) or "")


def test_tracers_on_all_functions_have_to_be_there() -> None:
    scenario = stirred("function-graph-all/ops/on:cohabit_hot")
    assert skip_reason(scenario, FACTS) is None
    reason = skip_reason(scenario, {**FACTS, "tracers": ["function", "nop"]})
    assert reason == "this kernel has no tracer function_graph"


def test_function_graph_everywhere_wants_the_top_before_instances_have_it() -> None:
    """kernel/trace/trace.c: trace_ok_for_array."""
    (soak,) = catalogue.select(["soak/livepatch/on:cmdline_proc_show"])
    assert skip_reason(soak, FACTS) is None
    assert skip_reason(soak, {**FACTS, "release": "6.12.118"}) is None
    reason = skip_reason(soak, {**FACTS, "release": "6.6.13"})
    assert reason == "before 6.12 function_graph is for the top instance only, which is in use"
    alone = stirred("function-graph-all/fentry/on:cmdline_proc_show")
    assert skip_reason(alone, {**FACTS, "release": "6.6.13"}) is None


def test_where_a_call_site_is_patched_in_one_step_no_window_is_widened() -> None:
    wide = replace(stirred("function-tracer/livepatch/on:cohabit_hot/widened"), arch="")
    assert "no window to hold open" in (skip_reason(wide, FACTS) or "")
    assert skip_reason(wide, {**FACTS, "machine": "x86_64"}) is None
