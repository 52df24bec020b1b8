# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios in step (harness/run/company.py), on a kernel that does what the policy says."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from obedient import Obedient, Reply
from policy_help import ARM7_2, OFF, V5_10, V6_12, V7_2, on

from harness.agent import abi
from harness.policy.attachers import ATTACHERS
from harness.policy.profile import Profile
from harness.policy.state import State
from harness.run.company import Company, Member, SharedTroubleError
from harness.run.record import Record
from harness.scenario import catalogue, matrix
from harness.scenario.company import gather, sociable
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import (
    ANY,
    Attach,
    Call,
    Detach,
    Disable,
    Hold,
    Modify,
    Release,
    Scenario,
    Step,
    Unload,
)

LANES = [f.name for f in FUNCTIONS.values() if f.lane is not None]
Events = list[Mapping[str, Any]]


def scenario(name: str, *steps: Step, watch: bool = False) -> Scenario:
    functions = [f for s in steps if isinstance(s, Attach) for f in s.functions]
    return Scenario(name, tuple(dict.fromkeys(functions)), steps, watch=watch)


class Run:
    """A company on an obedient kernel, with what came of it."""

    def __init__(
        self,
        directory: Path,
        scenarios: Sequence[Scenario],
        profile: Profile = V6_12,
        lie: Callable[[int, Reply], None] | None = None,
        group: str = "vm0:g1",
    ) -> None:
        self.events: Events = []
        self.kernel = Obedient(profile, lie)
        self.members = [
            Member(s, f"k/{s.name}#1", prefix=f"{n}:" if group else "")
            for n, s in enumerate(scenarios)
        ]
        with Record(directory, (self.events.append,)) as record:
            self.company = Company(
                self.members, profile, record, self.kernel.ask,
                lambda reply: list(reply["reports"]), State(), group,
            )  # fmt: skip
            self.company.run()

    def acts(self) -> list[list[dict[str, Any]]]:
        """What the agent was asked to do, phase by phase."""
        return [request["acts"] for request in self.kernel.requests]

    def failed(self) -> dict[str, str]:
        return {m.scenario.name: str(m.mismatches[0]) for m in self.members if m.mismatches}

    def of(self, kind: str, name: str) -> Events:
        return [e for e in self.events if e["type"] == kind and e["scenario"] == f"k/{name}#1"]


# --- everything goes as it should -----------------------------------------------------------


@pytest.mark.parametrize("profile", [V5_10, V7_2, ARM7_2], ids=lambda p: f"{p.arch}-{p.name}")
def test_pairs_in_company(tmp_path: Path, profile: Profile) -> None:
    """All but the triples, as many at a time as there are lanes: each as if it were alone."""
    left = [s for s in catalogue.everything() if sociable(s) and len(s.steps) < 8]
    wanted, done = len(left), 0
    while left:
        company = gather(left[0], left[1:], profile is not V5_10, abi.LANES)
        names = {s.name for s in company}
        left = [s for s in left if s.name not in names]
        run = Run(tmp_path / str(done), company, profile)
        assert run.failed() == {}
        assert run.company.splats == []
        assert run.kernel.state.attached == run.company.state.attached == ()
        done += len(company)
    assert done == wanted > 1000


def test_triples_in_company(tmp_path: Path) -> None:
    triples = [s for s in matrix.triples() if sociable(s)]
    for number, profile in enumerate((V5_10, V7_2)):
        company = gather(triples[number], triples[number + 1 :], True, abi.LANES)
        assert len(company) == abi.LANES
        run = Run(tmp_path / profile.name, company, profile)
        assert run.failed() == {}
        assert run.kernel.state.attached == ()


@pytest.mark.parametrize(
    "profile", [V5_10, V6_12, V7_2, ARM7_2], ids=lambda p: f"{p.arch}-{p.name}"
)
def test_each_alone(tmp_path: Path, profile: Profile) -> None:
    """Acts and observations fit together for each kind of step that there is."""
    seen = set()
    # This kernel has no call sites to look at.
    alone = [s for s in catalogue.default() if not sociable(s) and not s.reach]
    for number, wanted in enumerate(alone):
        (placed,) = gather(wanted, [], True, 1)
        run = Run(tmp_path / str(number), [placed], profile, group="")
        assert run.failed() == {}, wanted.name
        assert run.company.splats == [], wanted.name
        seen |= {act["do"] for acts in run.acts() for act in acts}
    assert seen == {"attach", "detach", "disable", "enable", "force", "modify", "write", "call",
                    "hold", "release", "unload", "load", "misuse"}  # fmt: skip


