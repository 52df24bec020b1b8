# SPDX-License-Identifier: GPL-2.0-only
"""The command line as far as it goes without a VM: help, mistakes, lists, reports."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded import RUNS

from harness import __version__
from harness.cli.main import main, parser
from harness.cli.run import chosen
from harness.kernels import references
from harness.policy import profile
from harness.scenario import catalogue
from harness.scenario.parse import scenario_from_json

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = (
    "run", "compare", "bisect", "build", "mutants", "list", "report", "explain", "paths", "rules",
    "kernels", "shell", "doctor", "bench", "test", "completion",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; the signal handlers that main() sets are put back."""
    monkeypatch.setenv("COHABIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path / "cache"
    for number, handler in old.items():
        signal.signal(number, handler)


def call(*argv: str) -> int:
    """The exit status, argparse's own included."""
    try:
        return main(argv)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def program(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The whole program, as the launcher runs it."""
    command = [sys.executable, "-m", "harness.cli", *argv]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, **options
    )


# --- help -----------------------------------------------------------------------------------


def subparsers(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def test_these_are_the_commands() -> None:
    assert sorted(subparsers(parser())) == sorted(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command.split(), "--help") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith(f"usage: cohabit {command}".rstrip())
    examples = output.out.partition("\nexamples:\n")[2]
    assert f"cohabit {command}".rstrip() in examples


def examples(command: str) -> list[list[str]]:
    """The command lines in a command's help, without what is said about them."""
    top = parser()
    epilog = (subparsers(top)[command] if command else top).epilog or ""
    found = []
    column = 0
    for line in epilog.splitlines():
        if not line.startswith("  cohabit "):
            continue
        first = re.search(r"\S {2,}(?=\S)", line[2:])
        end = first.end() + 2 if first else len(line)
        # A long example may end right before the column of the words beside the others.
        if not first and column and line[column - 1 : column] == " ":
            end = column
        column = column or end
        found.append(shlex.split(line[:end])[1:])
    return found


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_examples_are_command_lines(command: str) -> None:
    found = examples(command)
    assert found or command in ("completion", "shell")
    for argv in found:
        if "COMMAND" in argv:
            continue
        args = parser().parse_args(argv)
        named = getattr(args, "scenarios", None) or []
        if named not in (["NAME"], ["snapshots"]):
            assert catalogue.select(named)
        if override := getattr(args, "profile", None):
            profile.choose("6.12", {}, override)
        kernels = getattr(args, "kernel", None) or []
        for reference in [kernels] if isinstance(kernels, str) else kernels:
            references.check(reference)


def test_every_option_is_explained() -> None:
    todo = [("cohabit", parser())]
    while todo:
        path, of = todo.pop()
        todo += [(f"{path} {name}", sub) for name, sub in subparsers(of).items()]
        for action in of._actions:
            if isinstance(action, argparse._SubParsersAction) or action.choices:
                continue
            if action.metavar != "REF":
                assert action.help, f"{path}: {action.option_strings or action.dest}"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"cohabit {__version__}\n"


# --- mistakes -------------------------------------------------------------------------------

MISTAKES = [
    ("", "required: COMMAND"),
    ("fly", "invalid choice"),
    ("run --accel xen", "--accel"),
    ("run --cpus 0", "--cpus"),
    ("run --cpus two", "--cpus"),
    ("run --memory -1", "--memory"),
    ("run --jobs 0", "--jobs takes a number from 1 on"),
    ("run --jobs x", "--jobs"),
    ("run --format pdf", "--format"),
    ("run --nonsense", "--nonsense"),
    ("run nothing-like-it", "no scenario is called 'nothing-like-it'"),
    ("run livepatch/alone 'x*'", "no scenario is called 'x*'"),
    ("run ops/alone --profile v9.9", "there is no profile 'v9.9'"),
    ("run --replay missing.json", "cannot read missing.json: No such file"),
    ("run --replay /", "cannot read /: Is a directory"),
    ("list nothing-like-it", "no scenario is called"),
    ("list --json --steps", "not allowed with"),
    ("report missing", "missing is no run's record"),
    ("report", "there is no run to report on"),
    ("kernels fly", "invalid choice"),
    ("kernels fetch", "REF"),
    ("kernels prune --unused-for -1", "--unused-for takes days"),
    ("kernels prune --unused-for week", "--unused-for"),
    ("completion --shell tcsh", "--shell"),
    ("doctor extra", "extra"),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[m[0] or "nothing" for m in MISTAKES])
def test_mistakes_end_with_2(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*shlex.split(line)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert words in output.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\x00\x01", "is not JSON"),
        ("[]", "holds one JSON object"),
        ('{"name": "x", "steps": [{"do": "fly"}]}', "there is no step 'fly'"),
    ],
)
def test_bad_replay_file(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="utf-8")
    assert call("run", "--replay", str(file)) == 2
    assert words in capsys.readouterr().err


def test_replay_file_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(b"\xff\xfe\x80")
    assert call("run", "--replay", str(file)) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_message_first_then_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "ops/alone", "--profile", "6.1") == 2
    assert capsys.readouterr().err.splitlines() == [
        "cohabit: there is no profile '6.1'",
        "  known profiles: v5.10, v6.1, v6.12, v7.2, v7.3, share-ipmodify-v2, permanent-v1, "
        "exclusive-v1",
    ]


def test_host_at_fault_ends_with_3() -> None:
    done = program("run", "ops/alone", env={**os.environ, "COHABIT_CACHE": "/dev/null/cache"})
    assert done.returncode == 3
    assert done.stdout == ""
    # It may say before that it removed what a killed run had left.
    assert "cohabit: the cache /dev/null/cache can't be used" in done.stderr
    assert "Traceback" not in done.stderr


