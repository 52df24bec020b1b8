# SPDX-License-Identifier: GPL-2.0-only
"""A comparison told: text, JSON, HTML, expectations, the command."""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compare_help import MANY, NAME, PASSED, both, ids, logged, policy, sample
from markupsafe import escape
from sample_events import NEW, write

from harness.cli import compare as command
from harness.cli.main import main
from harness.errors import UsageError
from harness.report import comparehtml, compareread, comparetext
from harness.report.compare import (
    Change,
    Comparison,
    Surprise,
    compare,
    exit_status,
    expectations,
    matches,
    to_json,
    unexpected,
)

# --- text, JSON, HTML -------------------------------------------------------------------------


@functools.cache
def comparisons() -> list[Comparison]:
    run = compareread.read(MANY)
    return [
        compare(run, run, ("5.10", "6.1")),
        compare(run, run, ("6.1", "7.3")),
        both(policy(), policy(True)),
        both(sample({PASSED: "splat"}), sample({("ops", "fentry"): "body"})),
        both(sample(), logged("a" * 100, "b " * 100)),
    ]


def test_text_fits_a_mail() -> None:
    for found in comparisons():
        surprise = Surprise(found.changes, tuple(f"broken {'x' * 90}{n}" for n in range(9)))
        text = comparetext.render_text(found, surprise)
        assert max(map(len, text.splitlines())) <= 72
        assert all(c == "\n" or c.isprintable() for c in text)
        assert not any(line.endswith(" ") for line in text.splitlines())


def test_text_has_the_surroundings() -> None:
    found = both(sample(), sample())
    text = comparetext.render_text(found)
    for part in (
        "cohabit 0.1.0", "base ", "head ", NEW, "tcg (", "QEMU 10.0.2", "x86-64, SHARE_IPMODIFY",
        "repeat cohabit run 'pair/*'", "1024 MB", "10 PASS",
    ):  # fmt: skip
        assert part in " ".join(text.split()), part


def test_a_long_command_can_be_pasted() -> None:
    argv = ["cohabit", "compare", "--tree", "tree:/a b", *(f"{n}livepatch+*" for n in range(20))]
    events = [{**e, "argv": argv} if e["type"] == "run_start" else e for e in sample()]
    lines = comparetext.render_text(both(events, events)).splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("  repeat"))
    pasted = lines[begin].removeprefix("  repeat")
    while pasted.endswith("\\"):
        begin += 1
        pasted = pasted[:-1] + lines[begin]
    assert shlex.split(pasted) == argv


def test_json() -> None:
    for found in comparisons():
        data = json.loads(json.dumps(to_json(found)))
        assert [c["id"] for c in data["changes"]] == ids(found)
        assert data["unexpected"] is None
        assert sum(data["counts"].values()) == len(found.changes)
        assert data["exit_status"] == exit_status(found)


def test_html() -> None:
    found = both(sample(), logged("<script>alert(1)</script> \x1b[31m"))
    page = comparehtml.render(found, Surprise((), ("broken <b>",)))
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert(N)" in page
    assert "broken &lt;b&gt;" in page
    assert "Exactly the expected" not in page
    assert "Exactly the expected" in comparehtml.render(found, Surprise())
    for found in comparisons():
        page = comparehtml.render(found)
        for change in found.changes:
            assert str(escape(change.subject)) in page
            assert change.kind == "untested" or f"{escape(change.id)}\n" in page


# --- expectations -----------------------------------------------------------------------------


def test_expectation_files() -> None:
    text = "\n# what v2 changes\nfixed *   # all of them\n\n differs permanent/*: step #2\n#end"
    assert expectations(text, "f") == ("fixed *", "differs permanent/*: step #2")


@pytest.mark.parametrize("line", ["livepatch+direct/*", "broken", "untested *", "broke *", "* *"])
def test_lines_that_say_nothing(line: str) -> None:
    with pytest.raises(UsageError, match=r"^x/expect, line 2: .* is no expected change"):
        expectations(f"fixed *\n{line}\n", "x/expect")


def test_what_a_line_speaks_of() -> None:
    change = Change("differs", "a+b/x:1", "attach b: errno EBUSY -> 0", "step 2", "", ())
    for line in (
        "differs a+b/x:1", "differs a+b/*", "differs *", "differs *errno EBUSY -> *",
        "differs a+b/x:1: step 2 attach b: errno EBUSY -> 0",
    ):  # fmt: skip
        assert matches(line, change), line
    for line in ("broken *", "differs a+b", "differs *EINVAL*", "differs A+b/*"):
        assert not matches(line, change), line
    broken = Change("broken", "a+b/x:1", "PASS -> CRASH: oops", "step 2", "", ())
    assert matches("broken *: step 2 PASS -> CRASH*", broken)


def test_exactly_what_was_expected() -> None:
    found = both(sample({PASSED: "body"}), sample({("ops", "fentry"): "body"}))
    right = [f"fixed {NAME}", "broken pair/ops+*"]
    assert not unexpected(found, right)
    assert exit_status(found) == 1
    assert exit_status(found, unexpected(found, right)) == 0
    more = unexpected(found, [*right, "differs *"])
    assert more == Surprise((), ("differs *",))
    assert exit_status(found, more) == 1
    less = unexpected(found, right[:1])
    assert [c.id for c in less.unexpected] == ["broken pair/ops+fentry"]
    assert exit_status(found, less) == 1


