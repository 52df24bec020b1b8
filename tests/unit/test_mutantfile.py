# SPDX-License-Identifier: GPL-2.0-only
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.arch import ARCHES, ARM64, X86_64, Arch
from harness.errors import UsageError
from harness.kernels.mutantfile import Mutant, parse, read
from harness.policy.rules import RULES
from harness.scenario import catalogue

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "tests/mutants"
DOCUMENT = ROOT / "docs/mutants.md"
MUTANTS = read(DIRECTORY)
RELEASE = (7, 2)
#: What a run with one mutant may cost: scenarios.
FEW = 6

GOOD = """\
Mutant: small
Rule: one-direct welcome
Bug: 56b3c85e153b ("ftrace: Fix BPF fexit with livepatch")
Scenarios: direct/alone livepatch+direct/attach:ab/*
Expect: errno: step 1 gives EBUSY where 0 is due
---
diff --git a/kernel/a.c b/kernel/a.c
--- a/kernel/a.c
+++ b/kernel/a.c
@@ -1,3 +1,3 @@ int f(void)
 int f(void)
-{ return 0; }
+{ return 1; }
 /* end */
"""


def write(directory: Path, text: str, name: str = "small") -> Path:
    path = directory / f"{name}.patch"
    path.write_text(text, encoding="utf-8")
    return path


def of(arch: Arch) -> list[Mutant]:
    """Those that steps one after the other can notice."""
    return [m for m in MUTANTS if arch.name in m.arches and not m.race]


RACES = [m for m in MUTANTS if m.race]