# --- list -----------------------------------------------------------------------------------


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list") == 0
    assert capsys.readouterr().out.splitlines() == [s.name for s in catalogue.default()]
    assert call("list", "--all") == 0
    assert capsys.readouterr().out.splitlines() == [s.name for s in catalogue.everything()]
    assert call("list", "ops/alone", "fexit/alone") == 0
    assert sorted(capsys.readouterr().out.split()) == ["fexit/alone", "ops/alone"]


def test_list_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "--steps", "livepatch+fexit/attach:ba/detach:ba") == 0
    assert capsys.readouterr().out.splitlines() == [
        "livepatch+fexit/attach:ba/detach:ba",
        "  1. attach b: fexit to any",
        "  2. attach a: livepatch to any",
        "  3. detach b",
        "  4. attach a: livepatch to any",
        "  5. detach a",
    ]


def test_list_json_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "--json", "--all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(scenario_from_json(json.loads(line)) for line in lines) == catalogue.everything()


def test_what_list_prints_run_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "livepatch+fexit/attach:ab/detach:ab"
    assert call("list", "--json", name) == 0
    file = tmp_path / "one.json"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    args = parser().parse_args(["run", "--replay", str(file)])
    assert chosen(args) == catalogue.select([name])
    args = parser().parse_args(["run", "ops/alone", "--replay", str(file)])
    assert [s.name for s in chosen(args)] == ["ops/alone", name]


def test_reader_that_has_seen_enough() -> None:
    command = [sys.executable, "-m", "harness.cli", "list", "--all", "--json"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert listing.stdout.read(10)
        listing.stdout.close()
        errors = listing.stderr.read()
    assert (listing.returncode, errors) == (0, b"")


# --- report ---------------------------------------------------------------------------------


def test_report_on_a_recorded_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, xml = tmp_path / "page.html", tmp_path / "junit.xml"
    run = RUNS / "6.12"
    assert call("report", str(run), "--html", str(page), "--junit", str(xml)) == 0
    output = capsys.readouterr()
    assert "20 scenarios: 1 XFAIL, 19 PASS; 82 witnessed steps" in output.out
    assert "stale-regs" in output.out or "XFAIL" in output.out
    assert "Pair matrix" in output.out
    assert str(page) in output.err
    assert "livepatch+fexit/attach:ab/detach:ab" in page.read_text(encoding="utf-8")
    assert len(list(ET.parse(xml).getroot().iter("testcase"))) == 20
    # The file itself will do, too.
    assert call("report", str(run / "events.jsonl")) == 0
    assert capsys.readouterr().out == output.out


@pytest.mark.parametrize("run", sorted(p.name for p in RUNS.iterdir() if p.is_dir()))
def test_formats(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", str(RUNS / run), "--format", "ktap") == 0
    ktap = capsys.readouterr().out
    assert ktap.splitlines()[0] == "KTAP version 1"
    assert "\nnot ok" not in ktap
    assert call("report", str(RUNS / run), "--format", "json") == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_report_takes_the_newest(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RUNS / "6.12", cache / "runs" / "20260101-000000")
    shutil.copytree(RUNS / "5.10-6.1-7.2-7.3", cache / "runs" / "20260102-000000")
    # A run that never wrote anything is none.
    (cache / "runs" / "20260103-000000").mkdir()
    assert call("report") == 0
    assert "47 scenarios: 47 PASS" in capsys.readouterr().out


def test_report_fails_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (RUNS / "6.12" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "events.jsonl"
    # Cut short in the middle of a line, as by a kill or a full disk.
    file.write_text("\n".join(lines[:40]) + "\n" + lines[40][:30], encoding="utf-8")
    assert call("report", str(tmp_path)) == 1
    assert call("report", str(tmp_path), "--format", "ktap") == 1
    assert "not ok" in capsys.readouterr().out
    # A line is missing: nobody knows what was in it.
    file.write_text("\n".join(lines[:40] + lines[41:]) + "\n", encoding="utf-8")
    assert call("report", str(tmp_path)) == 3
    assert "gap" in capsys.readouterr().err


# --- the rest -------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_code(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("completion", "--shell", shell) == 0
    code = capsys.readouterr().out
    assert "cohabit" in code
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=code.encode(), check=False)
        assert checked.returncode == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cohabit re", {"report"}),
        ("cohabit run --acc", {"--accel"}),
        ("cohabit run --accel ", {"auto", "kvm", "tcg"}),
        ("cohabit kernels ", {"list", "fetch", "prune", "-h", "--help"}),
    ],
)
def test_completion_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    """As the shell's code asks for it (argcomplete's protocol)."""
    answer = tmp_path / "answer"
    done = program(
        env={
            **os.environ,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "63",
        }
    )
    assert done.stderr == ""
    assert {word.strip() for word in answer.read_text(encoding="utf-8").split("\n")} == expected


def test_an_empty_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("kernels") == 0
    output = capsys.readouterr()
    assert output.out == f"0 MB in {cache}\n"
    assert "cohabit kernels fetch" in output.err
    assert call("kernels", "prune") == 0
    assert capsys.readouterr().out == "0 MB freed\n"


def test_doctor_looks_and_changes_nothing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = call("doctor", "--json")
    data = json.loads(capsys.readouterr().out)
    missing = [need for need in data["needs"] if need["found"] is None]
    assert status == (3 if missing else 0)
    assert all(need["remedy"] for need in data["needs"])
    assert data["accelerator"]["name"] in ("not tried", "unknown")
    assert data["cache"] == str(cache)
    assert not list(cache.glob("objects/*"))
