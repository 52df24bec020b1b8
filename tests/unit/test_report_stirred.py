# SPDX-License-Identifier: GPL-2.0-only
"""What reports say of a stir: how much was tried, what that excludes, the first wrong call."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml
from model_kernel import Event
from stir_kernel import stir_run

from harness.report import html, jsonout, junit, ktap, stirred, text
from harness.report.compareread import Fact, contradiction, facts
from harness.report.model import RunModel, read
from harness.report.progress import Progress
from harness.report.words import step_title
from harness.scenario import catalogue

PASSING = "consistency/ops/fentry/on:cmdline_proc_show"
WIDENED = "consistency/function-tracer/livepatch/on:cohabit_hot/widened"


def body(result: Event) -> None:
    one = result["hammers"][1]
    one["bodies"] = {"livepatch-a": one["calls"] - 2, "original": 2}
    one["wrong"] = {"body": 2}
    one["first"] = {
        "t": 7.5, "cpu": 1, "call": 1234, "kind": "body", "seen": "original\x1b[31m",
        "stack": ["cohabit_hot+0x1/0x2", "hammer_thread+0x3/0x4"],
    }  # fmt: skip


def model(directory: Path, name: str, spoil: Any = None) -> RunModel:
    stir_run(directory, list(catalogue.select([name])), spoil)
    return read(directory)


@pytest.fixture
def passed(tmp_path: Path) -> RunModel:
    return model(tmp_path, PASSING)


@pytest.fixture
def failed(tmp_path: Path) -> RunModel:
    return model(tmp_path, WIDENED, body)


def flat(report: str) -> str:
    """Without line breaks, which are where the width has them."""
    return re.sub(r"\s+", " ", report)


SAID = (
    "4,000,000 calls in 12.5 s: cmdline_proc_show by the kernel 1,000,000 on CPU 0, 1,000,000 on "
    "CPU 1; cmdline_proc_show by user space 1,000,000 on CPU 0, 1,000,000 on CPU 1",
    "1,000 patches of the call site (counted by a probe in the kernel's patching); rounds: 1 of "
    "ops",
    "7 calls inside windows",
    "no wrong call: a rate above 7.5e-07 (1 in 1,335,233) is excluded at 95%, of calls inside "
    "windows above 3.5e-01 (1 in 3)",
    "seed 1",
)


def test_a_pass_says_how_much_was_tried(passed: RunModel) -> None:
    said = flat(text.render(passed))
    for words in (*SAID, stirred.TCG):
        assert words in said
    assert "Consistency while code changed, 6.12.0-model" in said


def test_each_format_says_it(passed: RunModel) -> None:
    kernel = "\n".join(line.lstrip("# ") for line in ktap.render(passed).splitlines())
    (suite,) = JUnitXml.fromstring(junit.render(passed).encode())
    (case,) = suite
    page = html.render(passed)
    for words in (*SAID, stirred.TCG):
        assert words in kernel
        assert words in case.system_out
        assert words.replace("'", "&#39;") in page
    assert case.result == []


def test_json_has_it_as_numbers(passed: RunModel) -> None:
    (scenario,) = json.loads(jsonout.render(passed))["scenarios"]
    (found,) = [step["stirred"] for step in scenario["steps"] if "stirred" in step]
    assert (found["calls"], found["wrong"], found["patches"]) == (4_000_000, 0, 1000)
    assert found["excluded"] == pytest.approx(7.489e-7, rel=1e-3)
    assert found["hammers"][3] == {
        "function": "cmdline_proc_show", "by": "user", "cpu": 1, "calls": 1_000_000,
    }  # fmt: skip
    assert (found["seed"], found["emulated"], found["first_wrong"]) == (1, True, None)
    assert scenario["steps"][1]["title"] == (
        "stir by ops under calls of cmdline_proc_show (seed 1)"
    )


FIRST = (
    "the first wrong call: cohabit_hot by the kernel, 7.500000 s on CPU 1, its call 1,234, met a "
    "body that was not allowed then: original"
)


def test_a_wrong_call_is_told_with_its_stack_and_how_to_repeat_it(failed: RunModel) -> None:
    report = text.render(failed)
    said = flat(report)
    for words in (
        FIRST,
        "cohabit_hot+0x1/0x2",
        "hammer_thread+0x3/0x4",
        "2 wrong, 1.0e-06 of all calls",
        "50 windows held open for 2,000 us each: 400 calls inside",
        "2,000,000 calls, 1,000 patches, 400 calls inside windows: 2 wrong",
        f"repeat: cohabit run --kernel model:6.12 {WIDENED}",
        "predicted by ipmodify-chooses-body",
        stirred.TCG,
    ):
        assert words in said, words
    assert "excluded at 95" not in said
    assert "\x1b" not in report
    for other in (ktap.render(failed), junit.render(failed), html.render(failed)):
        assert "cohabit_hot+0x1/0x2" in other
        assert "met a body that was not allowed then: original" in other
        assert "\x1b" not in other


def test_what_says_nothing_is_no_pass_anywhere(tmp_path: Path) -> None:
    found = model(tmp_path, PASSING, lambda r: r.update(patches=3))
    words = "too little was tried: 3 of 1000 patches"
    said = flat(text.render(found))
    assert words in said
    assert "no wrong call was seen, but with INFRA that excludes nothing" in said
    assert "excluded" not in said.replace("so a rate that is excluded here is not excluded on", "")
    assert "is excluded at 95" not in html.render(found) + ktap.render(found) + junit.render(found)
    (scenario,) = json.loads(jsonout.render(found))["scenarios"]
    assert scenario["steps"][1]["stirred"]["excluded"] is None
    assert f"ERROR {words}" in ktap.render(found)
    (suite,) = JUnitXml.fromstring(junit.render(found).encode())
    assert suite.errors == 1
    assert json.loads(jsonout.render(found))["exit_status"] == 3
    assert words in html.render(found)


def test_on_real_cpus_nothing_is_said_of_emulated_ones(passed: RunModel) -> None:
    for identity, vm in passed.vms.items():
        object.__setattr__(vm, "accel", "kvm")
        passed.vms[identity] = vm
    assert "TCG" not in flat(text.render(passed)).partition("Consistency")[2]


def test_refused_steps_are_counted(tmp_path: Path) -> None:
    def spoil(result: Event) -> None:
        result["outcomes"] = {"ops": [[0, 0, 3], [0, 16, 2], [1, 0, 3]]}

    found = model(tmp_path, PASSING, spoil)
    assert "ops was refused: attach EBUSY 2 times" in flat(text.render(found))


def test_looks_at_the_call_site_claim_less(tmp_path: Path) -> None:
    found = model(tmp_path, PASSING, lambda r: r.update(patches_by="site", inside=0))
    said = flat(text.render(found))
    assert "1,000 patches of the call site (seen by looks at the call site: no fewer)" in said
    assert "inside windows" not in said


def test_a_scenario_that_does_not_stir_says_nothing(tmp_path: Path) -> None:
    found = model(tmp_path, "livepatch/stack-of-four")
    assert stirred.accounts(found, "6.12.0-model") == []
    for render in (text.render, html.render, ktap.render):
        assert "while code changed" not in render(found)


def test_titles() -> None:
    (scenario,) = catalogue.select([WIDENED])
    assert scenario.stir is not None
    data = scenario.stir.to_json()
    assert step_title(data, {}) == (
        "stir by function-tracer under calls of cohabit_hot (seed 1, windows widened by 2000 us)"
    )
    assert step_title({**data, "widen_us": 0, "fault": "stall"}, {}).endswith(
        "(seed 1, fault stall)"
    )
    all_functions = {"do": "trace-all", "tracer": "function"}
    assert step_title(all_functions, {}) == "tracer function on all functions"


def test_progress_tells_how_far_it_is(tmp_path: Path) -> None:
    events = stir_run(tmp_path, list(catalogue.select([PASSING])), looks=3)
    out = io.StringIO()
    progress = Progress(out)
    for event in events:
        if event["type"] == "stir_progress":
            event = {**event, "elapsed": event["elapsed"] + 30 * ("seq" in event)}
        progress.feed(event)
    lines = [line for line in out.getvalue().splitlines() if "4,000 calls" in line]
    # Not one for each look: what is not live would be full of them.
    assert lines == [
        f"vm0: {PASSING}, 31.0 s: 4,000 calls, 50 patches, 1 of ops",
    ]


def test_compared_runs_don_t_differ_in_how_often_a_call_was_wrong(tmp_path: Path) -> None:
    def more(result: Event) -> None:
        body(result)
        result["hammers"][1]["wrong"]["body"] = 7
        result["hammers"][1]["first"]["t"] = 99.0

    said = []
    for name, spoil in (("a", body), ("b", more)):
        found = model(tmp_path / name, WIDENED, spoil)
        (scenario,) = found.scenarios
        (step,) = scenario.bad_steps
        said.append([contradiction(scenario, step, m) for m in step.mismatches])
    assert said[0][0] == said[1][0]
    assert "N of N calls met a body that was not allowed then" in said[0][0]


def test_a_comparison_knows_that_calls_were_wrong(failed: RunModel, tmp_path: Path) -> None:
    (scenario,) = failed.scenarios
    found = {fact for step in facts(scenario) for fact in step.facts}
    assert Fact("wrong calls", "body", "none") in found
    (fine,) = model(tmp_path / "fine", WIDENED).scenarios
    assert Fact("wrong calls", "none", "none") in {f for step in facts(fine) for f in step.facts}