# --- what the agent is asked ----------------------------------------------------------------


def both(first: str, second: str, name: str = "") -> Scenario:
    steps = on("a", first, ANY), on("b", second, ANY), Detach("a"), Detach("b")
    return Scenario(name or f"{first}+{second}", (ANY,), steps)


def company(*pairs: tuple[str, str]) -> list[Scenario]:
    scenarios = [both(*pair, name=f"{n}") for n, pair in enumerate(pairs)]
    found = gather(scenarios[0], scenarios[1:], True, abi.LANES)
    assert len(found) == len(pairs)
    return found


def told(acts: list[dict[str, Any]]) -> list[str]:
    """Acts in short: what, who, slot, and on which lanes."""
    short = []
    for act in acts:
        lanes = "".join(str(LANES.index(f)) for f in act.get("functions", ()))
        words = [act["do"], act.get("attacher", ""), str(act.get("slot", "")), lanes]
        short.append(" ".join([*(word for word in words if word), act["id"]]))
    return short


def test_equal_attachments_are_one(tmp_path: Path) -> None:
    run = Run(tmp_path, company(("ops", "livepatch"), ("ops", "kprobe"), ("livepatch", "ops")))
    assert [told(acts) for acts in run.acts()] == [
        ["attach ops 0 01 vm0:g1:0:ops", "attach livepatch 0 2 2:a"],
        ["attach livepatch 1 0 0:b", "attach kprobe 0 1 1:b", "attach ops 1 2 2:b"],
        ["detach vm0:g1:0:ops", "detach 2:a"],
        ["detach 0:b", "detach 1:b", "detach 2:b"],
    ]
    assert [r["functions"] for r in run.kernel.requests] == [LANES[:3]] * 4
    assert {r["watch"] for r in run.kernel.requests} == {False}


def test_who_is_refused_is_asked_for_alone(tmp_path: Path) -> None:
    """So that the refusal is its own, and nobody else's attach fails with it."""
    pairs = ("livepatch", "ipmodify"), ("ops", "ipmodify"), ("kprobe", "ipmodify")
    run = Run(tmp_path, company(*pairs, ("ipmodify", "ipmodify")))
    assert told(run.acts()[1]) == [
        # These first, so that there is a slot for them, which is free again afterwards.
        "attach ipmodify 1 0 0:b", "attach ipmodify 1 3 3:b",
        "attach ipmodify 1 12 vm0:g1:1:ipmodify",
    ]  # fmt: skip
    assert run.failed() == {}
    ends = [run.of("step_end", str(n))[1]["observed"]["errno"] for n in range(4)]
    assert ends == [errno.EBUSY, 0, 0, errno.EBUSY]


def test_programs_are_on_one_function_each(tmp_path: Path) -> None:
    run = Run(tmp_path, company(*[("fexit", "fentry")] * 3))
    assert told(run.acts()[0]) == [f"attach fexit 0 {n} {n}:a" for n in range(3)]


def test_trampolines_are_told_lanes_only(tmp_path: Path) -> None:
    """A direct call to another function cannot be one with others."""
    elsewhere = [Scenario(f, (f,), both("direct", "ops").placed(f).steps)
                 for f in ("cohabit_f3", "cohabit_f6")]  # fmt: skip
    lanes = company(("direct", "ops"), ("direct", "ops"))
    run = Run(tmp_path, [*elsewhere, *lanes])
    first = [(act["id"], act["functions"]) for act in run.acts()[0]]
    assert first == [
        ("0:a", ["cohabit_f3"]), ("1:a", ["cohabit_f6"]), ("vm0:g1:0:direct", LANES[:2]),
    ]  # fmt: skip


def test_one_alone_keeps_its_names(tmp_path: Path) -> None:
    (pair,) = company(("ops", "direct"))
    run = Run(tmp_path, [pair], group="")
    assert [told(acts) for acts in run.acts()] == [
        ["attach ops 0 0 a"], ["attach direct 0 0 b"], ["detach a"], ["detach b"],
    ]  # fmt: skip


