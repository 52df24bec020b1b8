# SPDX-License-Identifier: GPL-2.0-only
"""Two runs compared: verdicts, and what differs under a PASS."""

from __future__ import annotations

import json
from typing import Any

import pytest
from compare_help import MANY, NAME, PASSED, THREE, both, edited, fed, ids, logged, policy, sample
from policy_events import PAIR, PolicyRun, pairs
from sample_events import NEW, Event, SampleRun

from harness.errors import UsageError
from harness.report import compareread, comparetext
from harness.report.compare import (
    compare,
    exit_status,
    to_json,
    unexpected,
)
from harness.report.compareread import mask, warnings

# --- verdicts ---------------------------------------------------------------------------------


def test_a_run_and_itself() -> None:
    found = both(sample(), sample())
    assert found.changes == found.still == found.incomplete == ()
    assert found.same == 10
    assert exit_status(found) == 0
    assert comparetext.summary(found) == "nothing changed; 10 as before"


@pytest.mark.parametrize(
    ("before", "after", "kind", "status"),
    [
        ("", "body", "broken", 1),
        ("", "splat", "broken", 1),
        ("", "hang", "broken", 1),
        ("", "lost", "untested", 3),
        ("", "xfail", "differs", 0),
        ("body", "", "fixed", 0),
        ("splat", "", "fixed", 0),
        ("xfail", "", "fixed", 0),
        ("body", "xfail", "fixed", 0),
        ("lost", "", "untested", 3),
        ("body", "lost", "untested", 3),
        ("body", "splat", "differs", 0),
    ],
)
def test_a_verdict_that_changes(before: str, after: str, kind: str, status: int) -> None:
    found = both(sample({PASSED: before}), sample({PASSED: after}))
    of_scenario = [c for c in found.changes if c.kind != "message"]
    assert [(c.kind, c.subject) for c in of_scenario] == [(kind, NAME)]
    assert found.same == 9
    assert exit_status(found) == status


def test_what_was_broken_is_said() -> None:
    found = both(sample(), sample({PASSED: "body"}))
    assert ids(found) == [f"broken {NAME}"]
    assert found.changes[0].step == "step 2"
    assert found.changes[0].detail == (
        "PASS -> FAIL: attach ops: behaviour: body: expected original, saw original"
    )


def skip(events: list[Event], name: str) -> list[Event]:
    """The events with one scenario that is skipped."""
    scenario = next(e["scenario"] for e in events if e.get("name") == name)
    end = {"type": "scenario_end", "verdict": "SKIP", "reason": "the kernel lacks it"}
    return [
        {**e, **end} if e["type"] == "scenario_end" and e["scenario"] == scenario else e
        for e in events
        if not (e["type"].startswith("step_") and e["scenario"] == scenario)
    ]


def test_skips() -> None:
    skipped = skip(sample(), NAME)
    assert ids(both(sample(), skipped)) == [f"broken {NAME}"]
    assert ids(both(skipped, sample())) == [f"differs {NAME}: SKIP -> PASS"]
    assert ids(both(skipped, skipped)) == []
    assert ids(both(skipped, sample({PASSED: "body"}))) == [f"broken {NAME}"]
    failed = both(sample({PASSED: "body"}), skipped)
    assert ids(failed) == [f"differs {NAME}: FAIL -> SKIP: the kernel lacks it"]


def test_still_failing() -> None:
    bad = sample({PASSED: "body"})
    found = both(bad, bad)
    assert found.changes == ()
    assert [c.subject for c in found.still] == [NAME]
    assert exit_status(found) == 0
    assert "Still failing (1)" in comparetext.render_text(found)


def test_failing_otherwise_is_a_change() -> None:
    found = both(sample({PASSED: "body"}), sample({PASSED: "errno"}))
    assert found.still == ()
    assert ids(found)[0].startswith(f"differs {NAME}: step 2 FAIL, but otherwise: attach ops: beh")


def test_the_worst_of_several_tries_counts() -> None:
    """A HANG is not forgotten because the scenario passed on another try."""
    events = sample({PASSED: "hang"})
    start = next(n for n, e in enumerate(events) if e.get("name") == NAME)
    vm = max(n for n, e in enumerate(events) if e["type"] == "vm_ready")
    again = [e for e in sample() if e.get("name") == NAME or e.get("scenario") == "s5"]
    assert events[start]["scenario"] == "s5"
    again = [{**e, "scenario": "again"} for e in again]
    again[0] = {**again[0], "attempt": 2}
    events = [*events[: vm + 1], *again, *events[vm + 1 :]]
    assert f"broken {NAME}" in ids(both(sample(), events))


