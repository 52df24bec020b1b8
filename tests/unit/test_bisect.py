# SPDX-License-Identifier: GPL-2.0-only
"""The search for the commit that changed a verdict, and the status for `git bisect run`."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from policy_events import full_policy
from sample_events import NEW, Event, SampleRun, write

from harness.cli import bisect as command
from harness.cli import run as run_command
from harness.cli.bisect import Point, judge, search, worst
from harness.cli.main import main
from harness.errors import InfraError, UsageError
from harness.kernels.model import Kernel
from harness.report.model import RunModel
from harness.run import bisect
from harness.run.bisect import Answer

NAME = "livepatch+direct/attach:ab/detach:ab"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


# --- the search -------------------------------------------------------------------------------


def asked(count: int, probe: Callable[[int], Answer]) -> tuple[bisect.Found, list[int]]:
    order: list[int] = []

    def ask(index: int) -> Answer:
        order.append(index)
        return probe(index)

    return bisect.search(count, ask), order


def test_each_first_bad_one_is_found() -> None:
    for count in range(2, 40):
        for first in range(1, count):
            found, order = asked(count, lambda n, first=first: "bad" if n >= first else "good")
            assert found.candidates == (first,)
            assert len(order) == len(set(order)) <= bisect.steps(count)
            assert not {0, count - 1} & set(order)


def test_what_cannot_be_tested_is_passed_over() -> None:
    for count in range(2, 14):
        for first in range(1, count):
            for skipped in range(1 << count):

                def probe(n: int, first: int = first, skipped: int = skipped) -> Answer:
                    if skipped >> n & 1:
                        return "skip"
                    return "bad" if n >= first else "good"

                if count > 8 and skipped % 7:
                    continue
                found, order = asked(count, probe)
                assert len(order) == len(set(order))
                assert first in found.candidates
                # All before the last could not be tested, so that it may be any of them.
                assert all(skipped >> n & 1 for n in found.candidates[:-1])


def test_nothing_to_search() -> None:
    with pytest.raises(ValueError, match="a good one and a bad one"):
        bisect.search(1, lambda _: "good")


@pytest.mark.parametrize(
    ("verdict", "good", "bad", "answer"),
    [
        ("PASS", "PASS", "FAIL", "good"),
        ("XFAIL", "PASS", "FAIL", "good"),
        ("CRASH", "PASS", "FAIL", "bad"),
        ("FAIL", "FAIL", "PASS", "good"),
        ("SPLAT", "FAIL", "XFAIL", "good"),
        ("PASS", "FAIL", "XFAIL", "bad"),
        ("FAIL", "FAIL", "CRASH", "good"),
        ("CRASH", "FAIL", "CRASH", "bad"),
        ("XFAIL", "PASS", "XFAIL", "bad"),
        ("PASS", "PASS", "XFAIL", "good"),
        ("LOST", "PASS", "FAIL", "skip"),
        ("INFRA", "PASS", "FAIL", "skip"),
        ("BOOT_FAIL", "PASS", "FAIL", "skip"),
        ("SKIP", "PASS", "FAIL", "skip"),
    ],
)
def test_what_a_verdict_means(verdict: str, good: str, bad: str, answer: str) -> None:
    assert judge(verdict, good, bad) == answer


def fed(events: list[Event]) -> RunModel:
    model = RunModel()
    for number, event in enumerate(events):
        model.feed({**event, "seq": number})
    return model


def pair(what: str) -> list[Event]:
    """A run of a scenario or two, one of which may go wrong."""
    return SampleRun((NEW,), ("ops",), {(NEW, "ops", "ops"): what}).end()


def booting(verdict: str) -> list[Event]:
    """A run in which nothing came up."""
    return [
        {**e, "verdict": verdict} if e["type"] == "scenario_end" else e
        for e in pair("") if not e["type"].startswith("step_")
    ]  # fmt: skip


def test_the_verdict_of_a_run() -> None:
    verdicts = {what: worst(fed(pair(what))) for what in ("", "body", "splat", "hang", "xfail")}
    assert verdicts == {
        "": "PASS", "body": "FAIL", "splat": "SPLAT", "hang": "HANG", "xfail": "XFAIL",
    }  # fmt: skip
    assert worst(fed(pair("lost"))) == "LOST"
    assert worst(fed(booting("BOOT_FAIL"))) == "BOOT_FAIL"
    assert worst(fed(pair("")[:-1])) == "INFRA"
    assert worst(fed([])) == "INFRA"
    accident = full_policy(0, accidents={3: ("SPLAT", False)})
    assert worst(fed(accident)) == "SPLAT"


# --- over kernels -----------------------------------------------------------------------------


def points(count: int) -> list[Point]:
    def none() -> Kernel:
        raise AssertionError("nothing is built here")

    return [Point(f"commit {n}", none, f"tree:x@{n}") for n in range(count)]


def verdicts(*found: str) -> Callable[[Point], str]:
    """A verdict a point; empty: it does not build."""

    def verdict(point: Point) -> str:
        result = found[int(point.title.split()[1])]
        if not result:
            raise InfraError("ftrace.c does not compile")
        return result

    return verdict


def test_a_commit_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    row = ("PASS", "PASS", "PASS", "", "CRASH", "FAIL", "FAIL")
    assert search(points(7), verdicts(*row)) == 1
    assert capsys.readouterr().out.splitlines()[:4] == [
        "PASS up to commit 2",
        "FAIL from one of these; all but the last could not be tested:",
        "  commit 3",
        "  commit 4",
    ]
    row = ("FAIL", "FAIL", "BOOT_FAIL", "FAIL", "PASS", "PASS", "XFAIL")
    assert search(points(7), verdicts(*row)) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        "FAIL up to commit 3",
        "XFAIL from commit 4",
        "look at it: cohabit run --kernel tree:x@4 SCENARIO",
    ]


def test_what_is_tested_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    search(points(4), verdicts("PASS", "", "FAIL", "FAIL"))
    told = capsys.readouterr().err
    assert "testing 1 of 3: commit 1\n  cannot be tested: ftrace.c does not compile\n" in told
    assert "testing 2 of 3: commit 2\n  FAIL\n" in told


def test_ends_that_say_nothing() -> None:
    with pytest.raises(UsageError, match="the verdict is PASS at both ends"):
        search(points(3), verdicts("PASS", "FAIL", "PASS"))
    with pytest.raises(InfraError, match="commit 0 has no verdict: BOOT_FAIL"):
        search(points(3), verdicts("BOOT_FAIL", "FAIL", "PASS"))
    with pytest.raises(InfraError, match="does not compile"):
        search(points(3), verdicts("PASS", "FAIL", ""))
    with pytest.raises(UsageError, match="nothing between"):
        search(points(1), verdicts("PASS"))


class FakeKernel:
    def __init__(self, reference: str) -> None:
        self.reference = reference


class FakeSetup:
    """Stands in for the cache."""

    store = root = options = None

    def kernel(self, reference: str, series: str = "") -> FakeKernel:
        assert not series
        return FakeKernel(reference)

    def build(self, tree: str) -> FakeKernel:
        return FakeKernel(tree)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was run; a kernel whose reference has "bad" in it fails."""
    found: list[str] = []

    def run_once(
        setup: FakeSetup, kernel: FakeKernel, scenarios: Any, args: argparse.Namespace,
        override: str | None,
    ) -> Path:  # fmt: skip
        found.append(f"{kernel.reference} {','.join(s.name for s in scenarios)} {override}")
        events = pair("body" if "bad" in kernel.reference else "")
        return write(events, tmp_path / str(len(found)))

    monkeypatch.setattr(command.Setup, "of", lambda _: FakeSetup())
    monkeypatch.setattr(command, "run_once", run_once)
    return found


