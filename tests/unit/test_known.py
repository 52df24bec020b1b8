# SPDX-License-Identifier: GPL-2.0-only
"""Known differences: each explains its own report in its own scenarios, and nothing else."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import everything

from harness.policy import known
from harness.policy.known import KNOWN, Contradiction, Known
from harness.policy.profile import Version, release_version
from harness.scenario import catalogue

REPOSITORY = Path(__file__).resolve().parents[2]
STALE = "ops-regs/ftrace_enabled:detach-while-off/then:ops"
SPLAT = "WARNING: CPU: 0 PID: 168 at kernel/trace/ftrace.c:3180 ftrace_shutdown.part.0+0x19e/0x1e0"
BOTH = Known(
    "n",
    ("a*", "b?"),
    "page",
    (6, 1),
    (6, 12),
    "text",
    Contradiction("detach", "errno", "0", "EBUSY (16)"),
)


@pytest.mark.parametrize("version", [(5, 10), (6, 1), (6, 12), (7, 2)])
def test_explained(version: Version) -> None:
    found = known.of_report(STALE, version, SPLAT)
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
    assert known.of_report(scenario, version, title) is None


UNLOCKED = "WARNING: kernel/bpf/trampoline.c:112 at bpf_tramp_ftrace_ops_func+0xeb/0x1b0"
BESIDE = "livepatch+fentry/beside"


@pytest.mark.parametrize(
    ("scenario", "version", "title", "lockdep", "alone", "company"),
    [
        (BESIDE, (7, 2), UNLOCKED, True, True, True),
        (BESIDE, (7, 2), UNLOCKED, False, False, False),
        (BESIDE, (7, 1), UNLOCKED, True, False, False),
        (BESIDE, (7, 3), UNLOCKED, True, False, False),
        (BESIDE, (7, 2), SPLAT, True, False, False),
        ("fentry/alone", (7, 2), UNLOCKED, True, False, True),
        # What one scenario does is not known of a company that it was in.
        (STALE, (7, 2), SPLAT, True, True, False),
    ],
)
def test_reports_of_lockdep_and_of_companies(
    scenario: str, version: Version, title: str, lockdep: bool, alone: bool, company: bool
) -> None:
    assert bool(known.of_report(scenario, version, title, lockdep)) is alone
    assert bool(known.of_company(version, title, lockdep)) is company


def test_bounds_are_inclusive() -> None:
    assert [BOTH.concerns("ab", (6, minor)) for minor in (0, 1, 12, 13)] == [
        False, True, True, False,
    ]  # fmt: skip
    names = ("a", "ab", "b", "bc", "bcd", "ca")
    assert [BOTH.concerns(name, (6, 1)) for name in names] == [
        True, True, False, True, False, False,
    ]  # fmt: skip


def test_by_report_or_by_contradiction(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Known("r", ("*",), "page", (6, 1), (6, 12), "other")
    contradicts = Known(
        "c", ("*",), "page", (6, 1), (6, 12), contradiction=Contradiction("call", "log", "a", "b")
    )
    monkeypatch.setattr(known, "KNOWN", (BOTH, reports, contradicts))
    version = (6, 12)
    assert known.of_report("ab", version, "WARNING: text") is BOTH
    assert known.of_report("xy", version, "some other text") is reports
    assert known.of_report("xy", version, "WARNING: text") is None
    # What has no report explains none, whatever its title.
    assert known.of_report("xy", version, "") is None
    seen = BOTH.contradiction
    assert seen is not None
    assert known.of_contradiction("ab", version, seen) is BOTH
    assert known.of_contradiction("xy", version, seen) is None
    assert (
        known.of_contradiction("xy", version, Contradiction("call", "log", "a", "b")) is contradicts
    )
    assert known.of_contradiction("xy", (6, 13), Contradiction("call", "log", "a", "b")) is None
    for other in (
        ("attach ops", "errno", "0", "EBUSY (16)"),
        ("detach", "log", "0", "EBUSY (16)"),
        ("detach", "errno", "1", "EBUSY (16)"),
        ("detach", "errno", "0", "0"),
    ):
        assert known.of_contradiction("ab", version, Contradiction(*other)) is None


def test_what_is_never_the_same_twice_may_be_anything() -> None:
    name, version = "consistency/fexit/livepatch+ops-regs/on:cmdline_proc_show", (6, 12)
    one = Contradiction(
        "stir", "consistency", "only livepatch-a",
        "6 of 1151715 calls met a body that was not allowed then; the first at 18.1 s on CPU 0: x",
    )  # fmt: skip
    found = known.of_contradiction(name, version, one)
    assert found is not None
    assert found.name == "listed-before-asked"
    for other in (
        replace(one, seen="6 of 1151715 calls went back to the body before; the first at 1 s"),
        replace(one, expected="only livepatch-a or original"),
        replace(one, witness="errno"),
        replace(one, step="detach"),
    ):
        assert known.of_contradiction(name, version, other) is None
    assert known.of_contradiction(name, (5, 10), one) is None
    assert known.of_contradiction("consistency/fexit/livepatch/on:x", version, one) is None


@pytest.mark.parametrize("entry", KNOWN, ids=lambda k: f"{k.name}-{k.scenarios[0]}")
def test_each_has_a_page_scenarios_and_a_range(entry: Known) -> None:
    page = REPOSITORY / entry.page
    assert page.parent == REPOSITORY / "docs" / "findings"
    assert entry.name == page.stem
    assert entry.first <= entry.last
    assert entry.report or entry.contradiction
    names = [s.name for s in (*catalogue.everything(), *catalogue.beside())]
    for glob in entry.scenarios:
        assert fnmatch.filter(names, glob), "it explains no scenario that there is"
    assert page.is_file(), f"{entry.page} is to be written"


def test_no_entry_is_there_twice() -> None:
    assert len({(k.name, k.scenarios, k.contradiction) for k in KNOWN}) == len(KNOWN)


def test_recorded_report_is_explained() -> None:
    (run,) = [r for r in everything() if r.verdict == "XFAIL"]
    titles = [r["text"] for _, _, reply in run.steps for r in reply["log"]
              if r["text"].startswith("WARNING")]  # fmt: skip
    assert titles == [SPLAT]
    version = release_version(run.kernel)
    assert known.of_report(run.scenario.name, version, titles[0]) is not None


def test_what_damages_a_kernel_runs_alone() -> None:
    """A report of the kernel's own; a witness that contradicts does no harm."""
    late = "livepatch+fentry+fexit/attach:abc/detach:cba"
    assert known.breaks(late, (6, 1))
    assert not known.breaks(late, (6, 12))
    assert not known.breaks("livepatch+fentry+fexit/attach:bac/detach:cba", (6, 1))
    assert known.of_contradiction(
        "livepatch+kprobe-post/attach:ab/detach:ab",
        (7, 2),
        Contradiction("attach kprobe-post", "errno", "EBUSY (16)", "0"),
    )
    assert not known.breaks("livepatch+kprobe-post/attach:ab/detach:ab", (7, 2))
