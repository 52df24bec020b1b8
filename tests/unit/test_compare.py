# SPDX-License-Identifier: GPL-2.0-only
"""Two runs compared: verdicts, what differs under a PASS, messages, expectations, the command."""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from policy_events import PAIR, PolicyRun, pairs
from recorded import RUNS
from sample_events import NEW, Event, SampleRun, write

from harness.cli import compare as command
from harness.cli.main import main
from harness.errors import UsageError
from harness.report import comparehtml, compareread, comparetext
from harness.report.compare import (
    Change,
    Comparison,
    Surprise,
    compare,
    exit_status,
    expectations,
    matches,
    to_json,
    unexpected,
)
from harness.report.compareread import WholeRun, mask, warnings

MANY = RUNS / "5.10-6.1-7.2-7.3"
THREE = ("livepatch", "fentry", "ops")


def fed(events: list[Event]) -> WholeRun:
    run = WholeRun()
    for number, event in enumerate(events):
        run.feed({**event, "seq": number})
    return run


def sample(trouble: dict[tuple[str, str], str] | None = None) -> list[Event]:
    """A run of nine pairs and one other scenario; ``trouble``: pairs that go wrong."""
    there = {(NEW, *pair): what for pair, what in (trouble or {}).items()}
    return SampleRun((NEW,), THREE, there).end()


def both(base: list[Event], head: list[Event]) -> Comparison:
    return compare(fed(base), fed(head))


def ids(comparison: Comparison) -> list[str]:
    return [change.id for change in comparison.changes]


def policy(troubled: bool = False) -> list[Event]:
    """A run with groups; an accident of the second is seen again alone, one of the first not."""
    some = list(pairs())[:192]
    if not troubled:
        return PolicyRun(some).end()
    accidents = {1: ("SPLAT", False), 2: ("CRASH", True)}
    return PolicyRun(some, [PAIR], accidents).end()


PASSED = ("fentry", "ops")
NAME = "pair/fentry+ops"


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


def edited(change: Callable[[Event], None], name: str = NAME, index: int = 1) -> list[Event]:
    """The sample with one step's two events changed (``predicted``, ``observed``)."""
    events: list[Event] = json.loads(json.dumps(sample()))
    scenario = next(e["scenario"] for e in events if e.get("name") == name)
    for event in events:
        if event.get("scenario") == scenario and event.get("index") == index:
            change(event)
    return events


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


def logged(*texts: str, level: Any = 4) -> list[Event]:
    log = [{"level": level, "t": 3.0 + n, "text": text} for n, text in enumerate(texts)]
    return edited(lambda event: event.update(log=log) if "log" in event else None)


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


# --- text, JSON, HTML -------------------------------------------------------------------------


@functools.cache
def comparisons() -> list[Comparison]:
    run = compareread.read(MANY)
    return [
        compare(run, run, ("5.10", "6.1")),
        compare(run, run, ("6.1", "7.3")),
        both(policy(), policy(True)),
        both(sample({PASSED: "splat"}), sample({("ops", "fentry"): "body"})),
        both(sample(), logged("a" * 100, "b " * 100)),
    ]


def test_text_fits_a_mail() -> None:
    for found in comparisons():
        surprise = Surprise(found.changes, tuple(f"broken {'x' * 90}{n}" for n in range(9)))
        text = comparetext.render_text(found, surprise)
        assert max(map(len, text.splitlines())) <= 72
        assert all(c == "\n" or c.isprintable() for c in text)
        assert not any(line.endswith(" ") for line in text.splitlines())


def test_text_has_the_surroundings() -> None:
    found = both(sample(), sample())
    text = comparetext.render_text(found)
    for part in (
        "cohabit 0.1.0", "base ", "head ", NEW, "tcg (", "QEMU 10.0.2", "x86-64, SHARE_IPMODIFY",
        "repeat cohabit run 'pair/*'", "1024 MB", "10 PASS",
    ):  # fmt: skip
        assert part in " ".join(text.split()), part


