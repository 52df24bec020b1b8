# SPDX-License-Identifier: GPL-2.0-only
"""A stir on its way through a session, and the verdicts that it can end with."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_kernel import Event
from stir_kernel import StirringKernel, stir_run

from harness.policy.profile import choose
from harness.policy.state import Attached, State
from harness.report import text
from harness.report.model import exit_status, read
from harness.report.words import repeat_command
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.run.stirring import agents_form, patience
from harness.scenario import catalogue
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Scenario, Stir

DATA = Path(__file__).resolve().parents[1] / "data" / "stir"
HOT = "cohabit_hot"


def named(what: str) -> Scenario:
    (scenario,) = catalogue.select([f"consistency/{what}"])
    return scenario


LIVEPATCH = named("function-tracer/livepatch/on:cohabit_hot")


def end(events: list[Event]) -> tuple[str, str]:
    (event,) = [e for e in events if e["type"] == "scenario_end"]
    return event["verdict"], event["reason"]


def stir_end(events: list[Event]) -> Event:
    (event,) = [e for e in events if e["type"] == "step_end" and "stirred" in e["observed"]]
    return event


def hammer(result: Event, number: int = 0) -> Event:
    found: Event = result["hammers"][number]
    return found


# --- verdicts -------------------------------------------------------------------------------


def test_all_of_the_catalogue_passes_on_a_kernel_that_does_right(tmp_path: Path) -> None:
    for version in ("5.10", "6.1", "6.12", "7.2", "7.3"):
        scenarios = list(catalogue.select(["consistency"]))
        events = stir_run(tmp_path / version, scenarios, version=version)
        ends = {e["scenario"]: e for e in events if e["type"] == "scenario_end"}
        assert len(ends) == len(scenarios)
        bad = {n: e["reason"] for n, e in ends.items() if e["verdict"] not in ("PASS", "SKIP")}
        assert bad == {}
        skipped = [n for n, e in ends.items() if e["verdict"] == "SKIP"]
        assert bool(skipped) is (version == "5.10")


def test_the_record_has_the_promise_before_and_the_result_after(tmp_path: Path) -> None:
    events = stir_run(tmp_path, [LIVEPATCH], looks=3)
    start = next(e for e in events if e["type"] == "step_start" and e["step"]["do"] == "stir")
    assert start["step"] == LIVEPATCH.stir.to_json() if LIVEPATCH.stir else None
    assert start["predicted"]["stirred"]["allowed"] == {HOT: ["livepatch-a"]}
    seen = stir_end(events)["observed"]["stirred"]
    assert seen["hammers"][1]["bodies"] == {"livepatch-a": 1_000_000}
    assert seen["seed"] == 1
    assert "ops" not in seen
    (began,) = [e for e in events if e["type"] == "scenario_start"]
    assert began["cpus"] == 2
    again = scenario_from_json(began)
    assert again == LIVEPATCH


def test_progress_is_for_who_looks_on_and_rarely_in_the_record(tmp_path: Path) -> None:
    events = stir_run(tmp_path, [LIVEPATCH], looks=3)
    told = [e for e in events if e["type"] == "stir_progress"]
    assert len(told) == 4
    assert ["seq" in e for e in told] == [True, False, False, True]
    lines = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["seq"] for e in lines] == list(range(len(lines)))
    assert sum(e["type"] == "stir_progress" for e in lines) == 2
    assert read(tmp_path).counts() == {"PASS": 1}


def body(result: Event) -> None:
    one = hammer(result, 1)
    one["bodies"] = {"livepatch-a": one["calls"] - 2, "original": 2}
    one["wrong"] = {"body": 2}
    one["first"] = {
        "t": 7.5, "cpu": 1, "call": 5, "kind": "body", "seen": "original", "stack": ["f+0x1/0x2"],
    }  # fmt: skip


def test_a_wrong_body_fails(tmp_path: Path) -> None:
    events = stir_run(tmp_path, [LIVEPATCH], body)
    verdict, reason = end(events)
    assert verdict == "FAIL"
    assert reason.startswith(
        "consistency: cohabit_hot calls: body: expected only livepatch-a, saw 2"
    )
    (mismatch,) = stir_end(events)["mismatches"]
    assert mismatch["rule"] == "ipmodify-chooses-body"
    assert exit_status(read(tmp_path)) == 1


@pytest.mark.parametrize(
    ("at", "meanwhile"),
    [
        (0.02, ["attach t: function-tracer to cohabit_hot: ok, from 0.000000 to 0.050000 s"]),
        # A call ends after what it met.
        (0.055, ["attach t: function-tracer to cohabit_hot: ok, from 0.000000 to 0.050000 s"]),
        (0.08, []),
        (0.1, ["detach t: ok, from 0.100000 to 0.150000 s"]),
    ],
)
def test_what_was_done_at_the_time_of_a_wrong_call_is_told(
    tmp_path: Path, at: float, meanwhile: list[str]
) -> None:
    def spoil(result: Event) -> None:
        body(result)
        hammer(result, 1)["first"]["t"] = at

    events = stir_run(tmp_path, [LIVEPATCH], spoil)
    first = hammer(stir_end(events)["observed"]["stirred"], 1)["first"]
    assert first["meanwhile"] == [f"function-tracer: {words}" for words in meanwhile]
    report = " ".join(text.render(read(tmp_path)).split())
    for words in meanwhile:
        assert f"meanwhile function-tracer: {words}" in report


def test_it_fails_even_where_too_little_was_tried(tmp_path: Path) -> None:
    def spoil(result: Event) -> None:
        body(result)
        result["patches"] = 1

    assert end(stir_run(tmp_path, [LIVEPATCH], spoil))[0] == "FAIL"


UNTRUSTED = {
    "too-little": (lambda r: r.update(patches=3), "too little was tried: 3 of 1000 patches"),
    "counter": (
        lambda r: hammer(r)["bodies"].update({"livepatch-a": 999_999}),
        "the hammer of cohabit_hot by the kernel on CPU 0 has 999999 results of 1000000 calls",
    ),
    "stall": (
        lambda r: hammer(r, 1).update(calls=0, bodies={}),
        "the hammer of cohabit_hot by the kernel made no call on CPU 1",
    ),
}


@pytest.mark.parametrize("what", list(UNTRUSTED))
def test_what_says_nothing_is_infra_and_not_tried_again(tmp_path: Path, what: str) -> None:
    spoil, words = UNTRUSTED[what]
    events = stir_run(tmp_path, [LIVEPATCH], spoil)
    assert end(events) == ("INFRA", words)
    # What was attached is detached all the same.
    assert [e["index"] for e in events if e["type"] == "step_end"] == [0, 1, 2, 3, 4]
    model = read(tmp_path)
    assert exit_status(model) == 3
    assert len(model.attempts) == 1


def test_counts_that_are_not_exact_fail(tmp_path: Path) -> None:
    def spoil(result: Event) -> None:
        result["throughout"]["stays"]["hits"] -= 1

    scenario = named("ops/fentry/on:cmdline_proc_show")
    verdict, reason = end(stir_run(tmp_path, [scenario], spoil))
    assert verdict == "FAIL"
    assert reason == ("consistency: hits of stays: expected 4000000, saw 3999999 (-1)")


def test_an_errno_that_nothing_explains_fails(tmp_path: Path) -> None:
    class Wrong(StirringKernel):
        def _on_stirred(self, wait: float) -> Event:
            reply = super()._on_stirred(wait)
            for op in reply["ops"]:
                op[2] = 22 if op[1] == 0 else op[2]
            return reply

    verdict, reason = end(_run_on(tmp_path, Wrong))
    assert verdict == "FAIL"
    assert reason.startswith("errno: stirrer function-tracer: ")
    assert "EINVAL" in reason


def _run_on(directory: Path, kind: type[StirringKernel], **more: Any) -> list[Event]:
    profile = choose("6.12.0-model", {})
    events: list[Event] = []
    with Record(directory, (lambda event: events.append(dict(event)),)) as record:

        def make(_vm: str) -> StirringKernel:
            made = kind("6.12.0-model", profile)
            vars(made).update(more)
            return made

        Schedule([Work("6.12.0-model", profile, make, [LIVEPATCH])], record, 1).run()
    return events


def test_a_stirrer_that_is_stuck_hangs(tmp_path: Path) -> None:
    events = _run_on(tmp_path, StirringKernel, stuck=["function-tracer"], looks=100)
    verdict, reason = end(events)
    assert (verdict, reason) == ("HANG", "stirring: function-tracer does not end")
    assert [e["reason"] for e in events if e["type"] == "vm_end"] == ["died"]


def test_a_kernel_that_cannot_do_it_skips(tmp_path: Path) -> None:
    wide = named("function-tracer/livepatch/on:cohabit_hot/widened")
    assert end(stir_run(tmp_path / "wide", [wide]))[0] == "PASS"
    assert wide.stir is not None
    events = stir_run(tmp_path / "old", [named("fexit/livepatch/on:rtnl_getlink")], version="5.10")
    assert end(events)[0] == "SKIP"
    assert [e["index"] for e in events if e["type"] == "step_end"] == []


# --- what the agent is told ------------------------------------------------------------------


def form(scenario: Scenario, state: State) -> Event:
    assert scenario.stir is not None
    return agents_form(state, scenario.stir, choose("6.12.0", {}))


def test_the_agent_gets_slots_and_what_calls_may_meet() -> None:
    stays = Attached("stays", "livepatch-replace", (HOT,), 0)
    told = form(named("replace/livepatch/on:cohabit_hot"), State(attached=(stays,)))
    assert told["at_least"] == 0
    steps = {s["name"]: s["steps"] for s in told["stirrers"]}
    assert [s["slot"] for s in steps["function-tracer"] if s["do"] == "attach"] == [0]
    first, gone, back, last = steps["replace"]
    assert (first["attacher"], first["replace"], first["slot"]) == ("livepatch", True, 1)
    assert (back["id"], back["slot"]) == ("stays", 0)
    assert first["during"][HOT] == ["livepatch-a", "livepatch-b", "monotonic"]
    assert first["after"] == {HOT: ["livepatch-b"]}
    assert gone["during"] == gone["after"] == {HOT: ["livepatch-b"]}
    assert last["after"] == {HOT: ["livepatch-a"]}
    assert "during" not in steps["function-tracer"][0]


def test_a_transition_that_nobody_waits_for() -> None:
    told = form(named("reversal/ops/on:cohabit_hot"), State())
    attach, disable, _ = told["stirrers"][-1]["steps"]
    assert attach["wait"] is False
    assert disable["wait"] is False
    assert set(attach["during"][HOT]) >= {"original", "livepatch-a"}


def test_patience_is_as_long_as_what_is_stirred_takes() -> None:
    waits = [
        patience(s.stir)
        for s in map(named, (
            "ops/ops/on:cohabit_hot", "reversal/ops/on:cohabit_hot",
            "function-tracer-all/ops/on:cohabit_hot",
        ))
        if s.stir
    ]  # fmt: skip
    assert waits == sorted(set(waits))


# --- deliberate faults ------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda p: p.stem)
def test_the_files_with_a_fault_have_it(path: Path) -> None:
    scenario = scenario_from_json(json.loads(path.read_text(encoding="utf-8")))
    assert scenario.stir is not None
    assert scenario.stir.fault == path.stem
    usual = named("function-tracer/ops/on:cohabit_hot")
    assert usual.stir is not None
    keys = ("fault", "calls", "patches", "seconds")
    same = replace(scenario.stir, **{key: getattr(usual.stir, key) for key in keys})
    steps = tuple(same if isinstance(s, Stir) else s for s in scenario.steps)
    assert replace(scenario, name=usual.name, steps=steps) == usual


def test_there_is_a_file_for_each_fault() -> None:
    assert {path.stem for path in DATA.glob("*.json")} == {"body", "counter", "stall"}


# --- the command to repeat it -----------------------------------------------------------------


def test_the_command_that_repeats_it_has_the_numbers_and_the_seed(tmp_path: Path) -> None:
    stir_run(tmp_path, [LIVEPATCH], body)
    model = read(tmp_path)
    kernel = next(iter(model.kernels))
    words = ("run", "--seed", "7", "--calls=9", "--jobs", "2", "--html", "x", "--widen-us", "5")
    model.run = replace(model.run, argv=words)
    found = repeat_command(model, kernel, LIVEPATCH.name)
    assert found == (
        f"cohabit run --kernel model:6.12 {LIVEPATCH.name} --seed 7 --calls=9 --widen-us 5"
    )
    other = repeat_command(model, kernel, "livepatch/stack-of-four")
    assert "--seed" not in other


def test_results_are_not_changed_by_being_judged(tmp_path: Path) -> None:
    kept: list[Event] = []
    events = stir_run(tmp_path, [LIVEPATCH], lambda r: kept.append(copy.deepcopy(r)))
    seen = dict(stir_end(events)["observed"]["stirred"])
    assert seen.pop("seed") == 1
    assert seen == kept[0]