def test_a_second_chance(tmp_path: Path) -> None:
    """What was refused is attached again, together where it is the same; the rest is left out."""
    pairs = [s for s in matrix.pairs() if s.name.endswith("/attach:ab/detach:ab")]
    chosen = [s for s in pairs if (s.matrix or ())[:2] in {
        ("livepatch", "ipmodify"), ("ipmodify", "ipmodify"), ("ipmodify", "ops")}]  # fmt: skip
    run = Run(tmp_path, gather(chosen[0], chosen[1:], True, 8))
    assert [len(acts) for acts in run.acts()] == [2, 3, 2, 1, 2]
    assert told(run.acts()[3]) == ["attach ipmodify 0 01 vm0:g1:3:ipmodify"]
    assert told(run.acts()[4]) == ["detach vm0:g1:3:ipmodify", "detach 2:b"]
    skipped = [(e["scenario"], e["index"]) for e in run.events if e["type"] == "step_skip"]
    assert skipped == [("k/ipmodify+ops/attach:ab/detach:ab#1", 3)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # A transition that is held up is not waited for, but what ends it is.
        ([Hold("h", "cohabit_hold"), on("a", "livepatch", "cohabit_hold"), Release("h"),
          Detach("a")], [{}, {"wait": False}, {"wait": True}, {}]),
        ([Hold("h", "cohabit_hold"), on("a", "ops", "cohabit_hold"), Release("h")],
         [{}, {}, {"wait": False}]),
        ([Hold("h", "cohabit_hold"), on("a", "livepatch", "cohabit_hold"),
          on("b", "livepatch", "cohabit_f1")], [{}, {"wait": False}, {"wait": False}]),
        # Nor is what must be refused.
        ([on("a", "fentry", LANES[0]), Unload()], [{}, {"patience": 0.0}]),
        ([on("a", "ops", LANES[0]), Unload()], [{}, {}]),
        ([on("l", "livepatch", "cohabit_f1"), Hold("h", "cohabit_hold"),
          on("a", "livepatch", "cohabit_hold"), Detach("l")],
         [{}, {}, {"wait": False}, {"patience": 0.0}]),
    ],
    ids=lambda v: "+".join(type(s).__name__ for s in v) if isinstance(v[0], Hold | Attach) else "",
)  # fmt: skip
def test_how_long_the_agent_waits(
    tmp_path: Path, steps: list[Step], expected: list[dict[str, Any]]
) -> None:
    functions = ("cohabit_hold", "cohabit_f1", LANES[0])
    run = Run(tmp_path, [Scenario("mine", functions, tuple(steps))], group="")
    assert run.failed() == {}
    waits = [{k: v for k, v in act.items() if k in ("wait", "patience")}
             for (act,) in run.acts()]  # fmt: skip
    assert waits == expected


def test_other_steps_are_sent_as_they_are(tmp_path: Path) -> None:
    steps = on("d", "direct", LANES[0]), Modify("d", 1), Call("softirq"), Detach("d"), OFF
    run = Run(tmp_path, [scenario("mine", *steps)], group="")
    assert [act for (act,) in run.acts()][1:] == [step.to_json() for step in steps[1:]]
    assert [r["context"] for r in run.kernel.requests] == ["process"] * 2 + ["softirq"] + [
        "process"
    ] * 2


def test_replace_is_a_livepatch_that_replaces(tmp_path: Path) -> None:
    steps = on("a", "livepatch", LANES[0]), on("r", "livepatch-replace", LANES[0]), Disable("r")
    run = Run(tmp_path, [scenario("mine", *steps, Detach("a"), Detach("r"))], group="")
    assert run.acts()[1] == [
        {"do": "attach", "id": "r", "attacher": "livepatch", "functions": [LANES[0]], "slot": 1,
         "replace": True}
    ]  # fmt: skip


# --- what is written down -------------------------------------------------------------------


def test_events_of_a_company(tmp_path: Path) -> None:
    run = Run(tmp_path, company(("ops", "livepatch"), ("ops", "kprobe")))
    kinds = Counter(e["type"] for e in run.events)
    assert kinds == {"step_start": 8, "step_end": 8}
    start, end = run.of("step_start", "1")[0], run.of("step_end", "1")[0]
    # The scenario's own words, whatever its attachment is called on the kernel.
    assert start["step"] == {"do": "attach", "id": "a", "attacher": "ops", "function": LANES[1],
                             "slot": 0}  # fmt: skip
    assert start["predicted"]["behaviour"][LANES[1]]["hits"] == {"a": 1}
    assert end["observed"]["behaviour"][LANES[1]]["hits"] == {"a": 1}
    assert set(end["observed"]["behaviour"]) == {LANES[1]}
    assert end["registry_text"].startswith(LANES[1])
    assert end["mismatches"] == []
    assert (end["agent_s"], end["user_s"], end["group_s"]) == (0.25, 0.125, 0.5)


