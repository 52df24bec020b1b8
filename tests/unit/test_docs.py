# SPDX-License-Identifier: GPL-2.0-only
"""The documentation's examples are run, its tables compared, its links followed."""

from __future__ import annotations

import errno
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from policy_help import PROFILES, run

from harness.cli.main import parser
from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS
from harness.policy.known import KNOWN
from harness.policy.predict import applies, predict
from harness.policy.state import State
from harness.scenario import catalogue
from harness.scenario.functions import FUNCTIONS
from harness.scenario.parse import STEPS, scenario_from_json
from harness.scenario.steps import Scenario

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"), *REPOSITORY.glob("kmods/*.md")])
WRITING = (DOCS / "writing-scenarios.md").read_text(encoding="utf-8")


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def examples() -> dict[str, Scenario]:
    found = [scenario_from_json(json.loads(block)) for block in fences(WRITING, "json")]
    return {scenario.name: scenario for scenario in found}


def outcomes(scenario: Scenario, profile: str) -> list[int | None]:
    """Each step's errno, None for one that is left out."""
    state = State()
    found: list[int | None] = []
    for step in scenario.steps:
        if not applies(state, step):
            found.append(None)
            continue
        prediction, state = predict(state, step, scenario.functions, PROFILES[profile])
        found.append(prediction.errno[0])
    return found


# --- writing-scenarios.md -------------------------------------------------------------------


def test_examples_load() -> None:
    assert len(examples()) >= 4
    for scenario in examples().values():
        assert scenario_from_json(scenario.to_json()) == scenario


@pytest.mark.parametrize(
    ("name", "profile", "expected"),
    [
        ("mine/livepatch leaves first", "v5.10", [0, errno.EBUSY, 0, 0, 0]),
        ("mine/livepatch leaves first", "v6.1", [0, 0, 0, None, 0]),
        ("mine/livepatch leaves first", "v7.3", [0, 0, 0, None, 0]),
        ("mine/off under a program", "v5.10", [0, errno.EBUSY, 0, 0]),
        ("mine/off under a program", "v6.12", [0, 0, 0, 0]),
        ("mine/off under a program", "v7.3", [0, errno.EOPNOTSUPP, 0, 0]),
        ("mine/a neighbour", "v6.12", [0] * 7),
        ("livepatch+direct/attach:ab/detach:ba", "v6.12", [0, errno.EBUSY, None, 0]),
    ],
)
def test_examples_do_what_is_said(name: str, profile: str, expected: list[int | None]) -> None:
    assert outcomes(examples()[name], profile) == expected


def test_the_neighbour_notices_nothing() -> None:
    scenario = examples()["mine/a neighbour"]
    found, _ = run(PROFILES["v6.12"], *scenario.steps, functions=scenario.functions)
    for prediction in found:
        assert prediction.registry["cohabit_f8"] is None
        assert prediction.behaviour["cohabit_f8"].body == "original"
        assert prediction.behaviour["cohabit_f8"].hits == {}


def first_column(heading: str) -> set[str]:
    """The code words in the first column of the table with that heading."""
    table = re.search(rf"^\| {heading} \|.*?\n((?:\|.*\n)+)", WRITING, re.MULTILINE)
    assert table, heading
    words: set[str] = set()
    for row in table[1].splitlines():
        words |= set(re.findall(r"`([^`]+)`", row.split("|")[1]))
    return words


def test_tables_name_everything() -> None:
    assert first_column("attacher") == set(ATTACHERS)
    lanes = [f.name for f in FUNCTIONS.values() if f.lane is not None]
    others = set(FUNCTIONS) - set(lanes)
    assert first_column("function") == others | {lanes[0], lanes[-1]}
    assert first_column("`do`") == set(STEPS)
    assert first_column("key") == {
        "name", "steps", "functions", "matrix", "watch", "ends_vm", "arch", "reach", "boot", "cpus",
    }  # fmt: skip


def test_table_says_how_many_at_a_time() -> None:
    for row in re.findall(r"^\| (`livepatch`.*|`direct`.*|`fentry`.*|`ipmodify`.*|`ops`.*) \|$",
                          WRITING, re.MULTILINE):  # fmt: skip
        columns = [column.strip() for column in row.split("|")]
        for attacher in re.findall(r"`([^`]+)`", columns[0]):
            assert columns[-1].split()[0] == str(ATTACHERS[attacher].slots), attacher


# --- all pages ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_commands_are_command_lines(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = [line for block in fences(text, "") for line in block.splitlines()]
    lines += re.findall(r"`(\./cohabit [^`]*)`", text)
    for line in lines:
        line = line.removeprefix("$ ").partition("  #")[0]
        line = re.split(r" [|>;] ?", line)[0]
        if not line.startswith("./cohabit "):
            continue
        argv = shlex.split(line)[1:]
        try:
            parser().parse_args(argv)
        except SystemExit:
            pytest.fail(f"{line!r} is no command line")
        except UsageError as error:
            pytest.fail(f"{line!r}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:harness|kmods|tests|docs|vm|bpf_progs)/[\w./-]+)`", text):
        assert (REPOSITORY / name).exists(), name


def test_findings_are_all_in_the_index() -> None:
    index = (DOCS / "findings" / "README.md").read_text(encoding="utf-8")
    pages = {p.name for p in (DOCS / "findings").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"^\| \[[\w-]+\]\(([\w-]+\.md)\)", index, re.MULTILINE)) == pages
    for known in KNOWN:
        row = re.search(rf"^\| \[{known.name}\].*$", index, re.MULTILINE)
        assert row, known.name
        assert "XFAIL" in row[0]
    for page in pages:
        text = (DOCS / "findings" / page).read_text(encoding="utf-8")
        assert text.startswith(f"# {page.removesuffix('.md')}: ")
        for row_name in ("kernels", "scenario", "whose fault"):
            assert re.search(rf"^\| {row_name}s? \|", text, re.MULTILINE), (page, row_name)


@pytest.mark.parametrize("path", sorted((DOCS / "findings").glob("*.json")), ids=lambda p: p.stem)
def test_scenario_files_of_findings_are_the_scenarios(path: Path) -> None:
    """So that what replays a finding changes when its scenario does."""
    replayed = scenario_from_json(json.loads(path.read_text(encoding="utf-8")))
    known = (*catalogue.everything(), *catalogue.beside())
    alike = [s for s in known if s.name.partition("/on:")[0] == replayed.name]
    assert replayed in [replace(s, name=replayed.name, matrix=None) for s in alike]


def test_what_may_be_xfail_has_a_scenario_file() -> None:
    files = {path.stem for path in (DOCS / "findings").glob("*.json")}
    assert {known.name for known in KNOWN} <= files