def test_scenarios_of_one_run_only() -> None:
    few = SampleRun((NEW,), ("livepatch", "fentry"), {}).end()
    found = both(sample(), few)
    assert {c.kind for c in found.changes} == {"gone"}
    assert len(found.changes) == 5
    assert {c.kind for c in both(few, sample()).changes} == {"new"}
    assert exit_status(found) == 0


# --- what differs though both pass ------------------------------------------------------------


def profile(events: list[Event], name: str) -> list[Event]:
    return [{**e, "profile": name} if e["type"] == "scenario_start" else e for e in events]


def sight(event: Event, **values: Any) -> None:
    """Puts values into what was observed."""
    if "observed" in event:
        event["observed"].update(values)


def flags(event: Event, *letters: str) -> None:
    for key in ("observed", "predicted"):
        for record in event.get(key, {}).get("registry", {}).values():
            record["flags"] = sorted(letters)


def test_an_errno_that_differs_is_all_that_is_said() -> None:
    def refuse(event: Event) -> None:
        sight(event, errno=16)
        flags(event, "R")

    found = both(edited(refuse), sample())
    assert ids(found) == [f"differs {NAME}: step 2 attach ops: errno EBUSY -> 0"]
    assert exit_status(found) == 0


def test_flags_are_told_one_by_one_and_once() -> None:
    def permanent(event: Event) -> None:
        flags(event, "D", "M", "P", "R")

    head = edited(permanent)
    one = next(e["scenario"] for e in head if e.get("name") == NAME)
    for event in head:
        if event.get("scenario") == one and event.get("index") == 2:
            permanent(event)
    head = profile(head, "permanent-v1")
    assert ids(both(sample(), head)) == [
        f"differs {NAME}: step 2 attach ops: flag P no -> set",
        f"differs {NAME}: step 3 detach fentry: flag D no -> set",
        f"differs {NAME}: step 3 detach fentry: flag R no -> set",
    ]


def test_what_the_policy_explains_by_history_is_no_difference() -> None:
    stale = edited(lambda event: flags(event, "D", "M", "R", "S"))
    assert ids(both(sample(), stale)) == []
    assert len(ids(both(sample(), profile(stale, "another")))) == 1
    # The policy says the same of both, so that the kernels differ.
    seen = edited(lambda e: flags(e, "D", "M", "R", "S") if "observed" in e else None)
    assert len(ids(both(sample(), seen))) == 1


def test_a_sticky_flag_is_no_difference() -> None:
    head = profile(edited(lambda event: flags(event, "D", "R")), "another")
    assert ids(both(sample(), head)) == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"sysctl": {"kernel.ftrace_enabled": 0}}, "kernel.ftrace_enabled 1 -> 0"),
        ({"livepatch": {"x": {"enabled": 1}}}, "livepatches none -> enabled 1"),
        ({"registry": {"cmdline_proc_show": None}}, "record there -> none"),
        ({"held": {"body": "original"}}, "held call none -> original"),
    ],
)
def test_other_witnesses(values: Event, text: str) -> None:
    head = edited(lambda event: sight(event, **values))
    assert ids(both(sample(), head)) == [f"differs {NAME}: step 2 attach ops: {text}"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"body": "livepatch-a"}, "body original -> livepatch-a"),
        ({"hits": {"a": 1, "b": 2}}, "hits of b 1 -> 2"),
        ({"hits": {"a": 1, "b": 0}}, "hits of b 1 -> none"),
        ({"args": "differ"}, "args agree -> differ"),
        ({"shares": {"a": [1, 0]}}, "calls of ops_func of a none -> 1 0"),
        ({"via": {"a": 1}}, "trampoline of a none -> 1"),
    ],
)
def test_behaviour(values: Event, text: str) -> None:
    def change(event: Event) -> None:
        if "observed" in event:
            event["observed"]["behaviour"]["cmdline_proc_show"].update(values)

    found = ids(both(sample(), edited(change)))
    assert f"differs {NAME}: step 2 attach ops: {text}" in found


