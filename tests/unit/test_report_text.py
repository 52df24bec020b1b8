# SPDX-License-Identifier: GPL-2.0-only
"""The text report, the matrix, the differences, and the display during a run."""

from __future__ import annotations

import io
import re
import shlex

import pytest
from sample_events import NEW, OLD, SampleRun, full_run, passing_run
from test_report_model import model_of

from harness.report import differences, matrix, text
from harness.report.progress import Progress
from harness.report.views import Mismatch
from harness.report.words import diff, duration, errno_name, printable, repeat_command


def marks(kernel: str) -> dict[tuple[str, str], str]:
    found = matrix.build(model_of(full_run()), kernel)
    assert found is not None
    assert found.departures == ((0, 1),)
    return {(c.arrival[0], c.arrival[1]): c.mark for c in found.cells}


def test_matrix_marks_by_order_and_kernel() -> None:
    old, new = marks(OLD), marks(NEW)
    assert old["livepatch", "fentry"] == "r"
    assert new["livepatch", "fentry"] == "P"
    assert old["fmod_ret", "livepatch"] == "F"
    assert old["livepatch", "fmod_ret"] == "r"  # the order matters
    assert old["direct-share", "ops"] == "S"
    assert new["direct-share", "livepatch"] == "x"
    assert new["ops", "direct"] == "!"
    assert new["ipmodify", "direct-share"] == "!"
    assert new["ops-regs", "fmod_ret"] == "?"
    assert old["fentry", "ops-regs"] == "P"  # LOST at first, counts by its second attempt


def test_a_cell_shows_its_worst_scenario() -> None:
    events = passing_run()
    for event in events:
        if event.get("matrix"):
            event["matrix"] = ["livepatch", "fentry"]
    ends = [e for e in events if e["type"] == "scenario_end"]
    ends[0]["verdict"] = "FAIL"
    ends[1]["verdict"] = "SKIP"
    found = matrix.build(model_of(events), NEW)
    assert found is not None
    cells = {c.arrival: c for c in found.cells}
    assert cells["livepatch", "fentry"].mark == "F"
    assert len(cells["livepatch", "fentry"].scenarios) == 9
    assert cells["fentry", "livepatch"].mark == "·"


def test_no_pairs_no_matrix() -> None:
    events = [{**e, "matrix": None} for e in passing_run()]
    assert matrix.build(model_of(events), NEW) is None


def test_differences_are_grouped_and_stop_at_the_first_errno() -> None:
    found = {(d.what, d.values): d.names for d in differences.find(model_of(full_run()))}
    refused = found["errno of second attach", ("EBUSY", "ok")]
    assert "pair/livepatch+fentry" in refused
    assert "pair/fentry+ops" not in refused
    assert "sysctl/ftrace-off-under-livepatch" in found["flag M", ("not set", "set")]
    # What follows from a refusal is not told again as a difference of bodies.
    bodies = [names for (what, _), names in found.items() if what.startswith("body")]
    assert not any("pair/fentry+livepatch" in names for names in bodies)
    assert found["verdict", ("PASS", "FAIL")] == ("pair/livepatch+fexit",)


def test_different_bodies_are_told() -> None:
    events = SampleRun(trouble={}, attachers=("livepatch",)).end()
    last = max(n for n, e in enumerate(events) if e["type"] == "step_end")
    events[last]["observed"]["behaviour"]["cmdline_proc_show"]["body"] = "livepatch-a"
    found = [d for d in differences.find(model_of(events)) if d.what.startswith("body")]
    assert [(d.what, d.values) for d in found] == [
        ("body that runs after first detach", ("original", "livepatch-a"))
    ]


def test_one_kernel_differs_from_nothing() -> None:
    assert differences.find(model_of(passing_run())) == []