def test_what_is_predicted_is_written_before_it_is_done(tmp_path: Path) -> None:
    written: list[int] = []

    def count(_number: int, _reply: Reply) -> None:
        written.append(len((tmp_path / "events.jsonl").read_text().splitlines()))

    run = Run(tmp_path, company(("ops", "ops"), ("ops", "kprobe")), lie=count)
    # Two starts before each act, and two ends after it.
    assert written == [2, 6, 10, 14]
    assert run.failed() == {}


def test_the_log_is_kept_where_it_matters(tmp_path: Path) -> None:
    def lie(number: int, reply: Reply) -> None:
        reply["log"].append({"level": 6, "t": 2.0, "text": "something else"})
        if number == 0:
            reply["calls"][LANES[1]]["body"] = "livepatch-b"

    run = Run(tmp_path, company(("ops", "ops"), ("ops", "kprobe")), lie=lie)
    assert [bool(run.of("step_end", name)[0]["log"]) for name in "01"] == [False, True]
    alone = Run(tmp_path / "alone", company(("ops", "ops")), group="",
                lie=change(1, "log", to=[{"level": 6, "t": 2.0, "text": "something"}]))  # fmt: skip
    assert [bool(e["log"]) for e in alone.of("step_end", "0")] == [False, True, False, False]


# --- trouble --------------------------------------------------------------------------------


def change(when: int, *path: Any, to: Any) -> Callable[[int, Reply], None]:
    def lie(number: int, reply: Reply) -> None:
        if number == when:
            place: Any = reply
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = to

    return lie


def stranger(number: int, reply: Reply) -> None:
    if number == 1:
        reply["enabled_functions"] += "vfs_read (1)\n"


PAIRS = ("livepatch", "ops"), ("livepatch", "kprobe"), ("ops", "livepatch")


def test_one_fails_and_the_others_go_on(tmp_path: Path) -> None:
    run = Run(tmp_path, company(*PAIRS),
              lie=change(1, "calls", LANES[0], "body", to="original"))  # fmt: skip
    assert run.failed() == {"0": f"behaviour: {LANES[0]} body: expected livepatch-a, saw original"}
    assert [len(run.of("step_end", name)) for name in "012"] == [2, 4, 4]
    # Its function is still looked at, and what was one with others left with them.
    assert [r["functions"] for r in run.kernel.requests] == [LANES[:3]] * 4
    assert [a.id for a in run.company.state.attached] == ["0:b"]
    assert [a.id for a in run.kernel.state.attached] == ["0:b"]


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (change(1, "calls", LANES[1], "seen", "1:b", "hits", to=2), f"{LANES[1]} hits of b"),
        (change(1, "calls", LANES[1], "seen", "vm0:g1:0:livepatch", to={"hits": 1, "args": []}),
         f"{LANES[1]} hits of a"),
        (change(1, "calls", LANES[1], "seen", "stranger", to={"hits": 1, "args": []}),
         f"{LANES[1]} hits of stranger"),
        (change(1, "results", 1, "errno", to=11), "errno: the step: expected 0, saw EAGAIN (11)"),
    ],
    ids=["hits", "livepatch hit", "stranger", "errno"],
)  # fmt: skip
def test_its_own_witnesses(tmp_path: Path, lie: Any, words: str) -> None:
    run = Run(tmp_path, company(*PAIRS), lie=lie)
    assert list(run.failed()) == ["1"]
    assert words in run.failed()["1"]


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (change(1, "livepatch", "cohabit_klp_a", to={"enabled": 1, "transition": 1}),
         "livepatch sysfs"),
        (change(1, "ftrace_enabled", to=0), "kernel.ftrace_enabled"),
        (change(1, "log_complete", to=False), "records were lost"),
        (stranger, "other functions"),
        # The attach of two at once.
        (change(0, "results", 0, "errno", to=16),
         "attach of vm0:g1:0:livepatch for 2 scenarios: expected 0, saw EBUSY (16)"),
    ],
    ids=["livepatch", "sysctl", "log", "strangers", "errno"],
)  # fmt: skip
def test_what_is_nobodys_own(tmp_path: Path, lie: Any, words: str) -> None:
    with pytest.raises(SharedTroubleError) as caught:
        Run(tmp_path, company(*PAIRS), lie=lie)
    assert words in str(caught.value)
    # Alone it is the scenario's.
    if "for 2 scenarios" not in words:
        run = Run(tmp_path / "alone", company(*PAIRS)[:1], lie=lie, group="")
        assert words in run.failed()["0"]


