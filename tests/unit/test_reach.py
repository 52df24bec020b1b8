# SPDX-License-Identifier: GPL-2.0-only
"""Direct trampolines near and far: scenarios, what is predicted, and what contradicts it."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_kernel import CALLER, FAR, NEAR, SITE, bl, names, record_run
from policy_help import ARM6_12, ARM7_2, ARM_BARE, on, run

from harness.cli.run import boots
from harness.errors import UsageError
from harness.ftrace.site import Site
from harness.oracle import Observation, compare_own, observation
from harness.policy import rules
from harness.policy.profile import Profile
from harness.policy.site import SitePrediction
from harness.report import sites, text
from harness.report.model import RunModel
from harness.run.requirements import skip_reason
from harness.scenario import catalogue, reach
from harness.scenario.company import sociable
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Attach, Call, Detach, Load, Modify, Scenario, Step, Unload

F = "cmdline_proc_show"
SCENARIOS = {s.name: s for s in reach.reaches()}
NOP = SitePrediction("nop")


def direct(far: bool = False) -> Attach:
    return Attach("d", "direct", (F,), far=far)


def predicted(profile: Profile, *steps: Step, where: str = "near") -> list[SitePrediction]:
    found, _ = run(profile, *steps, functions=(F,), reach=where)
    return [prediction.site[F] for prediction in found]


# --- the catalogue ----------------------------------------------------------------------------


def test_every_kind_is_tried_near_and_far_in_every_way() -> None:
    kinds = {name.split("/")[1] for name in SCENARIOS}
    assert kinds == {"direct", "direct-share", "fentry", "fexit"}
    for kind in kinds:
        for where in ("near", "far"):
            assert f"reach/{kind}/{where}/alone/on:vmlinux" in SCENARIOS
            assert fnmatch.filter(SCENARIOS, f"reach/{kind}/{where}/then:*")
            assert fnmatch.filter(SCENARIOS, f"reach/{kind}/{where}/after:*")
            assert fnmatch.filter(SCENARIOS, f"reach/{kind}/{where}/alone/on:module") or (
                kind in ("fentry", "fexit") and where == "near"
            )
    assert len(fnmatch.filter(SCENARIOS, "reach/direct/*/modify*/on:*")) == 12
    assert {s.name for s in catalogue.default()} >= set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda s: s.name)
def test_each_is_what_its_file_says(scenario: Scenario) -> None:
    assert scenario_from_json(scenario.to_json()) == scenario
    assert scenario.arch == "arm64"
    assert scenario.reach == scenario.name.split("/")[2]
    assert not sociable(scenario)
    # BPF's trampolines are far by where the kernel lies; a module's have to be near first.
    bpf = scenario.name.split("/")[1] in ("fentry", "fexit")
    moved = (bpf and scenario.reach == "far") or "with-kaslr" in scenario.name
    assert scenario.boot == (() if moved else ("nokaslr",))


FILE: dict[str, Any] = {
    "name": "mine",
    "arch": "arm64",
    "reach": "near",
    "boot": ["nokaslr", "foo=1,2"],
    "steps": [
        {"do": "attach", "id": "d", "attacher": "direct", "function": F, "far": True},
        {"do": "modify", "id": "d", "alternate": 3},
    ],
}


def test_a_file_with_all_of_it() -> None:
    scenario = scenario_from_json(FILE)
    assert (scenario.arch, scenario.reach, scenario.boot) == (
        "arm64", "near", ("nokaslr", "foo=1,2"),
    )  # fmt: skip
    assert scenario.steps == (direct(far=True), Modify("d", 3))
    assert scenario.to_json() == {"functions": [F], **FILE}
    assert str(scenario.steps[0]) == f"attach d: far direct to {F}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arch": "sparc"}, "no architecture"),
        ({"arch": None}, "elsewhere than on arm64"),
        ({"arch": "x86_64", "reach": None}, "far trampolines elsewhere than on arm64"),
        ({"reach": "middling"}, "no reach"),
        ({"boot": "nokaslr"}, "list of words"),
        ({"boot": ["a b"]}, "list of words"),
        ({"boot": ["a';rm"]}, "list of words"),
    ],
)
def test_files_that_make_no_sense(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        scenario_from_json(FILE | change)


def test_far_is_for_trampolines_of_a_module() -> None:
    step = {"do": "attach", "id": "d", "attacher": "fentry", "function": F, "far": True}
    with pytest.raises(UsageError, match="no far trampoline"):
        scenario_from_json(FILE | {"steps": [step]})
    for alternate in (4, -1, True, "1", None):
        steps = [FILE["steps"][0], {"do": "modify", "id": "d", "alternate": alternate}]
        with pytest.raises(UsageError, match="alternate"):
            scenario_from_json(FILE | {"steps": steps})


def test_what_a_kernel_lacks_for_it() -> None:
    facts = {
        "machine": "aarch64", "kaslr": True, "livepatch": True, "direct": True, "ops_func": True,
        "fprobe": True, "tracers": ["function"], "has_modify": True, "vmlinux_btf": True,
        "module_btf": True, "kprobe_multi": True, "release": "7.2.0",
    }  # fmt: skip
    far = SCENARIOS["reach/fentry/far/alone/on:vmlinux"]
    assert skip_reason(far, facts) is None
    assert "KASLR" in (skip_reason(far, facts | {"kaslr": False}) or "")
    assert "arm64" in (skip_reason(far, facts | {"machine": "x86_64"}) or "")
    near = SCENARIOS["reach/direct/far/alone/on:vmlinux"]
    assert skip_reason(near, facts | {"kaslr": False}) is None


# --- the model --------------------------------------------------------------------------------


def test_one_alone_is_called_by_its_bl_where_that_leads() -> None:
    steps = (direct(), Call(), Detach("d"))
    there = SitePrediction("direct", "near", calls_back=True)
    assert predicted(ARM7_2, *steps) == [there, there, NOP]
    # Its own trampoline is near whatever is promised of BPF's.
    assert predicted(ARM7_2, *steps, where="far") == [there, there, NOP]


def test_one_out_of_reach_goes_by_ftrace_caller() -> None:
    far = SitePrediction("ftrace_caller", "far", calls_back=True)
    assert predicted(ARM6_12, direct(far=True), Detach("d")) == [far, NOP]
    program = on("p", "fexit", F)
    assert predicted(ARM7_2, program, Detach("p"), where="far") == [far, NOP]
    assert predicted(ARM7_2, program)[0].path == "direct"


def test_a_second_user_takes_the_call_site() -> None:
    for first in (direct(), direct(far=True)):
        found = predicted(ARM7_2, first, on("s", "ops", F), Detach("s"), Detach("d"))
        assert found[1] == SitePrediction("ftrace_caller", found[0].reach, calls_back=False)
        assert found[2:] == [found[0], NOP]


def test_a_program_beside_another_is_still_alone() -> None:
    found = predicted(ARM7_2, on("a", "fentry", F), on("b", "fexit", F))
    assert found[0] == found[1]


def test_modify_moves_between_near_and_far() -> None:
    steps = (direct(), *(Modify("d", n) for n in (2, 3, 1)), Detach("d"))
    found, state = run(ARM7_2, *steps, functions=(F,), reach="near")
    assert [p.site[F].path for p in found] == [
        "direct", "ftrace_caller", "ftrace_caller", "direct", "nop",
    ]  # fmt: skip
    records = [p.registry[F] for p in found]
    assert [r.direct if r else None for r in records] == [
        "cohabit_direct_tramp_0", "cohabit_far_tramp_0", "cohabit_far_tramp_8",
        "cohabit_direct_tramp_8", None,
    ]  # fmt: skip
    assert [p.behaviour[F].via.get("d") for p in found] == [0, 2, 3, 1, None]
    assert not state.attached


def test_where_nothing_was_attached_nothing_is_patched() -> None:
    assert predicted(ARM_BARE, direct()) == [NOP]
    assert predicted(ARM7_2, on("s", "ops", F)) == [SitePrediction("ftrace_caller")]


def test_a_function_that_is_gone_has_none() -> None:
    gone, _ = run(ARM7_2, Unload(), Load(), functions=("cohabit_f8", F), reach="near")
    assert [p.site["cohabit_f8"].path for p in gone] == ["absent", "nop"]
    assert [p.site[F].path for p in gone] == ["nop", "nop"]
    seen = looked({"errno": 3})
    for wanted, contradicted in (("absent", []), ("nop", ["ESRCH (3)"])):
        site = {F: SitePrediction(wanted)}
        bare = replace(gone[0], registry={}, behaviour={}, site=site)
        assert [m.seen for m in compare_own(bare, seen, ())] == contradicted


def test_only_a_scenario_that_promises_has_call_sites() -> None:
    found, _ = run(ARM7_2, direct(), functions=(F,))
    assert found[0].site == {}
    assert "site" not in found[0].to_json()


# --- whole runs -------------------------------------------------------------------------------


def without(profile: Profile) -> Profile:
    return replace(profile, without=frozenset({"branch-range"}))


def test_a_kernel_that_does_right(tmp_path: Path) -> None:
    events = record_run(tmp_path, list(SCENARIOS.values()), ("7.2",), arch="arm64")
    assert set(names(events, "PASS")) == set(SCENARIOS)
    model = RunModel()
    for event in events:
        model.feed(event)
    found = sites.ways(model, "7.2.0-model")
    assert {(way.decoded.split("_")[0], way.reach) for way in found} == {
        ("bl cohabit", "near"), ("bl bpf", "near"), ("bl ftrace", "near"), ("bl ftrace", "far"),
        ("bl ftrace", ""),
    }  # fmt: skip
    shown = text.render(model)
    assert "Call sites of 7.2.0-model" in shown
    assert f"bl cohabit_direct_tramp_0 ({bl(NEAR):#010x}); cohabit_direct_tramp_0 near" in shown
    assert "cohabit_far_tramp_0 far, -2.0 GB" in shown


def test_a_kernel_without_the_fallback_is_found_out(tmp_path: Path) -> None:
    alone = [s for s in SCENARIOS.values() if "/alone/" in s.name]
    events = record_run(tmp_path, alone, ("7.2",), without, arch="arm64")
    assert set(names(events, "FAIL")) == {s.name for s in alone if s.reach == "far"}
    found = [m for e in events if e["type"] == "step_end" for m in e["mismatches"]]
    assert {(m["witness"], m["rule"]) for m in found} == {("site", rules.BRANCH_RANGE.name)}


def test_scenarios_of_arm64_are_skipped_elsewhere(tmp_path: Path) -> None:
    events = record_run(tmp_path, [SCENARIOS["reach/direct/near/alone/on:vmlinux"]], ("7.2",))
    assert len(names(events, "SKIP")) == 1


def test_a_vm_for_each_command_line_and_none_for_another_architecture() -> None:
    found = boots([*SCENARIOS.values(), plain := Scenario("p", (F,), (Call(),))], "arm64")
    assert list(found) == [(("nokaslr",), 1), ((), 1)]
    assert sum(map(len, found.values())) == len(SCENARIOS) + 1
    assert boots([*SCENARIOS.values(), plain], "x86_64") == {((), 1): [plain]}
    assert boots(list(SCENARIOS.values()), "x86_64") == {}


def test_what_is_for_another_architecture_is_not_missed() -> None:
    model = RunModel()
    model.feed({"seq": 0, "type": "run_start", "format": 1, "planned": 3})
    assert model.not_started() == 3
    model.feed({"seq": 1, "type": "kernel", "kernel": "7.2", "left_out": 2})
    assert model.not_started() == 1


# --- one lie at a time ------------------------------------------------------------------------

TRUTH: dict[str, dict[str, Any]] = {
    "near": {
        "address": SITE, "caller": CALLER, "trampoline": NEAR, "ops": 1, "direct_call": NEAR,
        "instruction": bl(NEAR), "veneer": [0] * 4,
    },
    "far": {
        "address": SITE, "caller": CALLER, "trampoline": FAR, "ops": 1, "direct_call": FAR,
        "instruction": bl(CALLER), "veneer": [0] * 4,
    },
}  # fmt: skip


def looked(site: dict[str, Any] | None) -> Observation:
    return observation(
        {
            "enabled_functions": "", "calls": {}, "livepatch": {}, "ftrace_enabled": 1, "log": [],
            "log_complete": True, "sites": {F: site} if site else {},
        }
    )  # fmt: skip


def lies(where: str, **change: Any) -> list[str]:
    """What is contradicted, and how."""
    found, _ = run(ARM7_2, direct(far=where == "far"), functions=(F,), reach=where)
    seen = looked({**TRUTH[where], **change})
    mismatches = compare_own(replace(found[0], registry={}, behaviour={}), seen, ())
    assert {m.rule for m in mismatches} <= {"branch-range"}
    return [f"{m.what}: {m.expected}, {m.seen}" for m in mismatches]


def test_the_truth() -> None:
    assert lies("near") == []
    assert lies("far") == []


def test_a_bl_to_ftrace_caller_within_reach() -> None:
    assert lies("near", instruction=bl(CALLER)) == [
        f"{F} call site: direct, ftrace_caller (bl ftrace_caller)"
    ]


def test_a_bl_that_cannot_lead_so_far() -> None:
    (told,) = lies("far", instruction=bl(FAR))
    assert told.startswith(f"{F} call site: ftrace_caller, unknown (bl 0x")


def test_a_call_site_that_was_never_patched() -> None:
    assert lies("far", instruction=0xD503201F) == [f"{F} call site: ftrace_caller, nop (nop)"]


def test_an_ops_that_does_not_know_the_trampoline() -> None:
    assert lies("far", direct_call=0) == [f"{F} ops leads to the trampoline: True, False"]


def test_a_trampoline_elsewhere_than_promised() -> None:
    told = lies("far", trampoline=NEAR, direct_call=NEAR)
    assert told == [f"{F} trampoline: far, near (33554432 bytes)"]
    assert lies("near", trampoline=0, direct_call=0, instruction=bl(CALLER))[0] == (
        f"{F} trampoline: near, None"
    )


def test_call_sites_that_were_not_looked_at() -> None:
    found, _ = run(ARM7_2, direct(), functions=(F,), reach="near")
    bare = replace(found[0], registry={}, behaviour={})
    assert [m.seen for m in compare_own(bare, looked(None), ())] == ["nothing"]
    assert [m.seen for m in compare_own(bare, looked({"errno": 3}), ())] == ["ESRCH (3)"]
    assert looked({"errno": 3}).sites[F] == Site(errno=3)
