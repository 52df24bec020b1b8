# SPDX-License-Identifier: GPL-2.0-only
"""Each statement of docs/proposals.md, by its number: what the profile says, what mainline does."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from policy_help import OFF, ON, OTHER, V5_10, V6_1, F, on, run, shown

from harness.policy import rules
from harness.policy.predict import Prediction
from harness.policy.profile import Profile, choose
from harness.scenario.steps import Attach, Detach, Misuse, Step

PAGE = Path(__file__).resolve().parents[2] / "docs" / "proposals.md"
#: By document: the profile of the proposal, and a release without it.
PROFILES: dict[str, tuple[Profile, Profile]] = {
    "000": (choose("6.1.0", {}, "share-ipmodify-v2"), V6_1),
    "001": (choose("6.1.0", {}, "share-ipmodify-v2"), V6_1),
    "002": (choose("5.10.0", {}, "permanent-v1"), V5_10),
}

# --- what is looked at ----------------------------------------------------------------------

Look = Callable[[list[Prediction]], object]


def errnos(found: list[Prediction]) -> object:
    return " ".join(errno.errorcode[p.errno[0]] if p.errno[0] else "0" for p in found)


def body(found: list[Prediction]) -> object:
    return found[-1].behaviour[F].body


def told(found: list[Prediction]) -> object:
    """How often the direct call ``d`` was asked as SELF, as PEER, and told that the peer left."""
    return found[-1].behaviour[F].shares["d"]


def record(found: list[Prediction]) -> object:
    return shown(found[-1].registry[F])


def other(found: list[Prediction]) -> object:
    return shown(found[-1].registry[OTHER])


def hits(found: list[Prediction]) -> object:
    return found[-1].behaviour[F].hits


def other_hits(found: list[Prediction]) -> object:
    return found[-1].behaviour[OTHER].hits


def sysctl(found: list[Prediction]) -> object:
    return found[-1].ftrace_enabled


# --- the statements -------------------------------------------------------------------------


class Case(NamedTuple):
    """Steps, what to look at after them, and what that must be under each profile."""

    number: str
    steps: tuple[Step, ...]
    look: Look
    proposal: object
    mainline: object


IP, J, L = on("i", "ipmodify"), on("j", "ipmodify"), on("l", "livepatch")
D, S, R = on("d", "direct"), on("d", "direct-share"), on("d", "direct-refuse")
X = on("x", "fexit")
OPS, K = on("o", "ops"), on("k", "kprobe")
ELSEWHERE = on("i", "ipmodify", OTHER)


def same(number: str, steps: tuple[Step, ...], look: Look, value: object) -> Case:
    return Case(number, steps, look, value, value)


CASES = [
    # 000: what the patch says, and what mainline does.
    same("000.1", (IP, J), errnos, "0 EBUSY"),
    same("000.1", (IP, L), errnos, "0 EBUSY"),
    same("000.1", (L, on("m", "livepatch")), errnos, "0 0"),  # one ops
    same("000.2", (D, on("e", "direct")), errnos, "0 EBUSY"),
    same("000.2", (X, S), errnos, "0 EBUSY"),
    same("000.4", (IP, S), errnos, "0 0"),
    same("000.4", (S, L), errnos, "0 0"),
    same("000.4", (L, X), errnos, "0 0"),
    same("000.5", (L, S), body, "livepatch-a"),
    same("000.5", (X, IP), body, "ipmodify-0"),
    Case("000.6", (IP, D), errnos, "0 EAGAIN", "0 EBUSY"),
    Case("000.6", (L, D), errnos, "0 EAGAIN", "0 EBUSY"),
    same("000.7", (IP, S), errnos, "0 0"),
    same("000.7", (IP, X), errnos, "0 0"),
    same("000.8", (S, IP), told, (0, 1, 0)),
    same("000.9", (D, L), errnos, "0 EBUSY"),
    same("000.10", (R, IP), errnos, "0 EXDEV"),
    Case("000.11", (S, IP, Detach("i"), J), told, (0, 1, 0), (0, 2, 1)),
    Case("000.11", (IP, S, Detach("i"), J), told, (0, 0, 0), (1, 1, 1)),
    Case("000.12", (IP, S), told, (0, 0, 0), (1, 0, 0)),
    Case("000.12", (IP, R), errnos, "0 EAGAIN", "0 EXDEV"),
    same("000.13", (IP, S, OPS, K, on("g", "function-graph")), errnos, "0 0 0 0 0"),
    same("000.13", (D, OPS, K), errnos, "0 0 0"),
    same("000.14", (S,), record, (1, "RD")),
    same("000.14", (S, IP), record, (2, "RID")),
    same("000.14", (S, IP, Detach("i")), record, (1, "RD")),
    same("000.14", (S, IP, Detach("d")), record, (1, "I")),
    same("000.15", (Misuse("ipmodify-no-filter", F),), errnos, "EINVAL"),
    same("000.15", (Misuse("direct-no-filter", F),), errnos, "EINVAL"),
    same("000.17", (Misuse("direct-register-twice", F),), errnos, "EINVAL"),
    same("000.18", (S, OPS, K), told, (0, 0, 0)),
    same("000.18", (S, on("e", "direct", OTHER)), told, (0, 0, 0)),
    same("000.18", (S, ELSEWHERE), told, (0, 0, 0)),
    same("000.19", (ELSEWHERE, on("j", "ipmodify", F, OTHER)), errnos, "0 EBUSY"),
    same("000.19", (ELSEWHERE, on("j", "ipmodify", F, OTHER)), record, None),
    same("000.19", (ELSEWHERE, on("l", "livepatch", F, OTHER), J), errnos, "0 EBUSY 0"),
    # 000: what the answers say, which mainline does.
    Case("000.20", (S, IP, Detach("i")), told, (0, 1, 0), (0, 1, 1)),
    same("000.21", (D, IP), errnos, "0 EBUSY"),
    Case("000.21", (IP, D), errnos, "0 EAGAIN", "0 EBUSY"),
    Case("000.22", (IP, S), told, (0, 0, 0), (1, 0, 0)),
    same("000.23", (R, L), errnos, "0 EXDEV"),
    same("000.24", (S, IP), errnos, "0 0"),
    same("000.24", (D, IP), errnos, "0 EBUSY"),
    same("000.24", (J, IP), errnos, "0 EBUSY"),
    same("000.25", (X, L), errnos, "0 0"),
    same("000.25", (X, L), body, "livepatch-a"),
    same("000.26", (R, IP), errnos, "0 EXDEV"),
    Case("000.26", (IP, R), errnos, "0 EAGAIN", "0 EXDEV"),
    same("000.27", (L, X), errnos, "0 0"),
    same("000.27", (L, X), hits, {"x": 1}),
    # 001: what was merged, and what it would have been.
    Case("001.1", (IP, D), errnos, "0 EAGAIN", "0 EBUSY"),
    same("001.2", (Misuse("ipmodify-and-direct", F),), errnos, "0"),
    same("001.3", (S, L), record, (2, "RID")),
    same("001.3", (S, L, Detach("d")), record, (1, "I")),
    same("001.4", (S, L), told, (0, 1, 0)),
    same("001.5", (S, L, IP), errnos, "0 0 EBUSY"),
    # The one that mainline does not do either; the mark would have had this effect.
    Case("001.6", (S, L, IP), told, (0, 1, 0), (0, 2, 0)),
    same("001.7", (S, IP), record, (2, "RID")),
    same("001.8", (R, IP), errnos, "0 EXDEV"),
    same("001.8", (R, IP), record, (1, "RD")),
    # 002
    same("002.1", (IP, OFF), errnos, "0 0"),
    same("002.1", (IP, OFF), body, "original"),
    Case("002.2", (L, OFF), errnos, "0 0", "0 EBUSY"),
    Case("002.2", (L, OFF), sysctl, 0, 1),
    same("002.3", (L, OFF), body, "livepatch-a"),
    same("002.4", (IP, OFF), errnos, "0 0"),
    same("002.4", (IP, OFF), record, None),
    Case("002.5", (L, on("o", "ops", OTHER), on("k", "kprobe", OTHER), OFF), other_hits,
         {"o": 0, "k": 0}, {"o": 1, "k": 1}),
    Case("002.5", (L, on("o", "fentry", OTHER), OFF), other_hits, {"o": 0}, {"o": 1}),
    Case("002.5", (L, ELSEWHERE, OFF), other, None, (1, "RI")),
    same("002.6", (L, OPS, K, OFF), hits, {"o": 1, "k": 1}),
    Case("002.7", (L, OFF, Detach("l")), errnos, "0 0 0", "0 EBUSY 0"),
    same("002.7", (L, OFF, Detach("l")), record, None),
    same("002.7", (L, OFF, Detach("l")), body, "original"),
    Case("002.8", (L,), record, (1, "RPI"), (1, "RI")),
    Case("002.8", (OPS, L), record, (2, "RPI"), (2, "RI")),
    same("002.8", (IP,), record, (1, "RI")),
    same("002.8", (X,), record, (1, "RID")),
    same("002.9", (OPS, L, Detach("l")), record, (1, "")),
    Case("002.9", (L, on("m", "livepatch"), Detach("l")), record, (1, "RPI"), (1, "RI")),
    Case("002.10", (L, OPS, on("p", "ops", OTHER), OFF), record, (2, "RPI"), (2, "RI")),
    Case("002.10", (L, OPS, on("p", "ops", OTHER), OFF), other, None, (1, "")),
    Case("002.11", (OFF, L), errnos, "0 0", "0 EBUSY"),
    same("002.11", (OFF, L), body, "original"),
    Case("002.11", (OFF, L, ON), body, "livepatch-a", "original"),
    Case("002.11", (OFF, L, IP, ON), errnos, "0 0 EBUSY 0", "0 EBUSY 0 0"),
    Case("002.11", (L, on("m", "livepatch", OTHER), OFF, Detach("l"), on("n", "livepatch")),
         body, "original", "livepatch-a"),
    same("002.13", (L, OFF, OPS), hits, {"o": 1}),
    same("002.13", (L, OFF, K), hits, {"k": 1}),
    Case("002.13", (L, OFF, on("o", "ops", OTHER)), other_hits, {"o": 0}, {"o": 1}),
    Case("002.13", (L, OPS, OFF, Detach("l")), hits, {"o": 0}, {"o": 1}),
    Case("002.13", (L, OFF, OPS, ON), record, (2, "RPI"), (2, "RI")),
    same("002.13", (L, OFF, on("m", "livepatch")), body, "livepatch-b"),
    same("002.13", (L, OFF, on("m", "livepatch"), Detach("l")), body, "livepatch-b"),
    same("002.12", (IP, OFF, ON), body, "ipmodify-0"),
    same("002.12", (OPS, K, OFF, ON), hits, {"o": 1, "k": 1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "mainline"),
    [
        pytest.param(case, mainline, id=f"{case.number}-{case.look.__name__}-{number}-{name}")
        for number, case in enumerate(CASES)
        for mainline, name in ((False, "proposal"), (True, "mainline"))
    ],
)
def test_statement(case: Case, mainline: bool) -> None:
    profile = PROFILES[case.number.split(".")[0]][mainline]
    found, _ = run(profile, *case.steps, functions=(F, OTHER))
    assert case.look(found) == (case.mainline if mainline else case.proposal)


@pytest.mark.parametrize("steps", [(X, IP), (X, L), (IP, X), (L, X), (on("f", "fentry"), L, X)])
def test_a_bpf_trampoline_goes_on_sharing(steps: tuple[Step, ...]) -> None:
    """000.20, where the registry shows it: a trampoline that shares is not jumped to (6.19)."""
    peer = next(s.id for s in steps if isinstance(s, Attach) and s.id in "il")
    last = [Detach(s.id) for s in steps if isinstance(s, Attach) and s.id in "xf"]
    steps = (*steps, Detach(peer))
    for name, jumped in (("share-ipmodify-v2", False), (None, True)):
        profile = choose("7.2.12", {}, name)
        found, _ = run(profile, *steps)
        assert jump(found) is jumped
        # Until the last program leaves.
        found, _ = run(profile, *steps, *last, X)
        assert jump(found) is True


def jump(found: list[Prediction]) -> bool | None:
    shown = found[-1].registry[F]
    assert shown is not None
    return shown.jmp


# --- the page -------------------------------------------------------------------------------

UNTESTED = "\N{EN DASH}"
ROWS = {
    row[0]: row
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| 00")
    for row in [[column.strip() for column in line.strip("|").split("|")]]
}


def test_the_page_has_each_number_once_and_in_order() -> None:
    numbers = re.findall(r"^\| (00\d\.\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(set(numbers)) == len(numbers)
    for document, count in (("000", 27), ("001", 9), ("002", 13)):
        mine = [n for n in numbers if n.startswith(document)]
        assert mine == [f"{document}.{n}" for n in range(1, count + 1)]


def test_each_statement_that_the_model_can_express_is_tested() -> None:
    tested = {case.number for case in CASES}
    assert tested == {number for number, row in ROWS.items() if row[3] != UNTESTED}


def test_the_rules_of_the_page_are_rules() -> None:
    for number, row in ROWS.items():
        if row[3] != UNTESTED:
            assert set(row[3].split(", ")) <= set(rules.RULES), number


@pytest.mark.parametrize("number", sorted(n for n in ROWS if not n.startswith("001")))
def test_the_page_says_the_same_where_nothing_differs(number: str) -> None:
    """001 is compared with what was merged, not with the patch that it is about."""
    differs = any(case.proposal != case.mainline for case in CASES if case.number == number)
    assert not (differs and ROWS[number][2] == "the same")