def test_a_long_command_can_be_pasted() -> None:
    argv = ["cohabit", "compare", "--tree", "tree:/a b", *(f"{n}livepatch+*" for n in range(20))]
    events = [{**e, "argv": argv} if e["type"] == "run_start" else e for e in sample()]
    lines = comparetext.render_text(both(events, events)).splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("  repeat"))
    pasted = lines[begin].removeprefix("  repeat")
    while pasted.endswith("\\"):
        begin += 1
        pasted = pasted[:-1] + lines[begin]
    assert shlex.split(pasted) == argv


def test_json() -> None:
    for found in comparisons():
        data = json.loads(json.dumps(to_json(found)))
        assert [c["id"] for c in data["changes"]] == ids(found)
        assert data["unexpected"] is None
        assert sum(data["counts"].values()) == len(found.changes)
        assert data["exit_status"] == exit_status(found)


def test_html() -> None:
    found = both(sample(), logged("<script>alert(1)</script> \x1b[31m"))
    page = comparehtml.render(found, Surprise((), ("broken <b>",)))
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert(N)" in page
    assert "broken &lt;b&gt;" in page
    assert "Exactly the expected" not in page
    assert "Exactly the expected" in comparehtml.render(found, Surprise())
    for found in comparisons():
        page = comparehtml.render(found)
        for change in found.changes:
            assert str(escape(change.subject)) in page
            assert change.kind == "untested" or f"{escape(change.id)}\n" in page


# --- expectations -----------------------------------------------------------------------------


def test_expectation_files() -> None:
    text = "\n# what v2 changes\nfixed *   # all of them\n\n differs permanent/*: step #2\n#end"
    assert expectations(text, "f") == ("fixed *", "differs permanent/*: step #2")


@pytest.mark.parametrize("line", ["livepatch+direct/*", "broken", "untested *", "broke *", "* *"])
def test_lines_that_say_nothing(line: str) -> None:
    with pytest.raises(UsageError, match=r"^x/expect, line 2: .* is no expected change"):
        expectations(f"fixed *\n{line}\n", "x/expect")


def test_what_a_line_speaks_of() -> None:
    change = Change("differs", "a+b/x:1", "attach b: errno EBUSY -> 0", "step 2", "", ())
    for line in (
        "differs a+b/x:1", "differs a+b/*", "differs *", "differs *errno EBUSY -> *",
        "differs a+b/x:1: step 2 attach b: errno EBUSY -> 0",
    ):  # fmt: skip
        assert matches(line, change), line
    for line in ("broken *", "differs a+b", "differs *EINVAL*", "differs A+b/*"):
        assert not matches(line, change), line
    broken = Change("broken", "a+b/x:1", "PASS -> CRASH: oops", "step 2", "", ())
    assert matches("broken *: step 2 PASS -> CRASH*", broken)


def test_exactly_what_was_expected() -> None:
    found = both(sample({PASSED: "body"}), sample({("ops", "fentry"): "body"}))
    right = [f"fixed {NAME}", "broken pair/ops+*"]
    assert not unexpected(found, right)
    assert exit_status(found) == 1
    assert exit_status(found, unexpected(found, right)) == 0
    more = unexpected(found, [*right, "differs *"])
    assert more == Surprise((), ("differs *",))
    assert exit_status(found, more) == 1
    less = unexpected(found, right[:1])
    assert [c.id for c in less.unexpected] == ["broken pair/ops+fentry"]
    assert exit_status(found, less) == 1


def test_every_id_can_be_expected() -> None:
    for found in comparisons():
        lines = expectations("\n".join(i for i in ids(found)), "f")
        assert not unexpected(found, lines)
        assert exit_status(found, unexpected(found, lines)) == 0
        for change in found.changes:
            assert unexpected(found, [i for i in ids(found) if i != change.id])