def breakable() -> set[str]:
    """The rules that hold on the release that the mutants are of, on one architecture or both."""
    policies = [arch.policy for arch in ARCHES.values()]
    return {n for n, rule in RULES.items() if any(rule.holds(p, RELEASE) for p in policies)}


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the table below a heading of docs/mutants.md, by the name in the first cell."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {row[0].strip(" `"): row[1:] for row in cells}


class TestFiles:
    @pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
    def test_few_scenarios_and_one_file(self, mutant: Mutant) -> None:
        # A VM for a mutant is a boot, and a second file a longer build.
        assert 1 <= len(mutant.selected()) <= FEW
        assert len(mutant.files) == 1
        assert mutant.files[0].endswith((".c", ".S"))
        assert not mutant.files[0].startswith(("tools/", "samples/"))

    @pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
    def test_expectation_names_a_witness(self, mutant: Mutant) -> None:
        if mutant.equivalent:
            assert mutant.expect == "nothing"
        else:
            witnesses = "errno|registry|site|behaviour|log"
            if mutant.race:
                # What hammers counted, and what the kernel says of itself.
                witnesses += "|stirred|report"
            assert re.match(rf"({witnesses})( and \w+)?: ", mutant.expect)

    def test_every_rule_has_one_or_a_reason(self) -> None:
        broken = {rule for m in MUTANTS if not m.equivalent for rule in m.rules}
        reasons = table("Rules without a mutant")
        assert breakable() - broken == set(reasons) & breakable()
        assert set(reasons) == set(RULES) - broken

    @pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
    def test_a_file_of_its_architectures(self, mutant: Mutant) -> None:
        own = {ARCHES[name].srcarch for name in mutant.arches}
        touched = {name.split("/")[1] for name in mutant.files if name.startswith("arch/")}
        assert not touched or touched == own

    def test_enough(self) -> None:
        assert len([m for m in of(X86_64) if not m.equivalent]) >= 30
        assert len([m for m in of(ARM64) if not m.equivalent]) >= 8
        assert len({m.bug for m in MUTANTS if m.bug and not m.equivalent}) >= 5

    @pytest.mark.parametrize(
        ("arch", "heading"), [(X86_64, "The mutants"), (ARM64, "The mutants of arm64")]
    )
    def test_each_has_a_row(self, arch: Arch, heading: str) -> None:
        rows = table(heading)
        assert list(rows) == [m.name for m in of(arch)]
        for mutant in of(arch):
            breaks = rows[mutant.name][0]
            for word in (*mutant.rules, *mutant.bug.split()[:1]):
                assert word in breaks, mutant.name

    def test_races(self) -> None:
        rows = table("The races")
        assert list(rows) == [m.name for m in RACES]
        for mutant in RACES:
            assert rows[mutant.name][0] == (mutant.flavour or "plain")
        # Only work at the same time notices them, on kernels that look for trouble or not.
        assert len(RACES) >= 9
        assert {m.flavour for m in RACES} == {"", "debug", "kasan"}
        sets = {name.split("/")[0] for m in RACES for name in m.selected()}
        assert sets >= {"consistency", "races", "load"}

    def test_no_two_are_the_same(self) -> None:
        assert len({m.patch for m in MUTANTS}) == len(MUTANTS)


class TestParse:
    def test_fields(self, tmp_path: Path) -> None:
        path = write(tmp_path, GOOD)
        mutant = parse(path)
        assert mutant.name == "small"
        assert mutant.arches == ("x86_64",)
        assert mutant.rules == ("one-direct", "welcome")
        assert mutant.bug == '56b3c85e153b ("ftrace: Fix BPF fexit with livepatch")'
        assert mutant.scenarios == ("direct/alone", "livepatch+direct/attach:ab/*")
        assert mutant.expect == "errno: step 1 gives EBUSY where 0 is due"
        assert mutant.equivalent == ""
        assert mutant.files == ("kernel/a.c",)
        assert mutant.patch == GOOD.partition("---\n")[2]
        assert mutant.path == path

    def test_architectures(self, tmp_path: Path) -> None:
        text = GOOD.replace("Rule: ", "Arch: x86_64 arm64\nRule: ")
        assert parse(write(tmp_path, text)).arches == ("x86_64", "arm64")

    def test_a_race_on_a_flavour(self, tmp_path: Path) -> None:
        mutant = parse(write(tmp_path, GOOD))
        assert (mutant.flavour, mutant.race) == ("", "")
        text = GOOD.replace("Rule: one-direct welcome", "Flavour: kasan\nRace: freed too early")
        text = re.sub(r"Bug: .*\n", "", text).replace("direct/alone", "races/direct load/all")
        mutant = parse(write(tmp_path, text))
        assert (mutant.flavour, mutant.race) == ("kasan", "freed too early")
        assert mutant.rules == ()
        # Those that are run only where they are named come last.
        assert mutant.selected()[-2:] == ("races/direct", "load/all")

    def test_selected_in_the_catalogues_order(self, tmp_path: Path) -> None:
        text = GOOD.replace("attach:ab/*", "attach:ab/detach:??")
        names = parse(write(tmp_path, text)).selected()
        assert names == (
            "livepatch+direct/attach:ab/detach:ab",
            "direct/alone",
            "livepatch+direct/attach:ab/detach:ba",
        )
        order = [s.name for s in catalogue.everything()]
        assert sorted(names, key=order.index) == list(names)

    @pytest.mark.parametrize(
        ("old", "new", "line", "words"),
        [
            ("Mutant: small\n", "", 5, "no Mutant"),
            ("Mutant: small\n", "Mutant: other\n", 1, "'other'"),
            ("Expect: errno: step 1 gives EBUSY where 0 is due\n", "", 5, "no Expect"),
            ("Scenarios: direct/alone livepatch+direct/attach:ab/*\n", "", 5, "no Scenarios"),
            ("one-direct welcome", "one-direct wellcome", 2, "'wellcome'"),
            ("Rule: ", "Arch: arm32\nRule: ", 2, "no architecture 'arm32'"),
            ("Rule: ", "Flavour: sweet\nRule: ", 2, "no flavour 'sweet'"),
            ("direct/alone ", "direct/together ", 4, "'direct/together'"),
            ("56b3c85e153b", "56b3c85", 3, "12 digits"),
            ("Rule: ", "Rules: ", 2, "no line of a header"),
            ("Expect: errno: step 1 gives EBUSY where 0 is due", "Expect:", 5, "empty"),
            ("Mutant: small\n", "Mutant: small\nMutant: small\n", 2, "second"),
            ("\n---\ndiff", "\ndiff", 6, "no line of a header"),
            ("+++ b/kernel/a.c", "+++ b/kernel/b.c", 8, "+++ b/kernel/a.c"),
            (" b/kernel/a.c\n---", " b/kernel/b.c\n---", 7, "renames"),
            (" /* end */\n", "", 10, "fewer lines"),
            ("-1,3 +1,3", "-1,2 +1,3", 10, "other lines"),
            ("-1,3 +1,3", "-1,2 +1,2", 14, "no part of a patch"),
            ("-{ return 0; }\n+{ return 1; }\n", " { return 0; }\n", 13, "changes nothing"),
            (GOOD[GOOD.index("diff") :], "", 6, "changes nothing"),
        ],
    )
    def test_errors_name_file_and_line(
        self, tmp_path: Path, old: str, new: str, line: int, words: str
    ) -> None:
        assert old in GOOD
        path = write(tmp_path, GOOD.replace(old, new))
        with pytest.raises(UsageError) as raised:
            parse(path)
        assert raised.value.message.startswith(f"{path}:{line}: "), raised.value.message
        assert words in raised.value.message
        assert raised.value.remedy

    def test_needs_a_rule_or_a_bug(self, tmp_path: Path) -> None:
        ruleless = GOOD.replace("Rule: one-direct welcome\n", "")
        assert parse(write(tmp_path, ruleless)).rules == ()
        neither = re.sub(r"Bug: .*\n", "", ruleless)
        with pytest.raises(UsageError, match="no Rule, Bug or Race"):
            parse(write(tmp_path, neither))

    def test_header_without_an_end(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=":5: no line --- ends"):
            parse(write(tmp_path, GOOD.partition("---\n")[0]))

    def test_several_files_and_hunks(self, tmp_path: Path) -> None:
        more = GOOD.partition("---\n")[2]
        second = more.replace("kernel/a.c", "kernel/b.c")
        hunk = "@@ -7 +7,2 @@\n x\n+y\n"
        assert parse(write(tmp_path, GOOD + hunk + second)).files == ("kernel/a.c", "kernel/b.c")

    def test_empty_line_of_context(self, tmp_path: Path) -> None:
        assert parse(write(tmp_path, GOOD.replace(" /* end */\n", "\n"))).files

    def test_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "small.patch"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match="cannot be read"):
            parse(path)

    def test_read_sorts(self, tmp_path: Path) -> None:
        write(tmp_path, GOOD.replace("Mutant: small", "Mutant: b"), "b")
        write(tmp_path, GOOD.replace("Mutant: small", "Mutant: a"), "a")
        (tmp_path / "README").write_text("no mutant")
        assert [m.name for m in read(tmp_path)] == ["a", "b"]

    def test_empty_directory(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="has no mutants"):
            read(tmp_path)


def test_git_takes_the_form(tmp_path: Path) -> None:
    # With the header in front of it, as it is.
    source = tmp_path / "kernel/a.c"
    source.parent.mkdir()
    source.write_text("int f(void)\n{ return 0; }\n/* end */\n")
    path = write(tmp_path, GOOD)
    git = shutil.which("git")
    assert git
    subprocess.run([git, "apply", str(path)], cwd=tmp_path, check=True, timeout=60)
    assert "return 1" in source.read_text()
