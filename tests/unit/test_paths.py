# SPDX-License-Identifier: GPL-2.0-only
"""Path independence: what disagrees is found, what is known is excepted and nothing else.

The kernel is the model's (model_kernel.py); where it shall do wrong, its observations
are changed in the record.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from model_kernel import Event, names, record_run

from harness import paths
from harness.cli.main import main
from harness.paths import Disagreement, Paths, Report
from harness.policy.profile import Profile
from harness.scenario import catalogue
from harness.scenario.steps import ANY, Attach, Detach, Scenario, Step

PAIRS = (
    "livepatch+fexit/*", "livepatch+direct/*", "ops+ops-regs/*", "fexit+fmod_ret/*",
    "livepatch+livepatch/*", "fmod_ret+fmod_ret/*", "kprobe+function-tracer/*",
    "function-tracer+function-graph/*", "direct+fentry/*", "misuse/direct-*",
)  # fmt: skip


def scenario(name: str, *steps: Step) -> Scenario:
    return Scenario(name, (ANY,), steps)


def come(identity: str, attacher: str) -> Attach:
    return Attach(identity, attacher, (ANY,))


def report(events: Sequence[Event]) -> Report:
    collected = Paths()
    for event in events:
        collected.feed(event)
    return collected.report()


def run(
    tmp_path: Path, *scenarios: str | Scenario, version: str = "6.12", **options: Any
) -> list[Event]:
    """Runs scenarios, by glob or given, one after the other on the same function."""
    chosen: list[Scenario] = []
    for one in scenarios:
        chosen += catalogue.select([one], whole=True) if isinstance(one, str) else [one]
    options.setdefault("side_by_side", 1)
    return record_run(tmp_path / "run", chosen, [version], **options)


def seen(events: Sequence[Event], name: str, index: int) -> Event:
    """What was observed after a step, to be changed."""
    identity = next(e["scenario"] for e in events if e.get("name") == name)
    observed: Event = next(
        e["observed"]
        for e in events
        if e["type"] == "step_end" and e["scenario"] == identity and e["index"] == index
    )
    return observed


def record_of(observed: Event) -> Event:
    record: Event = next(iter(observed["registry"].values()))
    return record


def only(found: Report) -> Disagreement:
    assert len(found.unexplained) == 1, [str(d.pair) for d in found.unexplained]
    return found.unexplained[0]


# --- a kernel that does everything right ------------------------------------------------------


@pytest.mark.parametrize("version", ["5.10", "6.12", "7.2"])
@pytest.mark.parametrize("side_by_side", [1, 128])
def test_the_policy_does_not_depend_on_the_path(
    tmp_path: Path, version: str, side_by_side: int
) -> None:
    events = run(tmp_path, *PAIRS, version=version, side_by_side=side_by_side)
    assert not names(events, "FAIL")
    found = report(events)
    assert found.unexplained == []
    # Each place can only be compared if more than one order led to it.
    assert found.several > 20
    assert found.observations > 2 * found.places


def test_triples_in_all_orders(tmp_path: Path) -> None:
    events = run(tmp_path, "livepatch+fexit+ops-regs/*", "direct+ipmodify+kprobe/*")
    found = report(events)
    assert found.unexplained == []
    assert {d for x in found.disagreements for d in x.excepted} <= {"modified-stays"}


# --- what is known ----------------------------------------------------------------------------

THIRD = scenario(
    "livepatch-first", come("a", "livepatch"), come("b", "ops"), come("c", "ops"),
    Detach("a"), Detach("b"), Detach("c"),
)  # fmt: skip

KNOWN: dict[str, tuple[str, tuple[str | Scenario, ...]]] = {
    "modified-stays": ("6.12", ("ops+ops/attach:ab/detach:ab", "livepatch+ops/*")),
    "modified-when-rewritten": ("6.12", ("livepatch/as-third", THIRD)),
    "filter-change-keeps-regs": ("6.12", ("ops+ops/attach:ab/detach:ab", "kprobe/filter-change")),
    "share-outlives-programs": (
        "7.2",
        ("fexit/alone/on:cohabit_f3", "livepatch+fexit/attach:ba/detach:ba", "fexit/softirq"),
    ),
    "kprobes-keep-their-ops": ("6.12", ("kprobe+kprobe-post/*",)),
    "peers-asked-at-registration": (
        "6.12",
        ("direct+kprobe-post/*", "kprobe-post/second-skips-direct"),
    ),
}


def test_these_are_the_exceptions() -> None:
    assert {known.name for known in paths.EXCEPTIONS} == KNOWN.keys()
    for known in paths.EXCEPTIONS:
        assert known.reason
        assert ".c: " in known.source


@pytest.mark.parametrize("name", KNOWN)
def test_what_depends_on_the_past_is_excepted_by_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, scenarios = KNOWN[name]
    if name == "share-outlives-programs":
        lane = "security_cohabit_000"
        scenarios = (
            *scenarios,
            scenario("again", come("a", "fexit"), Detach("a")).placed(lane),
        )
    events = run(tmp_path, *scenarios, version=version)
    assert not names(events, "FAIL")
    found = report(events)
    assert found.unexplained == []
    assert name in {n for d in found.disagreements for n in d.excepted}
    rest = tuple(known for known in paths.EXCEPTIONS if known.name != name)
    monkeypatch.setattr(paths, "EXCEPTIONS", rest)
    assert report(events).unexplained


def test_on_arm64_only_m_depends_on_the_past(tmp_path: Path) -> None:
    """Kprobes are no users of ftrace there, and nobody keeps R or is jumped to."""
    scenarios = [one for _, chosen in KNOWN.values() for one in chosen]
    events = run(tmp_path, *scenarios, version="7.2", arch="arm64")
    assert not names(events, "FAIL")
    found = report(events)
    assert found.unexplained == []
    assert {name for d in found.disagreements for name in d.excepted} == {
        "modified-stays", "modified-when-rewritten",
    }  # fmt: skip
    # An I that a kprobe brought would be no exception, as it is on x86-64.
    name = "kprobe+kprobe-post/attach:ba/detach:ab"
    for arch, explained in (("x86_64", True), ("arm64", False)):
        pair = run(tmp_path, "kprobe+kprobe-post/*", "ops+kprobe-post/*", "ops+ops/*", arch=arch)
        if arch == "arm64":
            for event in pair:
                if event["type"] == "step_end" and name in event["scenario"]:
                    lane = next(iter(event["observed"]["registry"]))
                    event["observed"]["registry"][lane] = {
                        "count": 1, "flags": ["I"], "direct": None, "jmp": False,
                    }  # fmt: skip
        assert (report(pair).unexplained == []) is explained


def test_where_a_trampoline_lies_is_no_history(tmp_path: Path) -> None:
    globs = "direct/alone/on:cmdline_proc_show", "direct/modify", "reach/direct/*/modify*"
    events = run(tmp_path, *globs, version="7.2", arch="arm64")
    targets = {
        record["direct"]
        for event in events
        if event["type"] == "step_end"
        for record in event["observed"]["registry"].values()
        if record and record["direct"]
    }
    assert {t.rpartition("_")[0] for t in targets} >= {"cohabit_direct_tramp", "cohabit_far_tramp"}
    assert report(events).unexplained == []


# --- what looks like it and is not ------------------------------------------------------------


def flag(events: Sequence[Event], name: str, index: int, letter: str) -> None:
    """Turns a flag of a record over."""
    record = record_of(seen(events, name, index))
    record["flags"] = sorted({letter} ^ set(record["flags"]))


PAIR = "livepatch+ops/attach:ab/detach:ab", "livepatch+ops/attach:ba/detach:ba"


def test_a_livepatch_alone_has_m(tmp_path: Path) -> None:
    events = run(tmp_path, *PAIR)
    flag(events, PAIR[0], 0, "M")
    assert only(report(events)).differences[0].what == "flag M"


def test_r_is_not_kept_by_an_ops_of_ones_own(tmp_path: Path) -> None:
    name = "ops+ops-regs/attach:ba/detach:ba"
    events = run(tmp_path, name, "ops+ops-regs/attach:ab/detach:ba", "ops+ops/*")
    assert report(events).disagreements == []
    # ops-regs has left, ops is there.
    flag(events, name, 2, "R")
    found = report(events).unexplained
    assert found
    assert {d.differences[0].what for d in found} == {"flag R"}


def test_r_is_not_kept_past_an_empty_record(tmp_path: Path) -> None:
    again = scenario("again", come("k", "kprobe"), Detach("k"), come("a", "ops"), Detach("a"))
    events = run(tmp_path, again, "ops+ops/attach:ab/detach:ab")
    flag(events, "again", 2, "R")
    assert only(report(events)).pair.place.attachers == ("ops",)


def test_a_jump_is_not_a_call_for_those_that_do_not_share(tmp_path: Path) -> None:
    names_ = "fexit+ops/attach:ab/detach:ba", "fexit+ops/attach:ba/detach:ba"
    events = run(tmp_path, *names_, version="7.2")
    assert report(events).unexplained == []
    # With fexit alone that is what a trampoline of the past shows; not with fentry, nor
    # where an IPMODIFY ops is there.
    shared = run(tmp_path / "s", "livepatch+fexit/attach:*/detach:ab", version="7.2")
    record_of(seen(shared, "livepatch+fexit/attach:ab/detach:ab", 1))["jmp"] = True
    assert [d.what for d in only(report(shared)).differences] == ["jmp"]
    fentry = run(tmp_path / "f", *(n.replace("fexit", "fentry") for n in names_), version="7.2")
    record_of(seen(fentry, "fentry+ops/attach:ab/detach:ba", 0))["jmp"] = True
    assert [d.what for d in only(report(fentry)).differences] == ["jmp"]


def test_kprobes_armed_alike_must_look_alike(tmp_path: Path) -> None:
    name = "ops+kprobe-post/attach:ba/detach:ab"
    events = run(tmp_path, name, "ops+kprobe-post/attach:ab/detach:ab")
    flag(events, name, 0, "I")
    assert [d.what for d in only(report(events)).differences] == ["flag I"]


def test_how_kprobes_are_armed_explains_no_count(tmp_path: Path) -> None:
    events = run(tmp_path, "kprobe+kprobe-post/*")
    assert report(events).unexplained == []
    record_of(seen(events, "kprobe+kprobe-post/attach:ba/detach:ba", 1))["count"] = 2
    counts = [d for d in report(events).disagreements if "count" in {x.what for x in d.differences}]
    assert len(counts) > 1
    assert not any(d.excepted for d in counts)


def test_a_kprobe_elsewhere_explains_only_what_a_kprobe_gets(tmp_path: Path) -> None:
    one, two = "security_cohabit_000", "security_cohabit_001"
    elsewhere = Scenario(
        "elsewhere",
        (one, two),
        (
            Attach("p", "kprobe-post", (one,)),
            Attach("q", "kprobe-post", (two,)),
            Detach("q"),
            Attach("d", "direct", (two,)),
            Detach("d"),
            Detach("p"),
        ),
    )
    alone = "kprobe-post/alone/on:cohabit_f1", "direct/alone/on:cohabit_f1"
    events = run(tmp_path, elsewhere, *alone)
    assert report(events).unexplained == []
    seen(events, alone[0], 0)["errno"] = 16
    seen(events, alone[1], 1)["errno"] = 16
    found = report(events).disagreements
    assert {d.pair.place.asks for d in found} >= {"attach kprobe-post", "detach direct"}
    assert not any(d.excepted for d in found if d.pair.place.asks)


def test_kprobes_are_armed_no_longer_than_one_is_there(tmp_path: Path) -> None:
    again = scenario("again", come("p", "kprobe-post"), Detach("p"), come("k", "kprobe"))
    events = run(tmp_path, again, "kprobe/alone/on:cohabit_f1")
    assert report(events).unexplained == []
    flag(events, "again", 2, "I")
    assert only(report(events)).pair.place.attachers == ("kprobe",)


def test_a_kprobe_does_not_pass_a_direct_call_for_nothing(tmp_path: Path) -> None:
    events = run(tmp_path, "direct+kprobe-post/*")
    refused = [
        e for e in events if e["type"] == "step_end" and e["observed"]["errno"] == 16
    ]  # fmt: skip
    refused[0]["observed"]["errno"] = 0
    found = report(events).unexplained
    assert "attach kprobe-post" in {d.pair.place.asks for d in found}


# --- planted ----------------------------------------------------------------------------------


def test_a_refusal_that_leaves_something_is_found(tmp_path: Path) -> None:
    def forgets(profile: Profile) -> Profile:
        return Profile(**{**vars(profile), "without": frozenset({"refused-no-trace"})})

    events = run(tmp_path, "livepatch+direct/*", "ipmodify+ipmodify/*", wrong=forgets)
    found = report(events).unexplained
    assert ("livepatch",) in {d.pair.place.attachers for d in found}
    one = next(d for d in found if d.pair.place.attachers == ("livepatch",))
    assert "!direct" in (*one.pair.first.order, *one.pair.second.order)
    assert "count" in {difference.what for difference in one.differences}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda o: o["behaviour"].popitem()[1].clear(), None),
        (lambda o: _behaviour(o).update(body="original"), "body"),
        (lambda o: _behaviour(o)["hits"].update(b=0), "hits of ops#1"),
        (lambda o: record_of(o).update(count=1), "count"),
        (lambda o: record_of(o).update(direct="elsewhere"), "direct"),
        (lambda o: o["registry"].update(dict.fromkeys(o["registry"])), "record"),
    ],
)
def test_one_changed_observation_is_found(tmp_path: Path, change: Any, what: str | None) -> None:
    events = run(tmp_path, *PAIR)
    good = copy.deepcopy(events)
    assert report(good).unexplained == []
    observed = seen(events, PAIR[0], 1)
    change(observed)
    if what is None:
        # A function that was not looked at is not compared, nor does anything break.
        assert report(events).unexplained == []
        return
    found = only(report(events))
    assert what in {difference.what for difference in found.differences}
    assert found.pair.place.attachers == ("livepatch", "ops")
    assert {found.pair.first.scenario, found.pair.second.scenario} == set(PAIR)
    orders = {found.pair.first.order, found.pair.second.order}
    assert orders == {("+livepatch", "+ops"), ("+ops", "+livepatch")}
    assert {found.pair.first.step, found.pair.second.step} == {1}


def _behaviour(observed: Event) -> Event:
    behaviour: Event = next(iter(observed["behaviour"].values()))
    return behaviour


def test_a_later_answer_that_depends_on_the_path_is_found(tmp_path: Path) -> None:
    name = "livepatch+ipmodify/attach:ab/detach:ab"
    events = run(tmp_path, name, "livepatch+ipmodify/attach:ab/detach:ba")
    seen(events, name, 1)["errno"] = 22
    found = report(events)
    asked = [d for d in found.unexplained if d.pair.place.asks == "attach ipmodify"]
    assert [(d.differences[0].first, d.differences[0].second) for d in asked] == [
        ("EINVAL (22)", "EBUSY (16)")
    ]


def test_a_return_value_of_another_body_is_found(tmp_path: Path) -> None:
    pair = "livepatch+fexit/attach:ab/detach:ab", "livepatch+fexit/attach:ba/detach:ab"
    events = run(tmp_path, *pair)
    assert report(events).unexplained == []
    _behaviour(seen(events, pair[0], 1))["ret"] = 1 << 32
    found = only(report(events))
    assert found.pair.place.asks == "return value"
    assert {found.differences[0].first, found.differences[0].second} == {
        "original", "livepatch#1",
    }  # fmt: skip


def test_slots_and_functions_do_not_matter(tmp_path: Path) -> None:
    """The second of two livepatches has another module and body than the first."""
    events = run(tmp_path, "livepatch+livepatch/*", "livepatch/alone/*")
    assert report(events).disagreements == []


def test_a_function_with_many_arguments_answers_for_itself(tmp_path: Path) -> None:
    events = run(tmp_path, "fentry/alone/*", version="6.1")
    errnos = {e["observed"]["errno"] for e in events if e["type"] == "step_end"}
    assert errnos == {0, 524}
    assert report(events).disagreements == []


def test_a_function_that_takes_no_fmod_ret_answers_for_itself(tmp_path: Path) -> None:
    events = run(tmp_path, "fmod_ret/where-it-must-not-be", "fmod_ret/alone/*")
    assert {e["observed"]["errno"] for e in events if e["type"] == "step_end"} == {0, 22}
    assert report(events).disagreements == []


def test_who_could_not_leave_is_still_there(tmp_path: Path) -> None:
    events = run(tmp_path, "ops+ops/*")
    observed = seen(events, "ops+ops/attach:ab/detach:ab", 2)
    observed["errno"] = 16
    places = [d.pair.place for d in report(events).unexplained]
    assert ("ops", "ops") in [p.attachers for p in places if not p.asks]


def test_who_was_displaced_is_not_there(tmp_path: Path) -> None:
    events = run(
        tmp_path, "function-tracer+function-graph/*", "livepatch/replace*",
        "function-tracer/alone/*", "function-graph/alone/*", "livepatch/alone/*",
    )  # fmt: skip
    found = report(events)
    assert found.unexplained == []
    pairs = {d.pair.place.attachers for d in found.disagreements}
    assert not any("function-tracer" in p and "function-graph" in p for p in pairs)


# --- what is not compared ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("ops/ftrace_enabled:off-on", 1),
        ("livepatch/pending", 2),
        ("livepatch/pending/reverse", 2),
        ("ops/module-gone", 1),
        ("ops/module-gone", 5),
        ("livepatch/pending/force", 2),
        ("livepatch/pending/force", 3),
        ("misuse/ipmodify-and-direct", 0),
    ],
)
def test_special_states_are_not_compared(tmp_path: Path, name: str, index: int) -> None:
    good = run(tmp_path, name, "*/alone/on:cohabit_f1", "ops+ops/attach:ab/detach:ab")
    before = report(good)
    for record in seen(good, name, index)["registry"].values():
        if record:
            record["count"] += 7
    for behaviour in seen(good, name, index)["behaviour"].values():
        behaviour["body"] = "nobody's"
    assert report(good).disagreements == before.disagreements


def test_after_a_held_call_it_is_compared_again(tmp_path: Path) -> None:
    events = run(tmp_path, "livepatch/pending", "livepatch/alone/on:cohabit_f1")
    assert report(events).disagreements == []
    record_of(seen(events, "livepatch/pending", 3))["count"] = 7
    assert only(report(events)).differences[0].what == "count"


def test_a_module_that_came_back_is_compared_if_nobody_was_there(tmp_path: Path) -> None:
    """A BPF program has to leave before the module may, an ops does not."""
    names_ = "fentry/module-gone", "ops/module-gone"
    events = run(tmp_path, *names_, "fentry/alone/on:cohabit_f1", "ops/alone/on:cohabit_f1")
    assert report(events).unexplained == []
    for name in names_:
        record_of(seen(events, name, 5))["count"] = 7
    found = only(report(events))
    assert found.pair.place.attachers == ("fentry",)
    orders = (found.pair.first.order, found.pair.second.order)
    assert ("+fentry", "-fentry", "(unloaded)", "+fentry") in orders


def test_while_the_module_is_gone_nothing_is_compared(tmp_path: Path) -> None:
    events = run(tmp_path, "fentry/module-gone", "fentry/alone/on:cohabit_f1")
    for behaviour in seen(events, "fentry/module-gone", 3)["behaviour"].values():
        assert behaviour["body"] == "absent"
        behaviour["hits"]["a"] = 3
    assert report(events).disagreements == []


def test_a_transition_that_waits_is_not_compared(tmp_path: Path) -> None:
    events = run(tmp_path, *PAIR)
    observed = seen(events, PAIR[0], 1)
    record_of(observed)["count"] = 7
    assert report(events).unexplained
    observed["livepatch"]["cohabit_klp_a"]["transition"] = 1
    assert report(events).unexplained == []


def test_an_answer_while_ftrace_is_off_is_not_compared(tmp_path: Path) -> None:
    events = run(tmp_path, "livepatch/ftrace_enabled:attach-while-off", "livepatch/alone/*")
    assert {e["observed"]["errno"] for e in events if e["type"] == "step_end"} == {0, 16}
    assert report(events).unexplained == []


def test_ftrace_that_is_on_again_is_compared(tmp_path: Path) -> None:
    name = "ops/ftrace_enabled:off-on"
    events = run(tmp_path, name, "ops/alone/on:cohabit_f1")
    assert report(events).disagreements == []
    record_of(seen(events, name, 2))["count"] = 2
    assert only(report(events)).differences[0].what == "count"


def test_a_known_difference_is_left_out(tmp_path: Path) -> None:
    events = run(tmp_path, *PAIR)
    record_of(seen(events, PAIR[0], 1))["count"] = 9
    assert report(events).unexplained
    identity = next(e["scenario"] for e in events if e.get("name") == PAIR[0])
    for event in events:
        if event["type"] == "scenario_end" and event["scenario"] == identity:
            event.update(verdict="XFAIL", xfail="stale-regs")
    found = report(events)
    assert found.unexplained == []
    assert found.left_out == {"stale-regs": 1}


def test_a_run_that_was_cut_off_counts(tmp_path: Path) -> None:
    events = run(tmp_path, *PAIR)
    record_of(seen(events, PAIR[1], 1))["count"] = 9
    cut = [e for e in events if e["type"] != "scenario_end"]
    assert report(cut).unexplained


# --- the command ------------------------------------------------------------------------------


def write(directory: Path, events: Sequence[Event]) -> Path:
    directory.mkdir(parents=True)
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (directory / "events.jsonl").write_text(lines, encoding="utf-8")
    return directory


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = run(tmp_path, *PAIR)
    good = write(tmp_path / "good", events)
    assert main(["paths", str(good)]) == 0
    assert "0 pairs of histories disagree" in capsys.readouterr().out
    record_of(seen(events, PAIR[0], 1))["count"] = 5
    bad = write(tmp_path / "bad", events)
    assert main(["paths", str(bad)]) == 1
    said = capsys.readouterr().out
    for name in PAIR:
        assert f"{name}, step 2: " in said
    assert "count: " in said
    assert main(["paths", str(bad), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["unexplained"] == 1
    assert [h["scenario"] for h in data["disagreements"][0]["histories"]] == list(PAIR)


def test_two_runs_are_compared_with_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "one", run(tmp_path, PAIR[0]))
    events = run(tmp_path, PAIR[1])
    record_of(seen(events, PAIR[1], 1))["count"] = 5
    two = write(tmp_path / "two", events)
    assert main(["paths", str(one)]) == 0
    assert main(["paths", str(two)]) == 0
    assert main(["paths", str(one), str(two)]) == 1
    assert f"{two}:{PAIR[1]}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", '{"type": "note"}\n'])
def test_nothing_to_compare_is_no_success(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events.jsonl").write_text(text)
    assert main(["paths", str(tmp_path)]) == 2
    assert main(["paths", str(tmp_path / "missing")]) == 2
    assert "no run's record" in capsys.readouterr().err


def test_a_damaged_record_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = run(tmp_path, PAIR[0])
    good = write(tmp_path / "r", events)
    file = good / "events.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert main(["paths", str(good)]) == 0
    file.write_text("{}\n" + whole)
    assert main(["paths", str(good)]) == 3
    del seen(events, PAIR[0], 0)["errno"]
    bad = write(tmp_path / "b", events)
    assert main(["paths", str(bad)]) == 3
    assert "not the record of a run" in capsys.readouterr().err
