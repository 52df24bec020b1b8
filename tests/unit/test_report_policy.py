# SPDX-License-Identifier: GPL-2.0-only
"""Reports of the whole policy: pairs and triples by the hundred, run in groups."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from pathlib import Path

import pytest
from junitparser import JUnitXml
from policy_events import (
    GROUP,
    PAIR,
    PolicyRun,
    failing_name,
    full_policy,
    pairs,
    triples,
    troubled_policy,
    wanted,
)
from sample_events import NEW, Event, write
from test_report_formats import parse_ktap
from test_report_model import model_of, renumber

from harness.report import differences, html, jsonout, junit, ktap, matrix, text
from harness.report.model import RunModel, exit_status, read
from harness.report.progress import Progress
from harness.report.words import state_of_run

OTHER = "7.2.12-cloud-amd64"


@pytest.fixture(scope="module")
def fine() -> RunModel:
    return model_of(full_policy())


@pytest.fixture(scope="module")
def trouble() -> RunModel:
    return model_of(troubled_policy())


def small(accidents: dict[int, tuple[str, bool]], groups: int = 1) -> list[Event]:
    """Some pairs in groups."""
    return PolicyRun(list(pairs())[: GROUP * groups], accidents=accidents).end()


# --- the model ------------------------------------------------------------------------------


def test_groups_are_read(fine: RunModel) -> None:
    assert len(fine.scenarios) == 648 + 14 * 36 == fine.run.planned
    assert len(fine.groups) == 11 + 8
    first = fine.groups["vm0:g0"]
    assert (first.verdict, first.vm, first.kernel, len(first.scenarios)) == ("PASS", "vm0", NEW, 64)
    member = fine.attempts[first.scenarios[0]]
    assert (member.group, member.matrix) == ("vm0:g0", ("livepatch", "livepatch"))
    assert exit_status(fine) == 0
    triple = next(s for s in fine.scenarios if s.name == failing_name())
    assert triple.matrix == triple.attachers == ("livepatch", "fentry", "direct")
    assert triple.departure == (2, 1, 0)
    assert triple.seconds == pytest.approx(0.0063 * len(triple.steps))
    assert triple.steps[0].group_s == 0.4


def test_a_void_start_counts_by_its_rerun() -> None:
    model = model_of(small({0: ("SPLAT", False)}))
    assert len(model.attempts) == 2 * GROUP
    assert model.counts() == {"PASS": GROUP}
    assert {s.id.endswith("#alone") for s in model.scenarios} == {True}
    assert model.not_started() == 0
    assert state_of_run(model) == [
        f"64 scenarios run again alone on {NEW} "
        "(SPLAT in group vm0:g0: WARNING at kernel/trace/ftrace.c:2109)"
    ]


@pytest.mark.parametrize("before", ["", "PASS", "LOST"])
def test_a_void_start_without_a_rerun_is_not_finished(before: str) -> None:
    events = small({})
    end = next(n for n, e in enumerate(events) if e["type"] == "scenario_end")
    void = {"type": "scenario_regroup", "t": 9.0, "scenario": events[end]["scenario"]}
    ended = [{**events[end], "verdict": before}] if before else []
    model = model_of(renumber([*events[:end], *ended, void, *events[end + 1 :]]))
    assert [(s.verdict, s.reason) for s in model.failures()] == [("FAIL", "not finished")]
    assert model.counts() == {"FAIL": 1, "PASS": GROUP - 1}
    assert exit_status(model) == 1


def test_a_void_start_cannot_pass() -> None:
    events = small({})
    end = next(n for n, e in enumerate(events) if e["type"] == "scenario_end")
    void = {"type": "scenario_regroup", "t": 9.0, "scenario": events[end]["scenario"]}
    model = model_of(renumber([*events[:end], {**void, "reason": "SPLAT"}, *events[end:]]))
    assert [s.reason for s in model.failures()] == ["recorded as PASS, but void: SPLAT"]


def test_a_rerun_may_be_lost_and_repeated() -> None:
    events = small({0: ("SPLAT", True)})
    alone = f"{events[5]['scenario']}#alone"
    again = [{**e, "scenario": "again", "attempt": 2} for e in events if e.get("scenario") == alone]
    for event in events:
        if event["type"] == "scenario_end" and event["scenario"] == alone:
            event.update(verdict="LOST", reason="silence")
    model = model_of(renumber([*events[:-1], *again, events[-1]]))
    assert [s.id for s in model.tries(NEW, again[0]["name"])] == ["again"]
    assert model.counts()["PASS"] == GROUP - 1


def test_a_failure_in_a_group_stands_though_it_is_run_again() -> None:
    events = small({0: ("SPLAT", True)})
    void = next(n for n, e in enumerate(events) if e["type"] == "scenario_regroup")
    end = {"type": "scenario_end", "t": 1.0, "scenario": events[void]["scenario"], "reason": "why"}
    for verdict, failed in (("FAIL", True), ("PASS", False), ("LOST", False)):
        changed = [*events[:void], {**end, "verdict": verdict}, *events[void:]]
        model = model_of(renumber(changed))
        assert ("why" in {s.reason for s in model.failures()}) == failed, verdict


@pytest.mark.parametrize(
    ("accident", "status", "listed"),
    [
        (("SPLAT", False), 1, True),
        (("FAIL", False), 1, True),
        (("LOST", False), 3, True),
        (("CRASH", True), 1, False),
    ],
)
def test_an_accident_of_a_group(accident: tuple[str, bool], status: int, listed: bool) -> None:
    model = model_of(small({0: accident}))
    assert exit_status(model) == status
    assert [g.id for g in model.group_failures()] == ["vm0:g0"] * listed
    assert len(model.failures()) == (not listed)
    assert model.vm_failures() == [], "its VM's end is the group's"


def test_a_group_without_an_end_is_a_failure() -> None:
    events = [e for e in small({}) if e["type"] != "group_end"]
    model = model_of(renumber(events))
    assert [(g.verdict, g.reason) for g in model.group_failures()] == [("FAIL", "not finished")]
    assert exit_status(model) == 1


# --- text -----------------------------------------------------------------------------------


def test_a_passing_run_fits_a_screen(fine: RunModel) -> None:
    report = text.render(fine)
    lines = report.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    rows = [line for line in lines if re.match(r" +\d+ [a-z_-]+ +[Pr]{2} ", line)]
    assert len(rows) == 18
    assert all(re.search(r"( [Pr]{2}){18}$", row) for row in rows)
    assert rows[1].split()[:4] == ["2", "direct", "rr", "rr"]
    assert "  14 sets of three in 504 orders: 504 r" in lines
    assert "the first leaves, then the second; the second leaves, then the first." in report
    assert "1152 scenarios: 1152 PASS; 5812 witnessed steps" in report


def test_what_failed_is_told_in_full(trouble: RunModel) -> None:
    report = text.render(trouble)
    assert re.search(r"^   1 livepatch +PP rF", report, re.M), "only the second way out failed"
    assert "  !  livepatch + direct + fentry: 2 of 36 orders" in report
    assert "  13 other sets of three in 468 orders: 468 r" in report
    for name in (failing_name(), PAIR):
        failed = report[report.index(f"FAIL  {name}") :].split("\n\n")[0]
        assert "2. attach" in failed
        assert "- 0\n       + EBUSY (16)" in failed
        assert failed.endswith(f"repeat: cohabit run --kernel debian:6.12.117+deb13 {name}")
    assert f"{NEW}, vm0, group vm0:g0: errno: attach: expected 0, saw EBUSY (16)" in report
    group = report[report.index("SPLAT  group vm0:g3") :].split("\n\n")[0]
    assert "64 scenarios side by side: direct-share+" in group
    assert "not seen again when they ran alone: 64 PASS" in group
    assert "group vm1:g12, " not in report, "a scenario stands for it"


def test_what_a_cut_run_left_open_is_told_once() -> None:
    events = small({})
    last = max(n for n, e in enumerate(events) if e["type"] == "step_start")
    report = text.render(model_of(events[: last + 1]))
    assert "FAIL  group vm0:g0" in report
    assert re.search(r"\d+ scenarios not finished: .*in step \d \(detach [ab]\)", report)
    assert "FAIL  livepatch" not in report
    assert len(report.splitlines()) < 60


# --- machines -------------------------------------------------------------------------------


def test_ktap_has_the_group_as_a_test(fine: RunModel, trouble: RunModel) -> None:
    (only,) = parse_ktap(ktap.render(fine).splitlines())
    assert only.passed
    assert len(only.children) == 1152
    (only,) = parse_ktap(ktap.render(trouble).splitlines())
    assert len(only.children) == 1152 + 1
    group = only.children[-1]
    assert (group.passed, group.name) == (False, "group vm0:g3")
    assert any("not seen again" in line for line in group.diagnostics)
    (only,) = parse_ktap(ktap.render(model_of(small({0: ("SPLAT", False)}))).splitlines())
    assert not only.passed, "a group alone fails its kernel"


def test_junit_has_the_group_as_an_error(trouble: RunModel) -> None:
    xml = JUnitXml.fromstring(junit.render(trouble).encode())
    assert (xml.tests, xml.failures, xml.errors) == (1153, 3, 1)
    (suite,) = list(xml)
    case = next(c for c in suite if c.name == "group vm0:g3")
    assert "SPLAT: WARNING" in str(case.result[0].message)
    # Its share, or the times of a suite would add up to a multiple of the run's.
    assert sum(c.time for c in suite) < trouble.seconds


def test_json_has_orders_and_groups(trouble: RunModel) -> None:
    rendered = jsonout.render(trouble)
    summary = json.loads(rendered)
    (kernel,) = summary["kernels"]
    assert kernel["matrix"]["rows"][0].startswith("PFPPP")
    first, second = kernel["matrix"]["orders"]
    assert (first["departure"], second["departure"]) == ([0, 1], [1, 0])
    assert (first["rows"][0][:3], second["rows"][0][:3]) == ("PrP", "PFP")
    assert len(kernel["triples"]) == 14
    assert kernel["triples"][0] == {
        "attachers": ["livepatch", "direct", "fentry"],
        "counts": {"CRASH": 1, "FAIL": 1, "PASS": 34},
    }
    groups = {g["id"]: g for g in summary["groups"]}
    assert not groups["vm0:g3"]["attributed"]
    assert groups["vm1:g12"]["attributed"]
    (failed,) = [s for s in summary["scenarios"] if s["name"] == PAIR]
    assert (failed["group"], failed["attachers"]) == ("vm0:g0", ["livepatch", "direct"])
    assert failed["steps"][0]["group_s"] == 0.4
    void = [s for s in summary["scenarios"] if s["regrouped"]]
    assert len(void) == 2 * GROUP
    assert not any(s["counts"] for s in void)
    # A scenario is a line: diffs and greps of large runs stay readable.
    assert rendered.count("\n") < len(summary["scenarios"]) + 200


# --- the page -------------------------------------------------------------------------------


def test_pairs_lead_to_their_scenarios(trouble: RunModel) -> None:
    page = html.render(trouble)
    table = page[page.index('<table class="mx">') :].split("</table>")[0]
    targets = re.findall(r'<a class=t-(\w+) href="#(s\d+)" title="(.*?)">(.)</a>', table)
    assert len({target for _, target, _, _ in targets}) == 648
    for _, target, _, _ in targets:
        assert len(re.findall(rf' id="?{target}"?[ >]', page)) == 1, target
    ((tone, target, title, letter),) = [t for t in targets if t[3] == "F"]
    assert (tone, letter) == ("bad", "F")
    assert title == "livepatch, then direct; the second leaves, then the first: failed"
    card = page[page.index(f'id="{target}"') :].split("</article>")[0]
    assert PAIR in card
    assert "predicted by one-ipmodify" in card


def test_triples_are_folded_and_failing_ones_first(trouble: RunModel) -> None:
    page = html.render(trouble)
    section = page[page.index('<section id="triples">') :].split("</section>")[0]
    assert "<details open" not in re.sub(r' class="\w+"', "", section)
    summaries = re.findall(r'<details class="fold"><summary>(.*?)</summary>', section)
    assert len(summaries) == 14
    assert "livepatch + direct + fentry" in summaries[0]
    assert "1 CRASH, 1 FAIL, 34 PASS" in summaries[0]
    tables = section.split('<table class="mx">')[1:]
    assert [len(re.findall(r"<a class=t-", t.split("</table>")[0])) for t in tables] == [36] * 14
    assert "livepatch, fentry, direct</th>" in tables[0]


def test_a_triples_timeline(fine: RunModel) -> None:
    page = html.render(fine)
    entry = page[page.index("livepatch+direct+fentry/attach:abc/detach:acb") :].split("</table>")[0]
    rows = [re.findall(r"<t[hd]([^>]*)>([^<]*)", row) for row in entry.split("<tr>")[1:]]
    assert [text for _, text in rows[0]][1:5] == [
        "1 attach a", "2 attach b", "3 attach c", "4 detach a",
    ]  # fmt: skip
    direct = dict(zip(["label", 1, 2, 3, 4, 5, 6, 7], rows[2], strict=False))
    assert direct["label"][1] == "b direct"
    assert direct[2] == (' class="no"', "\N{BALLOT X} EBUSY")
    assert rows[1][1] == (' colspan=3 class="on"', "")
    for row in rows[1:]:
        width = sum(int((re.findall(r"colspan=(\d+)", a) or [1])[0]) for a, _ in row[1:])
        assert width == len(rows[0]) - 1


def test_the_page_stays_small(tmp_path: Path) -> None:
    directory = write(troubled_policy(), tmp_path)
    began = time.monotonic()
    model = read(directory)
    was_read = time.monotonic()
    page = html.render(model)
    size, number = len(page.encode()), len(model.scenarios)
    sys.stdout.write(
        f"{number} scenarios: read in {was_read - began:.2f} s, page in "
        f"{time.monotonic() - was_read:.2f} s, {size / number:.0f} bytes of it a scenario\n"
    )
    assert size / number < 15e6 / 6000
    assert "cohabit: done" in page, "failed ones have their log"
    assert page.count("cohabit: done") < 40


def test_a_group_in_trouble_has_a_card(trouble: RunModel) -> None:
    page = html.render(trouble)
    assert re.findall("<h1>(.*?)</h1>", page) == ["Failed: 3 of 1152 scenarios and 1 group"]
    card = page[page.index("group vm0:g3</h3>") :].split("</article>")[0]
    assert "not seen again when they ran alone: 64 PASS" in card
    assert 'href="#console-vm0"' in card


# --- several kernels ------------------------------------------------------------------------


def test_lanes_and_slots_are_no_differences() -> None:
    chosen = [wanted(["ipmodify", "fmod_ret"], (0, 1), (0, 1)), *list(triples(1))[:3]]
    events = PolicyRun(chosen, kernels=(NEW, OTHER)).end()
    assert differences.find(model_of(events)) == []
    second = max(n for n, e in enumerate(events) if e["type"] == "kernel")
    text = json.dumps(events[second:]).replace("ipmodify-0", "ipmodify-3")
    moved = [*events[:second], *json.loads(text.replace("cohabit_000", "cohabit_077"))]
    assert differences.find(model_of(moved)) == []
    other = [*events[:second], *json.loads(text.replace("ipmodify-3", "original"))]
    assert differences.find(model_of(other)) != []


def test_matrices_of_several_kernels_lie_side_by_side() -> None:
    run = PolicyRun([wanted(["kprobe", "kprobe"], (0, 1), (1, 0))])
    both = PolicyRun(pairs(["ops", "kprobe"]), kernels=(NEW, OTHER)).end()
    gone = {e["scenario"] for e in both if e.get("kernel") == OTHER and "scenario" in e}
    kept = {f"{OTHER}/{run.scenarios[0].name}#1"}
    model = model_of(renumber([e for e in both if e.get("scenario") not in gone - kept]))
    found = matrix.build(model, OTHER)
    assert found is not None
    assert (found.attachers, found.departures) == (("ops", "kprobe"), ((0, 1), (1, 0)))
    assert ["".join(c.mark for c in pair) for row in found.rows for pair in row] == [
        "··", "··", "··", "·P",
    ]  # fmt: skip


# --- the display during a run ---------------------------------------------------------------


def test_progress_tells_groups_not_their_members() -> None:
    out = io.StringIO()
    with Progress(out) as progress:
        for event in troubled_policy():
            progress.feed(event)
    lines = out.getvalue().splitlines()
    alone = [line for line in lines if re.match(r"\[\d+/1152\] PASS ", line)]
    assert len(alone) == 2 * GROUP - 1, "only those that ran alone"
    assert "vm0:g0: 64 scenarios side by side" in lines
    passed = next(line for line in lines if "] vm0:g1 " in line)
    assert re.fullmatch(rf"\[128/1152\] vm0:g1 on {re.escape(NEW)} \(.*\): 64 PASS", passed)
    assert any(f"FAIL  {PAIR} on {NEW}" in line for line in lines)
    assert any(line.startswith("[64/1152] vm0:g0 ") and "1 FAIL, 63 PASS" in line for line in lines)
    (group,) = [line for line in lines if "SPLAT vm0:g3" in line]
    assert group.endswith("WARNING at kernel/trace/ftrace.c:2109")
    assert any("CRASH vm1:g12" in line for line in lines)
    assert sum("run again alone" in line for line in lines) == 2
    assert any(line.startswith("[1152/1152] vm2:g18 ") for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_says_how_far_a_group_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    events = small({0: ("SPLAT", False)}, groups=2)
    regroup = next(n for n, e in enumerate(events) if e["type"] == "scenario_regroup")
    out = Terminal()
    with Progress(out) as progress:
        for event in events[:regroup]:
            progress.feed(event)
    shown = out.getvalue()
    assert "0/128" in shown
    assert "vm0: 64 scenarios side by side, step 2 of 4: attach" in shown
    ended = next(n for n, e in enumerate(events) if e["type"] == "group_end")
    out = Terminal()
    with Progress(out) as progress:
        for event in events[: ended + 1]:
            progress.feed(event)
    last = out.getvalue()[out.getvalue().rindex("0/128") :]
    assert "1 failed" not in last, "its members may show whose fault it is"
    assert "vm0: between scenarios" in last


# --- old records ----------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["6.12", "5.10-6.1-7.2-7.3"])
def test_records_from_before_groups_are_read(run: str) -> None:
    model = read(Path(__file__).resolve().parents[1] / "data" / "runs" / run)
    assert exit_status(model) == 0
    assert model.groups == {}
    assert set(model.counts()) <= {"PASS", "XFAIL", "SKIP"}
    for render in (text.render, html.render, ktap.render, junit.render, jsonout.render):
        assert "livepatch+fexit" in render(model)
    summary = json.loads(jsonout.render(model))
    named = {s["name"]: s["attachers"] for s in summary["scenarios"]}
    assert named["livepatch+fexit/attach:ba/detach:ba"] == ["fexit", "livepatch"]
