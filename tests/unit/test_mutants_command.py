# SPDX-License-Identifier: GPL-2.0-only
"""How ``cohabit mutants`` chooses, and what it takes for a kill, from made-up runs."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from sample_events import NEW, Event, SampleRun

from harness.cli import mutants
from harness.cli.setup import Setup
from harness.errors import InfraError, UsageError
from harness.kernels.build import Options
from harness.kernels.mutantfile import read
from harness.kernels.store import Store
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


def test_races_only_where_they_are_asked_for() -> None:
    everything = read(mutants.MUTANTS)
    races = mutants.select(everything, [], races=True)
    others = mutants.select(everything, [], races=False)
    assert races
    assert all(m.race for m in races)
    assert not any(m.race for m in others)
    assert len(races) + len(others) == len(everything)
    # By name without the option, too.
    names = [m.name for m in mutants.select(everything, ["int3-*", "two-direct"], races=False)]
    assert names == ["int3-skips-call", "two-direct"]


def test_each_on_its_flavour(tmp_path: Path) -> None:
    by_name = {m.name: m for m in read(mutants.MUTANTS)}
    setup = Setup(Store(tmp_path), options=Options(flavour="debug"))
    for name, flavour in (
        ("direct-hash-freed-early", "kasan"),
        ("kprobe-armed-unlocked", "debug"),
        ("int3-skips-call", "debug"),
    ):
        assert mutants.options_of(setup, by_name[name]).flavour == flavour
    plain = Setup(Store(tmp_path))
    assert mutants.options_of(plain, by_name["int3-skips-call"]).flavour == "plain"


def test_options_for_what_is_stirred() -> None:
    by_name = {m.name: m for m in read(mutants.MUTANTS)}
    args = argparse.Namespace(seed=7, calls=None, patches=None, seconds=5, widen_us=None)
    stirred = mutants.scenarios_of([by_name["int3-skips-call"]], args)
    assert [s.name for s in stirred] == list(by_name["int3-skips-call"].selected())
    assert {(s.stir.seed, s.stir.at_least) for s in stirred if s.stir} == {(7, 5)}
    # Where nothing is stirred they say nothing.
    plain = mutants.scenarios_of([by_name["two-direct"]], args)
    assert [s.name for s in plain] == list(by_name["two-direct"].selected())


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
    raced = mutants.Outcome("a", "killed", "races/direct", "SPLAT: why", seed=3)
    assert raced.line() == "killed     a by races/direct (seed 3): SPLAT: why"
    assert mutants.Outcome("a", "not built", witness="why").line() == "not built  a: why"