def test_who_was_refused_together_has_to_be_seen_alone(tmp_path: Path) -> None:
    events: Events = []
    kernel = Obedient(V6_12, change(0, "results", 0, "errno", to=errno.ENOMEM))
    members = [Member(s, s.name, prefix=f"{n}:") for n, s in enumerate(company(*PAIRS))]
    with Record(tmp_path, (events.append,)) as record:
        run = Company(members, V6_12, record, kernel.ask, lambda _: [], State(), "g")
        with pytest.raises(SharedTroubleError):
            run.run()
    # Which of them it was nobody knows: none has failed.
    assert [m.mismatches for m in members] == [()] * 3
    assert [bool(e["mismatches"]) for e in events if e["type"] == "step_end"] == [True, True, False]


def test_a_report_of_the_kernel_ends_it(tmp_path: Path) -> None:
    run = Run(tmp_path, company(*PAIRS), lie=change(1, "reports", to=["WARNING at x.c:1"]))
    assert run.company.splats == ["WARNING at x.c:1"]
    assert len(run.kernel.requests) == 2


def test_the_report_that_a_misuse_must_give(tmp_path: Path) -> None:
    placed = next(s for s in catalogue.default() if s.name == "misuse/ops-register-twice")
    told = change(0, "reports", to=["WARNING: CPU: 0 at kernel/trace/ftrace.c:344"])
    run = Run(tmp_path / "a", [placed], group="", lie=told)
    assert (run.failed(), run.company.splats) == ({}, [])
    run = Run(tmp_path / "b", [placed], group="", lie=change(0, "reports", to=[]))
    assert "kernel report: expected kernel/trace/ftrace.c, saw none" in run.failed()[placed.name]
    run = Run(tmp_path / "c", [placed], group="", lie=change(0, "reports", to=["BUG: other"]))
    assert run.company.splats == ["BUG: other"]


def test_all_have_failed(tmp_path: Path) -> None:
    def lie(number: int, reply: Reply) -> None:
        for call in reply["calls"].values():
            call["body"] = "tag-9"

    run = Run(tmp_path, company(*PAIRS), lie=lie)
    assert len(run.failed()) == 3
    assert len(run.kernel.requests) == 1


def test_what_was_not_understood_is_kept(tmp_path: Path) -> None:
    def lie(number: int, reply: Reply) -> None:
        reply["enabled_functions"] = reply["enabled_functions"].replace(") ", ") Z ", 1)

    run = Run(tmp_path, company(*PAIRS), lie=lie)
    assert run.company.unknown == {"Z"}


# --- watched --------------------------------------------------------------------------------


def test_texts_seen_meanwhile(tmp_path: Path) -> None:
    steps = on("a", "ops", LANES[0]), on("b", "kprobe", LANES[0]), Detach("a"), Detach("b")
    watched = scenario("mine", *steps, watch=True)
    before, after = f"{LANES[0]} [cohabit_funcs] (1)\n", f"{LANES[0]} [cohabit_funcs] (2) R\n"
    none, neither = "", f"{LANES[0]} [cohabit_funcs] (1) R\n"
    for texts, fails in (
        ([before, after], False), ([after], False), ([before, neither, after], True),
        ([none], True), ([], False),
    ):  # fmt: skip
        lie = change(1, "watched", to={"reads": 9, "texts": texts})
        run = Run(tmp_path / str(len(texts)) / str(fails), [watched], lie=lie, group="")
        assert bool(run.failed()) is fails, texts
        if fails:
            assert " meanwhile: " in run.failed()["mine"]
        assert {r["watch"] for r in run.kernel.requests} == {True}


def test_every_attacher_is_in_some_company() -> None:
    names = {a for s in catalogue.everything() if sociable(s) for a in s.attachers}
    assert names == {a for a, kind in ATTACHERS.items() if kind.core}
