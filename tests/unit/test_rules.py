# SPDX-License-Identifier: GPL-2.0-only
"""The rules: complete, used, and each missed by somebody when it is gone."""

from __future__ import annotations

import ast
import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_kernel import Event, names, record_run

from harness import replay
from harness.cli.main import main
from harness.mutants import Mutant, survey
from harness.policy import rules
from harness.policy.profile import Profile
from harness.policy.rules import RULES, Rule
from harness.replay import gathered
from harness.scenario import catalogue

POLICY = Path(rules.__file__).parent


# --- each rule --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_complete(rule: Rule) -> None:
    assert rule.source
    assert rule.text.endswith(".")
    assert rule.scenarios
    assert rule.arches
    assert rule.until is None or rule.since <= rule.until
    known = [s.name for s in catalogue.everything()]
    for glob in rule.scenarios:
        assert fnmatch.filter(known, glob), f"{glob} matches no scenario"


def test_no_two_rules_have_one_name() -> None:
    # RULES would have only the second.
    constants = [value for value in vars(rules).values() if isinstance(value, Rule)]
    assert len(constants) == len(RULES)


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(POLICY.glob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def _asked() -> Iterator[tuple[str, str]]:
    """Where harness/policy asks ``profile.has("...")``, with the name."""
    for path, tree in _trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr == "has" and isinstance(node.args[0], ast.Constant):
                yield f"{path.name}:{node.lineno}", str(node.args[0].value)


def _constants() -> Iterator[tuple[str, str]]:
    """Where harness/policy uses ``rules.X``, with X; in the tables X alone, past its line."""
    for path, tree in _trees():
        for node in ast.walk(tree):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "rules" and node.attr.isupper():
                    yield where, node.attr
            elif (
                path.name.startswith("rules")
                and isinstance(node, ast.Name)
                and isinstance(node.ctx, ast.Load)
            ):
                yield where, node.id


def test_every_name_that_is_asked_for_is_a_rule() -> None:
    asked = list(_asked())
    assert len(asked) > 20
    assert [(where, name) for where, name in asked if name not in RULES] == []


def test_every_constant_that_is_used_is_there() -> None:
    used = [(where, name) for where, name in _constants() if not where.startswith("rules")]
    assert len(used) > 20
    assert [(where, name) for where, name in used if not hasattr(rules, name)] == []


def test_every_rule_is_used() -> None:
    used = {name for _, name in _asked()}
    for _, constant in _constants():
        if isinstance(value := getattr(rules, constant, None), Rule):
            used.add(value.name)
    assert sorted(RULES.keys() - used) == []


# --- survivors --------------------------------------------------------------------------------

SAMPLE = (
    "livepatch+livepatch/*", "livepatch+ipmodify/*", "livepatch+direct/*", "livepatch+fexit/*",
    "fentry+fexit/*", "fmod_ret+fmod_ret/*", "fexit+fmod_ret/*", "kprobe/filter-change",
    "kprobe+kprobe/*", "direct/modify", "*/alone/on:cohabit_f1", "*/alone/on:cohabit_f8",
    "livepatch/pending*", "livepatch/enable-twice", "livepatch/ftrace_enabled:*",
    "ops/ftrace_enabled:*", "misuse/*",
)  # fmt: skip


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """A run in groups on a kernel that does everything right."""
    chosen = catalogue.select(SAMPLE, whole=True)
    events = record_run(tmp_path_factory.mktemp("sample"), chosen, ["6.12"])
    assert not names(events, "FAIL")
    return events


def test_the_whole_model_agrees_with_itself(sample: list[Event]) -> None:
    run = gathered(sample)
    assert any(len(g.members) > 10 for g in run.gatherings)
    judged = sum(len(g.names) for g in run.gatherings)
    assert judged == len(names(sample, "PASS"))
    assert [c for g in run.gatherings for c in replay.follow(g)] == []


def test_what_an_earlier_scenario_left_is_known(tmp_path: Path) -> None:
    """M, and the share flag of a trampoline that outlived its programs."""
    pairs = catalogue.select(["livepatch+fexit/attach:ba/detach:ba", "fexit+ops/*"], whole=True)
    events = record_run(tmp_path, pairs, ["7.2"], side_by_side=1)
    either = [
        record["why_either"]
        for e in events
        if e["type"] == "step_start" and "fexit+ops" in e["scenario"]
        for record in e["predicted"]["registry"].values()
        if record and record["jmp"] is None
    ]
    assert either
    run = gathered(events)
    assert [c for g in run.gatherings for c in replay.follow(g)] == []


def test_a_rule_that_is_tested_does_not_survive(sample: list[Event]) -> None:
    wanted = (
        "one-ipmodify", "peer-must-agree", "self-must-agree", "newest-livepatch-wins",
        "fmod_ret-newest-first", "filter-change-keeps-regs", "modify-moves", "detach-always",
        "no-change-is-invalid", "one-transition", "record-counts-ops", "off-is-off",
        "livepatch-says-why", "permanent-keeps-enabled", "enabled-once", "dead-ftrace",
        "direct-is-shown", "exit-sees-final-return", "each-sees-each-call", "welcome",
    )  # fmt: skip
    found = survey([gathered(sample)], [RULES[name] for name in wanted])
    assert found.disagreements == []
    assert [str(j.mutant) for j in found.survivors] == []
    with_errno = sum(bool(RULES[name].errno) for name in wanted)
    assert len(found.judgements) == len(wanted) + with_errno
    assert all(j.noticed and j.noticed.index >= 0 for j in found.judgements)


def test_a_rule_that_nobody_tests_survives(sample: list[Event]) -> None:
    """Of the direct calls the sample has none twice."""
    found = survey([gathered(sample)], [RULES["replace-displaces"], RULES["one-direct"]])
    survivors = {j.mutant.rule.name: j for j in found.survivors}
    assert survivors["replace-displaces"].ran == 0
    # The same scenarios without those that would notice.
    kept = [e for e in sample if "fmod_ret+fmod_ret" not in str(e.get("scenario"))]
    rule = RULES["fmod_ret-newest-first"]
    assert survey([gathered(sample)], [rule]).survivors == []
    assert [j.mutant.rule for j in survey([gathered(kept)], [rule]).survivors] == [rule]


def test_every_mutant_is_another_model(sample: list[Event]) -> None:
    """What a kernel that lacks a rule shows contradicts the whole model, and its own does not."""
    for name in ("record-counts-ops", "ipmodify-is-shown", "newest-livepatch-wins"):
        mutant = Mutant(RULES[name])
        run = gathered(sample)
        for gathering in run.gatherings:
            replay.follow(gathering)
        profile = run.gatherings[0].kernel.profile
        assert mutant.profile(profile).has(name) is False
        assert profile.has(name)
        contradicted = [
            c
            for g in run.gatherings
            for c in replay.contradictions(g, mutant.profile(g.kernel.profile))
        ]
        assert contradicted
        assert {c.what.witness for c in contradicted} <= {"registry", "behaviour", "model", "log"}


def test_scenarios_that_failed_are_not_judged(tmp_path: Path) -> None:
    def forgets(profile: Profile) -> Profile:
        return Mutant(RULES["one-ipmodify"]).profile(profile)

    chosen = catalogue.select(["livepatch+ipmodify/*", "livepatch+livepatch/*"], whole=True)
    events = record_run(tmp_path, chosen, ["6.12"], wrong=forgets)
    assert names(events, "FAIL")
    run = gathered(events)
    assert [c for g in run.gatherings for c in replay.follow(g)] == []
    for event in events:
        if event["type"] == "scenario_end":
            event["verdict"] = "PASS"
    contradicted = [c for g in gathered(events).gatherings for c in replay.follow(g)]
    assert contradicted
    assert {c.what.rule for c in contradicted} >= {"one-ipmodify"}


def test_a_mutant_is_not_judged_where_the_model_is_wrong(sample: list[Event]) -> None:
    events: list[Event] = json.loads(json.dumps(sample))
    step = next(e for e in events if e["type"] == "step_end" and e["observed"]["errno"] == 16)
    step["observed"]["errno"] = 22
    found = survey([gathered(events)])
    assert [c.what.witness for c in found.disagreements] == ["errno"]
    assert found.judgements == []


def test_each_kernel_is_judged_by_itself(tmp_path: Path) -> None:
    chosen = catalogue.select(["livepatch+ipmodify/*", "direct-share+livepatch/modify"], whole=True)
    run = gathered(record_run(tmp_path, chosen, ["5.10", "6.12"]))
    found = survey([run], [RULES["one-ipmodify"], RULES["modify-moves"]])
    assert all(j.noticed.kernel == j.kernel for j in found.judgements if j.noticed)
    outcome = {(j.kernel[:4], str(j.mutant)): bool(j.noticed) for j in found.judgements}
    # The older has no ops_func, and so no scenario that was run.
    assert outcome["5.10", "modify-moves is forgotten"] is False
    assert outcome["6.12", "modify-moves is forgotten"] is True


def test_what_one_kernel_cannot_run_is_no_excuse_for_another(tmp_path: Path) -> None:
    pair = catalogue.select(["direct-share+livepatch/modify"])
    other = catalogue.select(["livepatch+ipmodify/*"])
    old = gathered(record_run(tmp_path, [*other, *pair], ["5.10"]))
    new = gathered(record_run(tmp_path, other, ["6.12"]))
    found = survey([old, new], [RULES["modify-moves"]])
    assert {(j.kernel[:4], j.possible) for j in found.judgements} == {
        ("5.10", False),
        ("6.12", True),
    }
    assert [j.kernel for j in found.survivors] == ["6.12.0-model"]


def test_rules_of_other_kernels_are_not_judged(sample: list[Event]) -> None:
    later, arm = RULES["disabling-deprecated"], RULES["save-regs-needs-support"]
    found = survey([gathered(sample)], [later, arm, RULES["welcome"]])
    assert found.nowhere == [later, arm]
    assert {j.mutant.rule.name for j in found.judgements} == {"welcome"}


def test_a_kernel_that_cannot_run_a_rules_scenarios_is_told_apart(tmp_path: Path) -> None:
    """Before 6.0 a direct call has no ops_func, and modules have no fprobes."""
    rule = Rule("nobody-asks", "a.c: f", "It is not asked for.", ("direct-share/modify",))
    chosen = catalogue.select(["ops+ops/*", "direct-share/modify"], whole=True)
    run = gathered(record_run(tmp_path, chosen, ["5.10"]))
    found = survey([run], [rule])
    assert found.survivors == []
    assert [j.skipped for j in found.impossible] == [1]
    # Left out of the run, not by the kernel: that is no excuse.
    run.skipped.clear()
    assert len(survey([run], [rule]).survivors) == 1


def test_a_kernel_held_to_another_policy_is_not_judged(sample: list[Event], tmp_path: Path) -> None:
    events: list[Event] = json.loads(json.dumps(sample))
    for event in events:
        if event["type"] == "kernel":
            event.update(profile="v6.12", profile_why="--profile")
    found = survey([gathered(events)])
    assert found.judgements == []
    assert found.overridden == ["6.12.0-model"]
    # Nor does it help one that was run with its own.
    own = gathered(record_run(tmp_path, catalogue.select(["ops+ops/*"]), ["6.12"]))
    rule = RULES["newest-livepatch-wins"]
    assert survey([gathered(sample), own], [rule]).survivors == []
    assert len(survey([gathered(events), own], [rule]).survivors) == 1


# --- the command ------------------------------------------------------------------------------


def test_it_lists_all_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    said = capsys.readouterr().out
    for rule in RULES.values():
        assert f"{rule.name}\n" in said
        assert rule.source in said
    assert main(["rules", "--json"]) == 0
    data = {r["name"]: r for r in json.loads(capsys.readouterr().out)["rules"]}
    assert data.keys() == RULES.keys()
    assert data["one-ipmodify"]["errno"] == 16
    assert "livepatch+ipmodify/attach:ab/detach:ab" in data["one-ipmodify"]["scenarios"]


def test_it_says_where_the_architectures_differ(capsys: pytest.CaptureFixture[str]) -> None:
    for rule in RULES.values():
        alike = rule.arches == ("x86-64", "arm64") and rule.arm64 is None
        assert alike or rule.difference, rule.name
        # What only one has is not "later" on the other.
        assert not rule.arm64 or "arm64" in rule.difference, rule.name
    assert main(["rules", "one-direct"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "6.0 and newer, x86-64; 6.4 and newer, arm64; EBUSY (16)" in said
    assert "architectures differ: A BPF trampoline that finds a direct call gives EINVAL" in said
    assert main(["rules", "welcome", "--json"]) == 0
    (data,) = json.loads(capsys.readouterr().out)["rules"]
    assert data["differs"] is None
    assert data["releases"]["arm64"] == {"since": "5.5", "until": None}
    assert main(["rules", "direct-needs-call-ops", "--json"]) == 0
    (data,) = json.loads(capsys.readouterr().out)["rules"]
    assert data["releases"] == {"arm64": {"since": "5.5", "until": "7.2"}}
    assert data["differs"].startswith("x86-64 has direct calls wherever")


def test_it_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "fmod_ret-newest-first"]) == 0
    said = capsys.readouterr().out
    assert "fmod_ret+fmod_ret/attach:ab/detach:ba" in said
    assert "5.5 and newer" in said
    assert main(["rules", "fmod_ret-newest"]) == 2
    assert "fmod_ret-newest-first" in capsys.readouterr().err


ARM64 = {
    "arm64-7.2": {},
    # Built without CALL_OPS: it has no direct calls.
    "arm64-bare": {"CONFIG_DYNAMIC_FTRACE_WITH_ARGS": "y"},
}


@pytest.mark.parametrize("config", ARM64.values(), ids=ARM64)
def test_every_rule_of_arm64_is_tested(config: dict[str, str], tmp_path: Path) -> None:
    """By the default scenarios, on a kernel that does everything right."""
    events = record_run(tmp_path, catalogue.default(), ["7.2"], arch="arm64", config=config)
    assert {e["verdict"] for e in events if e["type"] == "scenario_end"} == {"PASS"}
    run = gathered(events)
    found = survey([run])
    assert [str(d) for d in found.disagreements] == []
    assert [str(j.mutant) for j in found.survivors + found.impossible] == []
    (kernel,) = run.kernels.values()
    assert kernel.arch == "arm64"
    judged = {j.mutant.rule.name for j in found.judgements}
    assert judged == {r.name for r in RULES.values() if kernel.has(r)}
    assert {"kprobes-are-breakpoints", "save-regs-needs-support"} <= judged
    assert ("call-ops-is-shown" in judged) is ("one-direct" in judged) is not config
    assert ("direct-needs-call-ops" in judged) is ("bpf-needs-direct" in judged) is bool(config)
    x86 = {r.name for r in RULES.values() if r.arches == ("x86-64",)}
    assert not x86 & judged


def test_a_release_that_has_no_livepatch_or_fprobes_yet(tmp_path: Path) -> None:
    chosen = catalogue.select(["*/alone", "kprobe+fprobe/*", "livepatch+ops/*"])
    events = record_run(tmp_path, chosen, ["6.12"], arch="arm64")
    assert not names(events, "FAIL")
    reasons = {
        e["reason"] for e in events if e["type"] == "scenario_end" and e["verdict"] == "SKIP"
    }
    assert reasons == {
        "this kernel has no livepatch (CONFIG_LIVEPATCH; on arm64 from 6.17)",
        "this kernel has no fprobes for modules (CONFIG_FPROBE; from 5.18, on arm64 from 6.14)",
        "this kernel has no kprobe-multi links (CONFIG_FPROBE; from 5.18, on arm64 from 6.14)",
    }


def test_survivors(sample: list[Event], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(json.dumps(event) + "\n" for event in sample)
    (tmp_path / "events.jsonl").write_text(text, encoding="utf-8")
    where = str(tmp_path)
    assert main(["rules", "one-ipmodify", "newest-livepatch-wins", "--survivors", where]) == 0
    assert "3 wrong models, 0 of them unnoticed" in capsys.readouterr().out
    assert main(["rules", "replace-displaces", "--survivors", where]) == 1
    said = capsys.readouterr().out
    assert "none of their scenarios was run and passed: replace-displaces" in said
    assert main(["rules", "replace-displaces", "--json", "--survivors", where]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [m["outcome"] for m in data["mutants"]] == ["survived"]
    (tmp_path / "events.jsonl").write_text("{}\n" + text, encoding="utf-8")
    assert main(["rules", "--survivors", where]) == 3
    assert main(["rules", "--survivors", str(tmp_path / "none")]) == 2


def test_a_model_that_contradicts_is_told(
    sample: list[Event], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = json.loads(json.dumps(sample))
    step = next(e for e in events if e["type"] == "step_end")
    step["observed"]["errno"] = 22
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "events.jsonl").write_text(lines, encoding="utf-8")
    assert main(["rules", "--survivors", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "The whole model contradicts" in said
    assert "EINVAL (22)" in said