def test_what_may_be_either_is_not_compared() -> None:
    def jmp(event: Event, either: bool) -> None:
        for key in ("observed", "predicted"):
            if key in event:
                event[key]["registry"]["cmdline_proc_show"]["jmp"] = True
        if "predicted" in event and either:
            event["predicted"]["registry"]["cmdline_proc_show"]["jmp"] = None

    sure = profile(edited(lambda event: jmp(event, False)), "another")
    assert ids(both(sample(), sure)) == [
        f"differs {NAME}: step 2 attach ops: direct(jmp) no -> yes"
    ]
    assert ids(both(sample(), profile(edited(lambda e: jmp(e, True)), "another"))) == []


def test_other_steps_under_one_name() -> None:
    def other(event: Event) -> None:
        if event["type"] == "step_start":
            event["step"]["attacher"] = "kprobe"

    found = ids(both(sample(), edited(other)))
    assert found == [f"differs {NAME}: step 2 attach ops: not a step of both"]


def test_a_known_report_may_be_read_a_step_later() -> None:
    def known(events: list[Event], steps: int) -> list[Event]:
        scenario = next(e["scenario"] for e in events if e.get("name") == NAME)
        kept = []
        for event in events:
            if event.get("scenario") == scenario:
                if event.get("index", 0) >= steps:
                    continue
                if event["type"] == "scenario_end":
                    event.update(verdict="XFAIL", xfail="some-report")
            kept.append(event)
        return kept

    assert ids(both(known(edited(str), 9), known(edited(str), 2))) == []
    longer, shorter = known(edited(str), 9), known(edited(str), 2)
    next(e for e in shorter if e.get("xfail"))["xfail"] = "another"
    assert ids(both(longer, shorter)) != []


def test_lanes_and_slots_are_chance() -> None:
    wanted = list(pairs())
    found = both(PolicyRun(wanted).end(), PolicyRun(reversed(wanted)).end())
    assert found.changes == ()
    assert found.same == len(wanted)


def test_lanes_of_one_scenario_go_by_their_order() -> None:
    def on(function: str, lane: int) -> list[Event]:
        """A scenario over two functions, the second of which is ``function``."""
        text = json.dumps(sample()).replace("cmdline_proc_show", f"security_cohabit_{lane:03}")
        events: list[Event] = json.loads(text)
        for event in events:
            if event["type"] == "scenario_start":
                event["functions"].append(function)
            for key in ("observed", "predicted"):
                for witness in ("registry", "behaviour"):
                    there = event.get(key, {}).get(witness, {})
                    there |= dict.fromkeys([function] if there else [], *there.values())
        return events

    assert ids(both(on("security_cohabit_009", 3), on("security_cohabit_002", 7))) == []
    scenario = fed(on("version_proc_show", 3)).scenarios[0]
    assert compareread.places(scenario) == {
        "security_cohabit_003": "function 1", "version_proc_show": "version_proc_show",
    }  # fmt: skip


def test_slots_of_bodies_are_chance() -> None:
    first = SampleRun((NEW,), ("livepatch", "ops"), {}).end()
    text = json.dumps(first).replace('"livepatch-a"', '"livepatch-c"')
    assert ids(both(first, profile(json.loads(text), "another"))) == []


# --- accidents and messages -------------------------------------------------------------------


def test_accidents_that_nobody_stands_for() -> None:
    found = both(policy(), policy(True))
    nobody = [c for c in found.changes if c.subject == "(side by side)"]
    assert [(c.kind, c.detail) for c in nobody] == [
        ("broken", "SPLAT: WARNING at kernel/trace/ftrace.c:N")
    ]
    assert f"broken {PAIR}" in ids(found)
    assert exit_status(found) == 1
    assert not both(policy(True), policy(True)).changes


def test_a_kernel_that_does_not_boot_is_one_item() -> None:
    head = [
        {**e, "verdict": "BOOT_FAIL", "reason": "no init found"} if e["type"] == "scenario_end"
        else e for e in sample() if not e["type"].startswith("step_")
    ]  # fmt: skip
    found = both(sample(), head)
    assert [len(item.changes) for item in found.items] == [10]
    text = comparetext.render_text(found)
    assert "    and 4 more\n" in text
    assert text.count("    pair/") + text.count("    sysctl/") == 6


def test_new_messages_of_passed_scenarios() -> None:
    head = logged(
        "odd: ops at ffffffff81234560 had 3 [left]", "odd: ops at ffffffff8abc had 4 [left]"
    )
    found = both(sample(), head)
    assert ids(found) == ["message odd: ops at N had N [left]"]
    assert found.changes[0].scenarios == (NAME,)
    assert exit_status(found) == 0
    assert ids(both(head, head)) == []
    assert not unexpected(found, ids(found))


