# SPDX-License-Identifier: GPL-2.0-only
"""The record of a run, read back: what counts, what is missing, what status it deserves."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_events import EBUSY, NEW, OLD, Event, SampleRun, full_run, passing_run, write

from harness.errors import InfraError
from harness.report.model import RunModel, exit_status, read
from harness.report.words import bodies, flags, state_of_run


def model_of(events: list[Event]) -> RunModel:
    model = RunModel()
    for event in events:
        model.feed(event)
    return model


def renumber(events: list[Event]) -> list[Event]:
    return [{**e, "seq": n} for n, e in enumerate(events)]


def one_kernel(trouble: dict[tuple[str, str], str]) -> RunModel:
    named = {(NEW, *pair): what for pair, what in trouble.items()}
    return model_of(SampleRun((NEW,), ("livepatch", "fentry"), named).end())


def test_what_was_written_is_read() -> None:
    model = model_of(full_run())
    assert list(model.kernels) == [OLD, NEW]
    assert model.vms["vm0"].accel == "tcg"
    assert model.vms["vm0"].boot_s == 6.2
    scenario = next(s for s in model.scenarios if s.name == "pair/livepatch+fentry")
    assert scenario.kernel == OLD
    assert scenario.matrix == ("livepatch", "fentry")
    second = scenario.steps[1]
    assert (second.errno, second.refused, second.as_predicted) == (EBUSY, True, True)


def test_only_what_did_not_pass_keeps_registry_and_log() -> None:
    by_name = {(s.kernel, s.name): s for s in model_of(full_run()).scenarios}
    failed = by_name[OLD, "pair/fmod_ret+livepatch"].steps[1]
    assert failed.registry_text.startswith("security_task_getpgid (1) R   D")
    assert [line.text for line in failed.log] == ["cohabit: attach done"]
    assert failed.predicted["registry"]
    passed = by_name[OLD, "pair/livepatch+fentry"].steps[1]
    assert (passed.registry_text, passed.log, set(passed.predicted)) == ("", (), {"errno"})
    assert bodies(passed) == {"cmdline_proc_show": "livepatch-a"}
    assert flags(passed) == {"cmdline_proc_show": {"I", "R"}}


def test_counts_have_the_repeated_attempt_once() -> None:
    model = model_of(full_run())
    assert sum(model.counts().values()) == model.run.planned == len(model.scenarios)
    assert model.counts()["LOST"] == 1
    assert [s.attempt for s in model.repeated()] == [1, 1]
    assert next(iter(model.counts())) == "HANG"
    assert model.not_started() == 0


def test_a_failed_attempt_stands_whatever_follows() -> None:
    events = passing_run()
    first = next(e for e in events if e["type"] == "scenario_start")
    again = [
        {**e, "scenario": "again", "attempt": 2}
        for e in events
        if e.get("scenario") == first["scenario"]
    ]
    for e in events:
        if e["type"] == "scenario_end" and e["scenario"] == first["scenario"]:
            e["verdict"] = "FAIL"
    model = model_of(renumber([*events[:-1], *again, events[-1]]))
    assert model.counts()["FAIL"] == 1
    assert exit_status(model) == 1


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        ({}, 0),
        ({("livepatch", "fentry"): "lost-once"}, 0),
        ({("livepatch", "fentry"): "xfail"}, 0),
        ({("livepatch", "fentry"): "lost"}, 3),
        ({("livepatch", "fentry"): "body"}, 1),
        ({("livepatch", "fentry"): "splat"}, 1),
        ({("livepatch", "fentry"): "hang"}, 1),
        ({("livepatch", "fentry"): "lost", ("fentry", "livepatch"): "hang"}, 1),
    ],
)
def test_exit_status(trouble: dict[tuple[str, str], str], status: int) -> None:
    assert exit_status(one_kernel(trouble)) == status


def test_exit_status_of_an_interrupted_run() -> None:
    run = SampleRun((NEW,), ("livepatch",), {(NEW, "livepatch", "livepatch"): "body"})
    assert exit_status(model_of(run.end(interrupted=True))) == 130


def test_nothing_tested_is_no_success() -> None:
    assert exit_status(RunModel()) != 0
    events = passing_run()
    for verdict, status in (("SKIP", 3), ("XFAIL", 1)):
        changed = [{**e, "verdict": verdict} if "verdict" in e else e for e in events]
        assert exit_status(model_of(changed)) == status
    none = [e for e in events if "scenario" not in e]
    assert exit_status(model_of(renumber(none))) == 1  # planned, and never begun
    none[0]["planned"] = 0
    assert exit_status(model_of(renumber(none))) == 3


def test_a_vm_that_did_not_boot_fails_the_run() -> None:
    boot = {"type": "vm_start", "t": 99.0, "vm": "vm9", "kernel": NEW}
    end = {"type": "vm_end", "t": 99.5, "vm": "vm9", "reason": "died", "detail": "panic"}
    events = passing_run()
    for verdict, status in (("BOOT_FAIL", 1), ("INFRA", 0)):
        model = model_of(renumber([*events[:-1], boot, {**end, "verdict": verdict}, events[-1]]))
        assert exit_status(model) == status
    events[0]["planned"] += 1
    model = model_of(renumber([*events[:-1], boot, {**end, "verdict": "INFRA"}, events[-1]]))
    assert exit_status(model) == 3
    assert [vm.id for vm in model.vm_failures()] == ["vm9"]


def test_a_pass_that_its_steps_contradict_is_a_failure() -> None:
    for change in ("mismatch", "no step_end", "too few steps"):
        events = passing_run()
        last = max(n for n, e in enumerate(events) if e["type"] == "step_end")
        if change == "mismatch":
            events[last]["mismatches"] = [{"witness": "errno", "what": "errno"}]
        elif change == "no step_end":
            del events[last]
        else:
            del events[last - 1 : last + 1]
        model = model_of(renumber(events))
        assert model.counts() == {"FAIL": 1, "PASS": 9}, change
        assert model.failures()[0].reason.startswith("recorded as PASS")


def test_a_killed_run_is_told(tmp_path: Path) -> None:
    events = full_run()
    opened = max(n for n, e in enumerate(events) if e["type"] == "step_start")
    model = read(write(events[: opened + 2], tmp_path, cut=20))
    assert model.truncated
    assert model.cut_short
    assert exit_status(model) == 1
    unfinished = [s for s in model.scenarios if not s.finished]
    assert [(s.verdict, s.reason) for s in unfinished] == [("FAIL", "not finished")]
    said = " ".join(state_of_run(model))
    assert "cut short" in said
    assert "last line" in said


def test_a_complete_last_line_without_newline_counts(tmp_path: Path) -> None:
    model = read(write(passing_run(), tmp_path, cut=1))
    assert (model.truncated, model.cut_short) == (False, False)


def test_a_run_cut_between_lines_has_no_end(tmp_path: Path) -> None:
    model = read(write(passing_run()[:-1], tmp_path))
    assert (model.truncated, model.cut_short) == (False, True)
    assert exit_status(model) == 1


def test_damage_inside_the_record_is_an_error(tmp_path: Path) -> None:
    directory = write(passing_run(), tmp_path)
    file = directory / "events.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:5], "{broken\n", *lines[5:]]))
    with pytest.raises(InfraError, match="line 6"):
        read(directory)
    file.write_text("".join([*lines[:5], *lines[6:]]))
    with pytest.raises(InfraError, match="gap: event 6 where 5"):
        read(file)
    file.write_text('{"seq": 0, "t": 0, "type": "step_end", "scenario": "s0", "index": 0}\n')
    with pytest.raises(InfraError, match="can follow"):
        read(file)


def test_no_record_and_a_foreign_format_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="cannot read"):
        read(tmp_path)
    with pytest.raises(InfraError, match="format 2"):
        model_of([{**passing_run()[0], "format": 2}])


def test_unknown_types_and_keys_are_ignored() -> None:
    events = passing_run()
    extra = [{**e, "colour": "blue"} for e in events]
    model = model_of(renumber([*extra[:3], {"type": "weather", "t": 1.0}, *extra[3:]]))
    assert model.counts() == model_of(events).counts()


def test_a_step_that_did_not_apply_is_no_gap() -> None:
    events = passing_run()
    scenario = next(e["scenario"] for e in events if e["type"] == "scenario_start")
    (third,) = [
        n
        for n, e in enumerate(events)
        if (e["type"], e.get("scenario"), e.get("index")) == ("step_start", scenario, 2)
    ]
    skip = {"type": "step_skip", "t": 1.0, "scenario": scenario, "index": 2}
    model = model_of(renumber([*events[:third], skip, *events[third + 2 :]]))
    assert exit_status(model) == 0
    rows = model.attempts[scenario].rows
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert [row.note for row in rows] == ["", "", "left out, it did not apply", ""]
    gap = model_of(renumber([*events[:third], *events[third + 2 :]]))
    assert gap.attempts[scenario].reason == "recorded as PASS after 3 of 4 steps"


def test_what_no_event_introduced_still_counts() -> None:
    events = [e for e in passing_run() if e["type"] not in {"kernel", "vm_start", "vm_ready"}]
    model = model_of(renumber([e for e in events if e["type"] != "vm_end"]))
    assert list(model.kernels) == [NEW]
    assert len(model.of_kernel(NEW)) == 10


def test_a_traceback_is_one_line_in_a_list() -> None:
    events = SampleRun((NEW,), ("ops",), {(NEW, "ops", "ops"): "lost-once"}).end()
    for event in events:
        if event.get("verdict") == "LOST" and "scenario" in event:
            event["reason"] = "the agent failed: Traceback:\n  File x\n    y()\nOSError: no\n"
    (line,) = state_of_run(model_of(events))
    assert "\n" not in line
    assert line.startswith(f"1 scenario repeated on {NEW} after LOST (the agent failed: Traceback:")
    assert line.endswith(" OSError: no): pair/ops+ops")