class FakeRevision:
    def __init__(self, oid: str, subject: str, reference: str) -> None:
        self.oid, self.subject, self.reference = oid, subject, reference


def test_revisions(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    def revisions(directory: Path, good: str, bad: str, store: object) -> Sequence[FakeRevision]:
        assert (directory, good, bad) == (tmp_path, "v1", "HEAD")
        names = ["a1", "b2bad", "c3bad"]
        return [FakeRevision(n * 20, f"ftrace: {n}", f"tree:x@{n}") for n in names]

    monkeypatch.setattr(command.trees, "revisions", revisions)
    for tree in (str(tmp_path), f"tree:{tmp_path}"):
        ran.clear()
        argv = ["bisect", "--tree", tree, "--good", "v1", "--bad", "HEAD", NAME]
        assert main([*argv, "--profile", "v6.1"]) == 0
        assert ran == [
            f"tree:{tmp_path}@v1 {NAME} v6.1", f"tree:x@c3bad {NAME} v6.1",
            f"tree:x@a1 {NAME} v6.1", f"tree:x@b2bad {NAME} v6.1",
        ]  # fmt: skip
        output = capsys.readouterr()
        assert output.out.startswith(
            "PASS up to a1a1a1a1a1a1 ftrace: a1\nFAIL from b2badb2badb2 ftrace: b2bad\n"
        )
        assert "3 commits to look among" in output.err


class FakePatch:
    def __init__(self, name: str) -> None:
        self.name = self.subject = name


def test_a_series(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["one", "two", "bad"]
    monkeypatch.setattr(command.trees, "resolve", lambda *_: "tree")
    monkeypatch.setattr(command.series, "read", lambda *_: [FakePatch(n) for n in names])
    monkeypatch.setattr(
        command.series, "apply",
        lambda tree, patches: [f"{tree} {' '.join(names[: n + 1])}" for n in range(len(patches))],
    )  # fmt: skip
    assert main(["bisect", "--tree", "source:7.2", "--series", "s", NAME]) == 0
    assert [line.split(" livepatch")[0] for line in ran] == [
        "tree", "tree one two bad", "tree one", "tree one two",
    ]  # fmt: skip
    assert capsys.readouterr().out == "PASS up to 2/3 two\nFAIL from 3/3 bad\n"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (f"--tree . {NAME}", "nothing to look among"),
        (f"--tree . --good a {NAME}", "nothing to look among"),
        (f"--tree . --good a --bad b --series s {NAME}", "nothing to look among"),
        ("--tree . --good a --bad b", "no scenario to judge by"),
        (f"--tree debian:7.2:x --series s {NAME}", "is no kernel reference"),
        (f"--tree . --good a --bad b --together 0 {NAME}", "--together"),
        (f"--good a --bad b {NAME}", "--tree"),
    ],
)
def test_mistakes(argv: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["bisect", *argv.split()]) == 2
    except SystemExit as end:
        assert end.code == 2
    assert part in capsys.readouterr().err


