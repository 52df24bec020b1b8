# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit rules``: the policy's rules, and whether anything would notice if one were wrong."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import oracle
from harness.errors import UsageError
from harness.mutants import Judgement, Survey, survey
from harness.policy.profile import Version
from harness.policy.rules import RULES, Rule
from harness.replay import Contradiction, Run, gathered
from harness.scenario import catalogue

from .paths import damaged, events_of

#: Contradictions of the whole model that are shown without -v.
_SHOWN = 20

EXAMPLES = """examples:
  cohabit rules                      all rules of the policy
  cohabit rules one-direct           one, with the scenarios that would notice
  cohabit rules --survivors DIR ...  take each rule away: does a recorded run contradict?
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "rules",
        help="show the policy's rules, and which of them no scenario tests",
        description="Shows the rules of the ftrace policy, each with its place in the kernel. "
        "With --survivors the model forgets each rule in turn, or gives another errno for it, "
        "and every recorded step is compared with what it says then: a rule whose loss nothing "
        "contradicts is one that no scenario tests. Ends with 1 where there is one, or where "
        "the whole model contradicts a scenario that passed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rules", nargs="*", metavar="NAME", help="names of rules (default: all)")
    parser.add_argument("-v", "--verbose", action="store_true", help="with their scenarios")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--survivors", nargs="+", type=Path, metavar="RUN", help="directories of runs"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """The command."""
    chosen = _chosen(args.rules)
    if args.survivors:
        found = survey([_read(path) for path in args.survivors], chosen)
        print(json.dumps(_survey_json(found)) if args.json else _survey_text(found, args.verbose))
        return 1 if found.disagreements or found.survivors else 0
    if args.json:
        print(json.dumps({"rules": [_rule_json(rule) for rule in chosen]}))
        return 0
    depth = 2 if args.rules else int(args.verbose)
    print("\n\n".join(_rule_text(rule, depth) for rule in chosen))
    return 0


def _chosen(names: Sequence[str]) -> list[Rule]:
    for name in names:
        if name not in RULES:
            near = [known for known in RULES if name in known or known in name]
            raise UsageError(
                f"there is no rule {name!r}",
                f"near it: {', '.join(near)}" if near else "`cohabit rules` shows them all",
            )
    return [rule for rule in RULES.values() if not names or rule.name in names]


def _read(path: Path) -> Run:
    try:
        found = gathered(events_of(path))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, "its events", error) from error
    if not found.gatherings:
        raise UsageError(f"{path} has no step that was done", "name a run with scenarios")
    return found


# --- a rule -----------------------------------------------------------------------------------


def _release(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _releases(rule: Rule) -> str:
    """``6.0 and newer, x86-64; 6.4 and newer, arm64``, or both in one."""
    found: dict[str, list[str]] = {}
    for arch in rule.arches:
        since, until = rule.span(arch)
        first = _release(since)
        words = f"{first} to {_release(until)}" if until else f"{first} and newer"
        found.setdefault(words, []).append(arch)
    return "; ".join(f"{words}, {' and '.join(arches)}" for words, arches in found.items())


def _needing(rule: Rule) -> str:
    if not rule.needs:
        return ""
    fact = rule.needs.removeprefix("!").replace("_", " ")
    return f" {'without' if rule.needs.startswith('!') else 'with'} {fact}"


def _scenarios(rule: Rule) -> list[str]:
    """Names of the catalogue's scenarios that would notice, in its order."""
    found = {s.name for glob in rule.scenarios for s in catalogue.select([glob], whole=True)}
    return [s.name for s in catalogue.everything() if s.name in found]


def _rule_text(rule: Rule, depth: int) -> str:
    """``depth``: 1 with the globs of its scenarios, 2 with their names too."""
    error = oracle.errno_text(rule.errno) if rule.errno else "no errno of its own"
    lines = [
        rule.name,
        *textwrap.wrap(rule.text, 96, initial_indent="  ", subsequent_indent="  "),
        f"  {_releases(rule)}; {error}",
        f"  {rule.source}",
    ]
    if rule.difference:
        lines += textwrap.wrap(
            f"architectures differ: {rule.difference}", 96,
            initial_indent="  ", subsequent_indent="    ",
        )  # fmt: skip
    for glob in rule.scenarios if depth else ():
        names = [scenario.name for scenario in catalogue.select([glob], whole=True)]
        lines.append(f"  noticed by {glob}, {len(names)} scenarios")
        lines += [f"    {name}" for name in names if depth == 2 and name != glob]
    return "\n".join(lines)


