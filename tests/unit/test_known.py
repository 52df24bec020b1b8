# SPDX-License-Identifier: GPL-2.0-only
"""Known differences: each explains its own report in its own scenarios, and nothing else."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
from recorded import everything

from harness.policy.known import KNOWN, Known, explanation
from harness.policy.profile import Version, release_version
from harness.scenario import catalogue

REPOSITORY = Path(__file__).resolve().parents[2]
STALE = "ops-regs/ftrace_enabled:detach-while-off/then:ops"
SPLAT = "WARNING: CPU: 0 PID: 168 at kernel/trace/ftrace.c:3180 ftrace_shutdown.part.0+0x19e/0x1e0"


@pytest.mark.parametrize("version", [(5, 10), (6, 1), (6, 12), (7, 2)])
def test_explained(version: Version) -> None:
    found = explanation(STALE, version, SPLAT)
    assert found is not None
    assert found.name == "stale-regs"


@pytest.mark.parametrize(
    ("scenario", "version", "title"),
    [
        (STALE, (5, 9), SPLAT),
        (STALE, (7, 3), SPLAT),
        (STALE, (6, 12), "WARNING: CPU: 0 PID: 168 at kernel/trace/ftrace.c:1 ftrace_startup+0x1"),
        (STALE, (6, 12), ""),
        ("ops-regs/ftrace_enabled:detach-while-off", (6, 12), SPLAT),
        ("livepatch+fexit/attach:ab/detach:ab", (6, 12), SPLAT),
    ],
)
def test_not_explained(scenario: str, version: Version, title: str) -> None:
    assert explanation(scenario, version, title) is None


def test_bounds_are_inclusive() -> None:
    known = Known("n", "a*", "text", "page", first=(6, 1), last=(6, 12))
    assert [known.explains("ab", (6, minor), "some text") for minor in (0, 1, 12, 13)] == [
        False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("known", KNOWN, ids=lambda k: k.name)
def test_each_has_a_page_scenarios_and_a_range(known: Known) -> None:
    page = REPOSITORY / known.page
    assert page.parent == REPOSITORY / "docs" / "findings"
    assert page.is_file(), f"{known.page} is to be written"
    assert known.name == page.stem
    assert known.first <= known.last
    names = [s.name for s in catalogue.everything()]
    assert fnmatch.filter(names, known.scenarios), "it explains no scenario that there is"


def test_names_are_unique() -> None:
    assert len({k.name for k in KNOWN}) == len(KNOWN)


def test_recorded_report_is_explained() -> None:
    (run,) = [r for r in everything() if r.verdict == "XFAIL"]
    titles = [r["text"] for _, _, reply in run.steps for r in reply["log"]
              if r["text"].startswith("WARNING")]  # fmt: skip
    assert titles == [SPLAT]
    assert explanation(run.scenario.name, release_version(run.kernel), titles[0]) is not None