def test_every_id_can_be_expected() -> None:
    for found in comparisons():
        lines = expectations("\n".join(i for i in ids(found)), "f")
        assert not unexpected(found, lines)
        assert exit_status(found, unexpected(found, lines)) == 0
        for change in found.changes:
            assert unexpected(found, [i for i in ids(found) if i != change.id])


def test_without_a_result_nothing_is_as_expected() -> None:
    found = both(sample(), sample({PASSED: "lost"}))
    assert exit_status(found, unexpected(found, [])) == 3
    # It may have been the one that has no result.
    assert exit_status(found, unexpected(found, [f"broken {NAME}"])) == 3
    worse = both(sample(), sample({PASSED: "lost", ("ops", "fentry"): "body"}))
    assert exit_status(worse, unexpected(worse, [])) == 1


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def test_two_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(write(sample(), tmp_path / "a@b"))
    head = str(write(sample({PASSED: "body"}), tmp_path / "head"))
    assert main(["compare", base, head]) == 1
    assert "Broken (1)" in capsys.readouterr().out
    assert main(["compare", head, base]) == 0
    capsys.readouterr()
    assert main(["compare", base, head, "--ids"]) == 1
    assert capsys.readouterr().out == f"broken {NAME}\n"
    expected = tmp_path / "expect"
    expected.write_text(f"broken {NAME}\n")
    page = tmp_path / "page.html"
    argv = ["compare", base, head, "--json", "--expect", str(expected), "--html", str(page)]
    assert main(argv) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["exit_status"], data["unexpected"]) == (0, [])
    assert "Exactly the expected" in page.read_text()
    assert main(["compare", f"{MANY}@7.2", f"{MANY}@7.3"]) == 0
    assert "3 different; 9 as before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ("", "nothing to compare"),
        ("one two three", "nothing to compare"),
        ("nowhere nowhere", "no run's record"),
        ("--base debian:7.2", "--base and --head belong together"),
        ("--tree source:7.2", "--tree and --series belong together"),
        ("--series s.patch --head debian:7.2", "--tree and --series belong together"),
        ("--base x --head debian:7.2", "'x' is no kernel reference"),
        ("--base debian:7.2 --head debian:7.3 --head-profile v0", "v0"),
        ("--base debian:7.2 --head debian:7.3 --together 0", "--together"),
        ("a b --expect nowhere", "cannot read nowhere"),
    ],
)
def test_mistakes(argv: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *argv.split()]) == 2
    assert part in capsys.readouterr().err


class FakeKernel:
    def __init__(self, reference: str) -> None:
        self.reference = reference


class FakeSetup:
    """Stands in for the cache: notes what is asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def kernel(self, reference: str, series: str = "") -> FakeKernel:
        self.asked.append(f"kernel {reference}" + (f" with {series}" if series else ""))
        return FakeKernel(self.asked[-1])

    def machine(self, kernel: FakeKernel) -> None:
        self.asked.append(f"machine of {kernel.reference}")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSetup:
    setup = FakeSetup()

    def run_once(
        of: FakeSetup, kernel: FakeKernel, scenarios: Any, args: argparse.Namespace,
        directory: Path | None, override: str | None,
    ) -> Path:  # fmt: skip
        names = ",".join(s.name for s in scenarios)
        of.asked.append(f"run {kernel.reference} {names} {directory} {override}")
        return write(sample(), tmp_path / str(len(of.asked)))

    monkeypatch.setattr(command.Setup, "of", lambda _: setup)
    monkeypatch.setattr(command, "run_once", run_once)
    monkeypatch.setattr(command, "check", lambda _: None)
    return setup


def test_a_tree_and_a_series(fake: FakeSetup, capsys: pytest.CaptureFixture[str]) -> None:
    name = "livepatch+direct/attach:ab/detach:ab"
    argv = ["--tree", "tree:x", "--series", "s", name, "--head-profile", "v6.1", "--output", "out"]
    assert main(["compare", *argv]) == 0
    # Nothing boots before both kernels are there.
    assert fake.asked == [
        "kernel tree:x",
        "kernel tree:x with s",
        "machine of kernel tree:x",
        "machine of kernel tree:x with s",
        f"run kernel tree:x {name} out/base None",
        f"run kernel tree:x with s {name} out/head v6.1",
    ]
    assert "nothing changed; 10 as before" in capsys.readouterr().out


def test_two_references(fake: FakeSetup) -> None:
    assert main(["compare", "--base", "a", "--head", "b", "--profile", "v6.1"]) == 0
    assert [line.split(" livepatch")[0] for line in fake.asked[-2:]] == [
        "run kernel a", "run kernel b",
    ]  # fmt: skip
    assert all(line.endswith(" None v6.1") for line in fake.asked[-2:])


def test_a_bad_expectation_is_told_first(
    fake: FakeSetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e").write_text("what\n")
    argv = ["compare", "--base", "a", "--head", "b", "--expect", str(tmp_path / "e")]
    assert main(argv) == 2
    assert fake.asked == []
    assert "line 1: 'what' is no expected change" in capsys.readouterr().err