def _rule_json(rule: Rule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "text": rule.text,
        "source": rule.source,
        "since": _release(rule.since),
        "until": _release(rule.until) if rule.until else None,
        "arches": list(rule.arches),
        "releases": {
            arch: {"since": _release(since), "until": _release(until) if until else None}
            for arch in rule.arches
            for since, until in [rule.span(arch)]
        },
        "differs": rule.difference or None,
        "errno": rule.errno,
        "globs": list(rule.scenarios),
        "scenarios": _scenarios(rule),
    }


# --- survivors --------------------------------------------------------------------------------


def _survey_text(found: Survey, verbose: bool) -> str:
    if found.disagreements:
        shown = found.disagreements if verbose else found.disagreements[:_SHOWN]
        more = len(found.disagreements) - len(shown)
        return "\n".join(
            [
                "The whole model contradicts what was recorded of scenarios that passed:",
                *(f"  {disagreement}" for disagreement in shown),
                *([f"  and {more} more (-v shows them)"] if more else ()),
                "No rule was taken away: first the model has to agree.",
            ]
        )
    lines = []
    if verbose:
        lines += [_noticed(j, j.noticed) for j in found.judgements if j.noticed]
    for judgement in found.impossible:
        lines.append(
            f"not judged: {judgement.mutant}, {judgement.kernel}: that kernel could run none of "
            f"the rule's scenarios ({judgement.skipped} skipped)"
        )
    for rule in found.nowhere:
        lines.append(
            f"not judged: {rule.name}: about {_releases(rule)}{_needing(rule)}, "
            "of which no kernel was run"
        )
    for kernel in found.overridden:
        lines.append(f"not judged: {kernel} where it was held to another policy (--profile)")
    missing: dict[str, dict[str, None]] = {}
    for judgement in found.survivors:
        if judgement.ran:
            lines.append(
                f"SURVIVED: {judgement.kernel}: {judgement.mutant}, and nothing contradicts, of "
                f"{judgement.ran} of the rule's own scenarios"
            )
        else:
            missing.setdefault(judgement.kernel, {})[judgement.mutant.rule.name] = None
    for kernel, names in missing.items():
        text = f"SURVIVED: {kernel}: none of their scenarios was run and passed: "
        lines += textwrap.wrap(
            text + ", ".join(names), 100, subsequent_indent="  ", break_on_hyphens=False
        )
    lines.append(
        f"{len(found.judgements)} wrong models, {len(found.survivors)} of them unnoticed; "
        f"{len(found.nowhere)} rules not judged"
    )
    return "\n".join(lines)


def _noticed(judgement: Judgement, what: Contradiction) -> str:
    own = "" if judgement.own else " (not one of the rule's own)"
    step = f"step {what.index + 1}: " if what.index >= 0 else ""
    return f"{judgement.kernel}: {judgement.mutant}: {what.scenario}{own}, {step}{what.what}"


def _contradiction_json(what: Contradiction) -> dict[str, Any]:
    return {
        "kernel": what.kernel,
        "scenario": what.scenario,
        "step": what.index,
        "mismatch": what.what.to_json(),
    }


def _survey_json(found: Survey) -> dict[str, Any]:
    return {
        "disagreements": [_contradiction_json(d) for d in found.disagreements],
        "mutants": [
            {
                "rule": j.mutant.rule.name,
                "errno": j.mutant.errno or None,
                "kernel": j.kernel,
                "outcome": "noticed" if j.noticed else "survived" if j.possible else "not judged",
                "by": _contradiction_json(j.noticed) if j.noticed else None,
                "own": j.own,
                "ran": j.ran,
                "skipped": j.skipped,
            }
            for j in found.judgements
        ],
        "not_judged": [rule.name for rule in found.nowhere],
        "overridden": found.overridden,
    }