def test_what_is_no_new_message() -> None:
    assert ids(both(sample(), logged("livepatch: enabling patch", level=5))) == []
    assert ids(both(sample(), logged("hrtimer: interrupt took 5512345 ns"))) == []
    assert ids(both(sample(), logged("text without a level", level=None))) == []


def test_a_report_is_its_title() -> None:
    lines = [
        "------------[ cut here ]------------",
        "WARNING: CPU: 0 PID: 91 at kernel/trace/ftrace.c:2109 ftrace_bug+0x1c/0x2a0",
        "Modules linked in: cohabit(O)",
        "RIP: 0010:ftrace_bug+0x1c/0x2a0",
        "Call Trace:",
        " <TASK>",
        " ftrace_replace_code+0x8d/0x150",
        " </TASK>",
        "---[ end trace 0000000000000000 ]---",
    ]
    log = [{"level": 4, "t": 3.0, "text": line} for line in lines]
    assert warnings([*log, {"level": 4, "t": 9.0, "text": "and more"}]) == [
        "WARNING: CPU: N PID: N at kernel/trace/ftrace.c:N ftrace_bug+N/N",
        "and more",
    ]


def test_mask() -> None:
    assert mask("at 0xffffffff81000000, 12 of ab12") == "at N, N of N"
    assert mask("find_ip.isra.0+0x4/0x9, ftrace.constprop.0.cold") == "find_ip+N/N, ftrace"
    assert mask("dead beef\n\x1b[31mred") == "dead beef \N{HORIZONTAL ELLIPSIS} red"


# --- runs and kernels -------------------------------------------------------------------------


def test_runs_that_are_not_complete() -> None:
    cut = both(sample(), sample()[:-8])
    assert cut.incomplete == ("the head: the record has no end",)
    assert exit_status(both(sample(), sample()[:-1])) == 3
    interrupted = SampleRun((NEW,), THREE, {}).end(interrupted=True)
    assert both(interrupted, sample()).incomplete == ("the base: the run was interrupted",)
    few = [e if e["type"] != "run_start" else {**e, "planned": 12} for e in sample()]
    assert both(few, sample()).incomplete[0] == ("the base: 2 of 12 planned scenarios never began")
    assert "Not everything could be compared" in comparetext.render_text(cut)


def test_nothing_in_common() -> None:
    others = json.loads(json.dumps(sample()).replace('"pair/', '"p/').replace('"sysctl/', '"s/'))
    found = both(sample(), others)
    assert exit_status(found) == 3


def test_kernels_of_a_run() -> None:
    run = compareread.read(MANY)
    with pytest.raises(UsageError, match="a run of one kernel"):
        compare(run, run)
    with pytest.raises(UsageError, match=r"more than one kernel of the run is '7\.'"):
        compare(run, run, ("7.", "7.2"))
    with pytest.raises(UsageError, match=r"no kernel of the run is '4\.19'.*\n.*RUN@RELEASE"):
        compare(run, run, ("7.2", "4.19"))


def test_sizes() -> None:
    with_sizes = [
        {**e, "image_bytes": 12345678, "build_s": 75.0} if e["type"] == "kernel" else e
        for e in sample()
    ]
    found = both(sample(), with_sizes)
    assert found.base.size.image_bytes is None
    assert "build 1 min 15 s; image 12345678 bytes" in comparetext.render_text(found)
    assert to_json(found)["head"]["image_bytes"] == 12345678


def test_recorded_kernels() -> None:
    run = compareread.read(MANY)
    for kernel in run.kernels:
        assert not compare(run, run, (kernel, kernel)).changes
    off = "step {} write 0 to kernel.ftrace_enabled: errno 0 -> EOPNOTSUPP"
    assert ids(compare(run, run, ("7.2", "7.3"))) == [
        f"differs fexit/ftrace_enabled:off-on: {off.format(2)}",
        f"differs livepatch/ftrace_enabled:attach-while-off: {off.format(1)}",
        f"differs direct/ftrace_enabled:off-on: {off.format(2)}",
    ]
    older = compare(run, run, ("5.10", "6.1"))
    shared = "differs livepatch+fexit/attach:ab/detach:ab: step 2 attach fexit: errno EBUSY -> 0"
    assert shared in ids(older)
    assert "new fexit/alone/on:cohabit_f8" in ids(older)