def test_text_report_has_every_section() -> None:
    report = text.render(model_of(full_run()))
    assert "tcg (/dev/kvm opens, but no guest booted with it (0.4 s))" in report
    assert "QEMU 10.0.2, CPU qemu64 x 1, 1024 MB, engine virtme" in report
    assert re.search(r"^  1 livepatch +P  r  S  r  r  r  r  P  P$", report, re.M)
    assert "  r  passed: an attach refused as promised" in report
    assert "What differs between the kernels" in report
    failed = report[report.index("FAIL  pair/livepatch+fexit") :]
    for line in (
        "  2. attach fexit as b to cmdline_proc_show: ok -> original; hits b=1",
        "       - livepatch-a",
        "       + original",
        "       predicted by B2: the livepatch's body runs under a BPF trampoline",
        "       - flags: D I M R",
        "       + flags: D M R",
        "       <6>[   13.250000] cohabit: attach done",
        "  4. detach b (fexit): not reached",
        f"  repeat: cohabit run --kernel debian:{NEW.split('-cloud')[0]} pair/livepatch+fexit",
    ):
        assert line in failed.splitlines(), line
    assert "count:" not in failed.split("LOST")[0]  # equal parts are no difference
    assert report.index("HANG  pair") < report.index("SPLAT  pair") < report.index("FAIL  pair")
    assert "164 scenarios: 1 HANG, 1 SPLAT, 2 FAIL, 1 LOST, 1 XFAIL, 17 SKIP, 141 PASS" in report


def test_text_report_without_colour_is_plain_and_keeps_its_width() -> None:
    for width, limit in ((40, 80), (90, 90), (300, 100)):
        report = text.render(model_of(full_run()), width)
        assert "\x1b" not in report
        raw = ("tramp:", "WARNING:", "direct-->")  # the kernel's own lines are never wrapped
        lines = [x for x in report.splitlines() if not any(word in x for word in raw)]
        assert max(map(len, lines)) <= limit


def test_colour_only_when_asked_and_not_against_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in text.render(model_of(passing_run()), color=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in text.render(model_of(passing_run()), color=True)


def test_an_interrupted_run_says_so() -> None:
    report = text.render(model_of(SampleRun().end(interrupted=True)))
    assert "The run was interrupted" in report


def test_repeat_command_is_safe_to_paste() -> None:
    model = model_of(passing_run())
    words = shlex.split(repeat_command(model, NEW, "odd name; reboot"))
    assert words[-1] == "odd name; reboot"
    assert words[:3] == ["cohabit", "run", "--kernel"]


def test_words() -> None:
    assert [errno_name(n) for n in (0, 16, 524, 999, None)] == [
        "ok", "EBUSY", "ENOTSUPP", "errno 999", "no result",
    ]  # fmt: skip
    assert diff(Mismatch("errno", "errno", [0, 16], 22, "")) == [
        ("-", "ok or EBUSY"),
        ("+", "EINVAL"),
    ]
    whole = Mismatch("registry", "f", None, {"count": 1}, "")
    assert diff(whole) == [("-", "none"), ("+", '{"count": 1}')]
    assert printable("\x1b[31mred\x1b[0m\x07 a\tb\r\n\x00") == "red? a  b\n?"
    assert [duration(s) for s in (0.44, 61, 3725)] == ["0.4 s", "1 min 01 s", "1 h 02 min"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_is_plain_lines() -> None:
    out = io.StringIO()
    with Progress(out) as progress:
        for event in full_run():
            progress.feed(event)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert lines[0] == "164 scenarios planned"
    ended = [x for x in lines if x.startswith("[")]
    assert len(ended) == 166  # two of them a second time
    failed = next(x for x in ended if "pair/livepatch+fexit on 6.12" in x)
    assert "FAIL" in failed
    assert "behaviour: cmdline_proc_show body: expected livepatch-a" in failed
    assert ended[-1].startswith("[164/164] PASS  sysctl/")


def test_progress_on_a_terminal_names_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    events = full_run()
    stop = max(n for n, e in enumerate(events) if e["type"] == "step_start")
    with Progress(out) as progress:
        for event in events[: stop + 1]:
            progress.feed(event)
    text_out = out.getvalue()
    last = text_out[text_out.rindex("163/164") :]
    assert "5 failed" in last
    assert NEW in last
    assert "sysctl/ftrace-off-under-livepatch, step 4 of 4: detach a (livepatch)" in last
    assert "FAIL  pair/livepatch+fexit on 6.12" in text_out
    assert "PASS  pair" not in text_out  # only trouble scrolls past


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_progress_honours_the_terminal(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    out = Terminal()
    with Progress(out) as progress:
        for event in full_run():
            progress.feed(event)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", out.getvalue())
    if name == "TERM":
        assert "\x1b" not in out.getvalue()
        assert "[164/164] PASS" in out.getvalue()  # the plain lines instead
