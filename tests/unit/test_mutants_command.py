# SPDX-License-Identifier: GPL-2.0-only
"""How ``cohabit mutants`` chooses, and what it takes for a kill, from made-up runs."""

from __future__ import annotations

import pytest
from sample_events import NEW, Event, SampleRun

from harness.cli import mutants
from harness.errors import InfraError, UsageError
from harness.kernels.mutantfile import read
from harness.report.model import RunModel

THREE = ("livepatch", "fentry", "ops")


def model_of(events: list[Event]) -> RunModel:
    model = RunModel()
    for event in events:
        model.feed(event)
    return model


def run(trouble: dict[tuple[str, str], str]) -> RunModel:
    there = {(NEW, *pair): what for pair, what in trouble.items()}
    return model_of(SampleRun((NEW,), THREE, there).end())


def test_by_name_or_glob() -> None:
    everything = read(mutants.MUTANTS)
    assert mutants.select(everything, []) == everything
    names = [m.name for m in mutants.select(everything, ["two-*", "modified-forgotten"])]
    assert names == ["modified-forgotten", "two-direct", "two-ipmodify"]
    with pytest.raises(UsageError, match="no mutant is called 'three-"):
        mutants.select(everything, ["two-*", "three-*"])


def test_by_architecture() -> None:
    everything = read(mutants.MUTANTS)
    chosen = mutants.select(everything, [], ["arm64"])
    assert chosen == [m for m in everything if "arm64" in m.arches]
    assert [m.name for m in mutants.select(everything, ["far-*"], ["arm64"])] == ["far-not-reached"]
    with pytest.raises(UsageError, match="no mutant for x86_64 is called 'far-"):
        mutants.select(everything, ["far-*"], ["x86_64"])


def test_nothing_noticed() -> None:
    assert mutants.noticed(run({})) is None


@pytest.mark.parametrize(
    ("trouble", "verdict"), [("errno", "FAIL"), ("splat", "SPLAT"), ("hang", "HANG")]
)
def test_noticed(trouble: str, verdict: str) -> None:
    found = mutants.noticed(run({("fentry", "ops"): trouble, ("ops", "ops"): trouble}))
    assert found is not None
    assert found[0] == "pair/fentry+ops", "the first"
    assert found[1].startswith(f"{verdict}: ")


def test_a_run_without_an_end_kills_nothing() -> None:
    events = SampleRun((NEW,), THREE, {(NEW, "fentry", "ops"): "errno"}).end()
    with pytest.raises(InfraError, match="cut short"):
        mutants.noticed(model_of(events[:-1]))


def test_a_lost_vm_kills_nothing() -> None:
    with pytest.raises(InfraError, match="has no result"):
        mutants.noticed(run({("fentry", "ops"): "lost"}))


def test_lines() -> None:
    killed = mutants.Outcome("two-direct", "killed", "direct+direct/x", "FAIL: errno")
    assert killed.line() == "killed     two-direct by direct+direct/x: FAIL: errno"
    assert mutants.Outcome("a", "survived").line() == "survived   a"
    assert mutants.Outcome("a", "not built", witness="why").line() == "not built  a: why"