# --- git bisect run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "status"),
    [
        (pair(""), 0),
        (pair("body"), 1),
        (pair("splat"), 1),
        (pair("hang"), 1),
        (pair("lost"), 125),
        (booting("BOOT_FAIL"), 125),
        (booting("INFRA"), 125),
        (booting("SKIP"), 125),
        (SampleRun((NEW,), ("ops",), {}).end(interrupted=True), 130),
    ],
)
def test_statuses_for_git(
    events: list[Event], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fed(events)
    monkeypatch.setattr(run_command, "_run", lambda _: (model, run_command.exit_status(model)))
    assert main(["run", "--bisect"]) == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InfraError("ftrace.c does not compile"), 125),
        (OSError(28, "No space left on device"), 125),
        (BrokenPipeError(32, "Broken pipe"), 125),
        # Whatever is wrong with the command line is so for all revisions.
        (UsageError("no such scenario"), 255),
    ],
)
def test_errors_for_git(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(args: argparse.Namespace) -> tuple[RunModel, int]:
        raise error

    monkeypatch.setattr(run_command, "_run", fail)
    assert main(["run", "--bisect"]) == status
    assert capsys.readouterr().err.startswith("cohabit: ")


def test_a_wrong_command_line_stops_git() -> None:
    for argv, status in ((["run", "--bisect", "--fly"], 255), (["run", "--fly"], 2)):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == status


def test_git_itself_finds_it(tmp_path: Path) -> None:
    """Number 2 does not build, number 4 is the first bad one."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@x.invalid"]
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    for number in range(6):
        what = "broken" if number == 2 else "body" if number >= 4 else ""
        (tmp_path / "what").write_text(what)
        (tmp_path / "number").write_text(str(number))
        git("add", ".")
        git("commit", "-qm", f"commit {number}")
    code = f"""
import sys
sys.path[:0] = {json.dumps(sys.path)}
from pathlib import Path
from harness.cli import main, run
from harness.errors import InfraError
from test_bisect import fed, pair
what = Path("what").read_text()
def fake(args):
    if what == "broken":
        raise InfraError("does not compile")
    model = fed(pair(what))
    return model, run.exit_status(model)
run._run = fake
sys.exit(main.main(["run", "--bisect"]))
"""
    git("bisect", "start", "HEAD", "HEAD~5")
    output = git("bisect", "run", sys.executable, "-c", code)
    assert "is the first bad commit" in output
    assert git("log", "-1", "--format=%s", "refs/bisect/bad").strip() == "commit 4"
