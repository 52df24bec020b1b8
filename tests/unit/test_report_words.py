# SPDX-License-Identifier: GPL-2.0-only
"""Steps in words and in a scenario's timeline: every act, many functions, held calls."""

from __future__ import annotations

from typing import Any

import pytest
from sample_events import NEW, Event, Recorder

from harness.report import html, text, timeline
from harness.report.model import RunModel
from harness.report.views import Scenario
from harness.report.words import effect, short_title, step_title

MANY = [f"security_cohabit_{n:03}" for n in range(40)]
EPERM, EBUSY, ENODEV = 1, 16, 19


@pytest.mark.parametrize(
    ("spec", "title", "short"),
    [
        ({"do": "attach", "id": "a", "attacher": "ops", "function": "f"},
         "attach ops as a to f", "attach a"),
        ({"do": "attach", "id": "a", "attacher": "ops", "functions": ["f", "g"]},
         "attach ops as a to f, g", "attach a"),
        ({"do": "attach", "id": "a", "attacher": "ops", "functions": MANY},
         "attach ops as a to security_cohabit_000, security_cohabit_001, security_cohabit_002, "
         "and 37 more", "attach a"),
        ({"do": "attach", "id": "a", "attacher": "livepatch", "function": "f", "replace": True,
          "wait": False},
         "attach livepatch as a to f, replacing all others, without waiting", "attach a"),
        ({"do": "detach", "id": "a"}, "detach a (livepatch)", "detach a"),
        ({"do": "disable", "id": "a"}, "disable a (livepatch)", "disable a"),
        ({"do": "enable", "id": "a", "wait": False},
         "enable a (livepatch), without waiting", "enable a"),
        ({"do": "force", "id": "a"}, "force a (livepatch)", "force a"),
        ({"do": "modify", "id": "d", "alternate": 1},
         "modify d (direct) to its other trampoline", "modify d"),
        ({"do": "modify", "id": "d", "alternate": 0},
         "modify d (direct) to its first trampoline", "modify d"),
        ({"do": "hold", "id": "h", "function": "cohabit_hold"},
         "hold a call of cohabit_hold as h", "hold h"),
        ({"do": "release", "id": "h"}, "release the held call h", "release h"),
        ({"do": "unload", "module": "cohabit_funcs"}, "unload cohabit_funcs", "unload"),
        ({"do": "load", "module": "cohabit_funcs"}, "load cohabit_funcs", "load"),
        ({"do": "misuse", "what": "kill-ftrace", "function": "f"},
         "misuse kill-ftrace on f", "misuse"),
        ({"do": "call"}, "call", "call"),
        ({"do": "call", "context": "softirq"}, "call in softirq context", "call softirq"),
        ({"do": "write", "sysctl": "kernel.ftrace_enabled", "value": "0"},
         "write 0 to kernel.ftrace_enabled", "write 0"),
        ({"do": "dance", "id": "a"}, "dance id=a", "dance a"),
    ],
)  # fmt: skip
def test_titles(spec: Event, title: str, short: str) -> None:
    assert step_title(spec, {"a": "livepatch", "d": "direct"}) == title
    assert short_title(spec) == short


def ran(functions: list[str], *steps: tuple[Event, Event], verdict: str = "PASS") -> RunModel:
    """A run of one scenario: step objects, each with what was observed."""
    rec = Recorder()
    rec.emit("run_start", format=1, planned=1)
    rec.emit(
        "scenario_start", scenario="s", name="one", kernel=NEW, vm="vm0", profile="v6.12",
        attempt=1, functions=functions, steps=[step for step, _ in steps],
    )  # fmt: skip
    for index, (step, seen) in enumerate(steps):
        observed = {"errno": 0, "behaviour": {f: original() for f in functions}, **seen}
        allowed = [0] if seen.get("unpredicted") else [observed["errno"]]
        rec.emit("step_start", scenario="s", index=index, step=step, predicted={"errno": allowed})
        rec.emit("step_end", scenario="s", index=index, observed=observed, mismatches=[])
    rec.emit("scenario_end", scenario="s", verdict=verdict, reason="")
    rec.emit("run_end", counts={}, steps=0, exit_status=0, interrupted=False)
    model = RunModel()
    for event in rec.events:
        model.feed(event)
    return model


def original(**hits: int) -> Event:
    return {"body": "original", "hits": hits, "args": "agree", "ret": None}


