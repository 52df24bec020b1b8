# SPDX-License-Identifier: GPL-2.0-only
"""Functions that are called without a pause while their code changes, on a stock kernel.

Small numbers: that it works, and that hammers which are wrong themselves are found out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import world as places
from world import REPOSITORY, Running, World, assert_booted, of_type, verdicts

from harness.kernels.store import default_root

TRACER = "consistency/function-tracer/livepatch/on:cohabit_hot"
MODIFY = "consistency/direct-modify/direct/on:cohabit_hot"
CALLS, PATCHES = 50_000, 40
#: More than these scenarios took under emulation on a machine with much else to do.
PATIENCE = 900.0


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    """A place with the user's own cache."""
    with places.world() as made:
        made.environment["COHABIT_CACHE"] = str(default_root())
        yield made


@pytest.fixture(scope="module")
def passing(shared: World) -> Running:
    """One under a livepatch, the same with open windows, and a direct call that is modified."""
    run = shared.start(
        "run", TRACER, f"{TRACER}/widened", MODIFY,
        "--calls", str(CALLS), "--patches", str(PATCHES),
    )  # fmt: skip
    run.end(PATIENCE)
    return run


def stirred(run: Running, name: str) -> dict[str, Any]:
    """What came of a scenario's stir."""
    (end,) = [
        e for e in of_type(run.events, "step_end")
        if e["scenario"].partition("/")[2] == f"{name}#1" and "stirred" in e["observed"]
    ]  # fmt: skip
    found: dict[str, Any] = end["observed"]["stirred"]
    return found


def calls(found: dict[str, Any]) -> int:
    return sum(int(hammer["calls"]) for hammer in found["hammers"])


def test_nothing_was_wrong(passing: Running) -> None:
    assert passing.popen.returncode == 0, passing.told
    names = (TRACER, f"{TRACER}/widened", MODIFY)
    assert verdicts(passing.events) == {f"{name}#1": "PASS" for name in names}
    assert_booted(passing.events, 1)
    (start,) = of_type(passing.events, "vm_start")
    assert start["cpus"] == 2
    for name in names:
        found = stirred(passing, name)
        assert calls(found) >= CALLS
        assert found["patches"] >= PATCHES
        assert found["patches_by"] == "text-poke"
        assert [hammer["cpu"] for hammer in found["hammers"]] == [0, 1]
        assert all(hammer["calls"] and not hammer["wrong"] for hammer in found["hammers"])


def test_under_a_livepatch_never_the_original(passing: Running) -> None:
    for name in (TRACER, f"{TRACER}/widened"):
        found = stirred(passing, name)
        for hammer in found["hammers"]:
            assert hammer["bodies"] == {"livepatch-a": hammer["calls"]}


def test_calls_fell_into_windows(passing: Running) -> None:
    found = stirred(passing, f"{TRACER}/widened")
    assert found["windows"] >= PATCHES
    assert found["inside"] > 0
    assert "of calls inside windows above" in " ".join(passing.out.split())
    assert stirred(passing, TRACER)["windows"] == 0


def test_each_call_went_through_one_trampoline(passing: Running) -> None:
    found = stirred(passing, MODIFY)
    (direct,) = found["throughout"].values()
    assert direct["hits"] == calls(found)
    assert sum(direct["via"].values()) == direct["hits"]
    assert len([n for n in direct["via"].values() if n]) == 2


def test_how_much_was_tried_is_told(passing: Running) -> None:
    told = " ".join(passing.out.split())
    assert told.count("is excluded at 95%") == 3
    assert "Under TCG: " in told or "tcg" not in told


def test_hammers_that_are_wrong_themselves(shared: World) -> None:
    """A body that is not right, a lost count, a CPU that makes no call."""
    files = [
        REPOSITORY / "tests" / "data" / "stir" / f"{n}.json" for n in ("body", "counter", "stall")
    ]
    words = [word for file in files for word in ("--replay", str(file))]
    run = shared.start("run", *words, "--calls", str(CALLS), "--patches", "4")
    assert run.end(PATIENCE) == 1, run.told
    assert verdicts(run.events) == {
        "fault/body#1": "FAIL",
        "fault/counter#1": "INFRA",
        "fault/stall#1": "INFRA",
    }
    reasons = {
        e["scenario"].partition("/")[2]: e["reason"] for e in of_type(run.events, "scenario_end")
    }
    assert "met a body that was not allowed then" in reasons["fault/body#1"]
    assert " results of " in reasons["fault/counter#1"]
    assert "made no call on CPU 1" in reasons["fault/stall#1"]
    wrong = [h["wrong"] for h in stirred(run, "fault/body")["hammers"]]
    assert any(kinds.get("body") for kinds in wrong)