def test_without_a_result_nothing_is_as_expected() -> None:
    found = both(sample(), sample({PASSED: "lost"}))
    assert exit_status(found, unexpected(found, [])) == 3
    # It may have been the one that has no result.
    assert exit_status(found, unexpected(found, [f"broken {NAME}"])) == 3
    worse = both(sample(), sample({PASSED: "lost", ("ops", "fentry"): "body"}))
    assert exit_status(worse, unexpected(worse, [])) == 1


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def test_two_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(write(sample(), tmp_path / "a@b"))
    head = str(write(sample({PASSED: "body"}), tmp_path / "head"))
    assert main(["compare", base, head]) == 1
    assert "Broken (1)" in capsys.readouterr().out
    assert main(["compare", head, base]) == 0
    capsys.readouterr()
    assert main(["compare", base, head, "--ids"]) == 1
    assert capsys.readouterr().out == f"broken {NAME}\n"
    expected = tmp_path / "expect"
    expected.write_text(f"broken {NAME}\n")
    page = tmp_path / "page.html"
    argv = ["compare", base, head, "--json", "--expect", str(expected), "--html", str(page)]
    assert main(argv) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["exit_status"], data["unexpected"]) == (0, [])
    assert "Exactly the expected" in page.read_text()
    assert main(["compare", f"{MANY}@7.2", f"{MANY}@7.3"]) == 0
    assert "3 different; 9 as before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ("", "nothing to compare"),
        ("one two three", "nothing to compare"),
        ("nowhere nowhere", "no run's record"),
        ("--base debian:7.2", "--base and --head belong together"),
        ("--tree source:7.2", "--tree and --series belong together"),
        ("--series s.patch --head debian:7.2", "--tree and --series belong together"),
        ("--base x --head debian:7.2", "'x' is no kernel reference"),
        ("--base debian:7.2 --head debian:7.3 --head-profile v0", "v0"),
        ("--base debian:7.2 --head debian:7.3 --together 0", "--together"),
        ("a b --expect nowhere", "cannot read nowhere"),
    ],
)
def test_mistakes(argv: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *argv.split()]) == 2
    assert part in capsys.readouterr().err


class FakeKernel:
    def __init__(self, reference: str) -> None:
        self.reference = reference


class FakeSetup:
    """Stands in for the cache: notes what is asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def kernel(self, reference: str, series: str = "") -> FakeKernel:
        self.asked.append(f"kernel {reference}" + (f" with {series}" if series else ""))
        return FakeKernel(self.asked[-1])

    def machine(self, kernel: FakeKernel) -> None:
        self.asked.append(f"machine of {kernel.reference}")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSetup:
    setup = FakeSetup()

    def run_once(
        of: FakeSetup, kernel: FakeKernel, scenarios: Any, args: argparse.Namespace,
        directory: Path | None, override: str | None,
    ) -> Path:  # fmt: skip
        names = ",".join(s.name for s in scenarios)
        of.asked.append(f"run {kernel.reference} {names} {directory} {override}")
        return write(sample(), tmp_path / str(len(of.asked)))

    monkeypatch.setattr(command.Setup, "of", lambda _: setup)
    monkeypatch.setattr(command, "run_once", run_once)
    monkeypatch.setattr(command, "check", lambda _: None)
    return setup


def test_a_tree_and_a_series(fake: FakeSetup, capsys: pytest.CaptureFixture[str]) -> None:
    name = "livepatch+direct/attach:ab/detach:ab"
    argv = ["--tree", "tree:x", "--series", "s", name, "--head-profile", "v6.1", "--output", "out"]
    assert main(["compare", *argv]) == 0
    # Nothing boots before both kernels are there.
    assert fake.asked == [
        "kernel tree:x",
        "kernel tree:x with s",
        "machine of kernel tree:x",
        "machine of kernel tree:x with s",
        f"run kernel tree:x {name} out/base None",
        f"run kernel tree:x with s {name} out/head v6.1",
    ]
    assert "nothing changed; 10 as before" in capsys.readouterr().out


def test_two_references(fake: FakeSetup) -> None:
    assert main(["compare", "--base", "a", "--head", "b", "--profile", "v6.1"]) == 0
    assert [line.split(" livepatch")[0] for line in fake.asked[-2:]] == [
        "run kernel a", "run kernel b",
    ]  # fmt: skip
    assert all(line.endswith(" None v6.1") for line in fake.asked[-2:])


def test_a_bad_expectation_is_told_first(
    fake: FakeSetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e").write_text("what\n")
    argv = ["compare", "--base", "a", "--head", "b", "--expect", str(tmp_path / "e")]
    assert main(argv) == 2
    assert fake.asked == []
    assert "line 1: 'what' is no expected change" in capsys.readouterr().err