def patched(**hits: int) -> Event:
    return {"body": "livepatch-a", "hits": hits, "args": "agree", "ret": None}


def attach(identity: str, attacher: str, *functions: str) -> Event:
    return {"do": "attach", "id": identity, "attacher": attacher, "functions": list(functions)}


def lanes(scenario: Scenario) -> dict[str, list[tuple[int, str, str]]]:
    built = timeline.build(scenario)
    for lane in built.lanes:
        assert sum(part.span for part in lane.parts) == len(built.heads), lane
    return {lane.label: [(p.span, p.text, p.kind) for p in lane.parts] for lane in built.lanes}


def test_a_disabled_livepatch_and_a_held_call() -> None:
    model = ran(
        ["cohabit_hold"],
        (attach("a", "livepatch", "cohabit_hold"), {"behaviour": {"cohabit_hold": patched()}}),
        ({"do": "hold", "id": "h", "function": "cohabit_hold"},
         {"behaviour": {"cohabit_hold": patched()}}),
        ({"do": "disable", "id": "a"}, {}),
        ({"do": "enable", "id": "a"}, {"errno": EBUSY, "unpredicted": True}),
        ({"do": "release", "id": "h"}, {"held": {"body": "livepatch-a", "ret": 3}}),
        ({"do": "detach", "id": "a"}, {}),
    )  # fmt: skip
    (scenario,) = model.scenarios
    assert scenario.departure == (0,)
    assert lanes(scenario) == {
        "a livepatch": [
            (2, "", "on"), (1, "", "off"), (1, "\N{BALLOT X} EBUSY", "off un"), (1, "", "off"),
            (1, "", ""),
        ],
        "h held call": [(1, "", ""), (3, "", "on"), (2, "", "")],
        "body that ran": [(2, "livepatch-a", "b1"), (4, "original", "b0")],
    }  # fmt: skip
    assert effect(scenario.steps[4]) == "original; the held call ran livepatch-a"


def test_functions_that_go_and_come_back() -> None:
    gone = {"behaviour": {"cohabit_f1": {"body": "absent", "hits": {"a": 0}}}}
    model = ran(
        ["cohabit_f1"],
        (attach("a", "ops", "cohabit_f1"), {"behaviour": {"cohabit_f1": original(a=1)}}),
        ({"do": "unload", "module": "cohabit_funcs"}, gone),
        ({"do": "load", "module": "cohabit_funcs"}, {"errno": EPERM}),
        verdict="FAIL",
    )
    (scenario,) = model.scenarios
    assert lanes(scenario)["body that ran"] == [
        (1, "original", "b0"), (1, "absent", "ba"), (1, "original", "b0"),
    ]  # fmt: skip
    assert lanes(scenario)["a ops"] == [(1, "1 hit", "on"), (1, "0 hits", "on"), (1, "", "on")]
    heads = [head.text for head in timeline.build(scenario).heads]
    assert heads == ["attach a", "unload", "load \N{BALLOT X} EPERM"]
    assert "2. unload cohabit_funcs: ok -> absent; hits a=0" in text.render(model)


def test_many_functions_are_few_lines() -> None:
    first, second = MANY[:39], MANY[39:]
    some: dict[str, Any] = {f: patched(w=1) for f in first} | {f: original(w=1) for f in second}
    model = ran(
        MANY,
        (attach("w", "fexit", *MANY), {"behaviour": {f: original(w=1) for f in MANY}}),
        (attach("a", "livepatch", *first), {"behaviour": some}),
        (attach("b", "livepatch", *MANY), {"behaviour": some, "errno": ENODEV}),
        verdict="FAIL",
    )
    (scenario,) = model.scenarios
    assert lanes(scenario) == {
        "w fexit": [(3, "40 hits", "on")],
        "a livepatch": [(1, "", ""), (2, "", "on")],
        "b livepatch": [(2, "", ""), (1, "\N{BALLOT X} ENODEV", "no")],
        "security_cohabit_000(), and 38 more": [(1, "original", "b0"), (2, "livepatch-a", "b1")],
        "security_cohabit_039()": [(3, "original", "b0")],
    }
    assert effect(scenario.steps[1]) == (
        "livepatch-a (security_cohabit_000, security_cohabit_001, security_cohabit_002, and 36 "
        "more), original (security_cohabit_039); hits w=40"
    )
    assert len(text.render(model).splitlines()) < 25
    assert len(html.render(model)) < 30_000
