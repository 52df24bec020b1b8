# SPDX-License-Identifier: GPL-2.0-only
"""Profiles: which release has which policy, and how its registry shows it."""

from __future__ import annotations

import errno
from dataclasses import fields, replace

import pytest
from policy_help import V5_10, V6_12, F, attach, outcome, run

from harness.errors import UsageError
from harness.policy.profile import (
    NAMED,
    Form,
    Semantics,
    choose,
    form_for,
    release_version,
    semantics_for,
)

# --- profiles -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fact", "before", "since", "old", "new"),
    [
        ("direct_is_ipmodify", (5, 19), (6, 0), True, False),
        ("direct_is_permanent", (5, 19), (6, 0), True, False),
        ("bpf_after_direct", (6, 19), (7, 0), errno.EBUSY, errno.EINVAL),
        ("disabling", (7, 2), (7, 3), 0, errno.EOPNOTSUPP),
        ("trampoline_args", (6, 5), (6, 6), 6, 12),
        ("direct_shows_ipmodify", (5, 19), (6, 0), True, False),
        ("ipmodify_saves_regs", (5, 10), (5, 11), True, False),
        ("modified", (6, 3), (6, 4), False, True),
        ("jmp", (6, 18), (6, 19), False, True),
    ],
)
def test_each_fact_changes_where_it_did(
    fact: str, before: tuple[int, int], since: tuple[int, int], old: object, new: object
) -> None:
    def value(version: tuple[int, int]) -> object:
        semantics = fact in {f.name for f in fields(Semantics)}
        return getattr(semantics_for(version) if semantics else form_for(version, {}), fact)

    assert value(before) == value((5, 5)) == old
    assert value(since) == value((9, 0)) == new


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.12.117+deb13-cloud-amd64", (6, 12)), ("5.10.0-46-amd64", (5, 10)), ("v7.2", (7, 2)),
     ("7.3.0-rc1", (7, 3)), ("6.1", (6, 1))],
)  # fmt: skip
def test_release_version(release: str, version: tuple[int, int]) -> None:
    assert release_version(release) == version
    chosen = choose(release, {})
    assert chosen.semantics == semantics_for(version)
    assert chosen.form == form_for(version, {})
    assert chosen.name == f"v{version[0]}.{version[1]}"
    assert release in chosen.why


@pytest.mark.parametrize(
    ("release", "words"),
    [("", "not a kernel release"), ("linux", "not a kernel release"),
     ("6", "not a kernel release"), ("5.4.0", "older than direct calls"),
     ("4.19", "older than direct calls")],
)  # fmt: skip
def test_no_release(release: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        release_version(release)
    assert caught.value.remedy


def test_override_takes_semantics_and_leaves_form() -> None:
    chosen = choose("6.12.117", {}, "v5.10")
    assert chosen.semantics == V5_10.semantics
    assert chosen.form == V6_12.form
    assert (chosen.name, chosen.why) == ("v5.10", "--profile")
    # A 6.12 kernel held to 5.10's policy must refuse, but prints no I beside D.
    assert outcome(chosen, "livepatch", "fexit") == (errno.EBUSY, "one-ipmodify")
    record = run(chosen, *attach("fexit"))[0][0].registry[F]
    assert record is not None
    assert record.flags == frozenset("RDM")


def test_every_named_profile_can_be_chosen() -> None:
    for version in NAMED:
        name = f"v{version[0]}.{version[1]}"
        assert choose("6.12", {}, name).semantics == semantics_for(version)


@pytest.mark.parametrize("name", ["6.1", "v6.2", "V6.1", "", "latest"])
def test_unknown_profile(name: str) -> None:
    with pytest.raises(UsageError, match="there is no profile") as caught:
        choose("6.12", {}, name)
    assert "v5.10" in caught.value.remedy
    assert "v7.3" in caught.value.remedy


def test_configuration_decides_about_registers() -> None:
    assert not form_for((6, 12), {"CONFIG_DYNAMIC_FTRACE_WITH_ARGS": "y"}).ipmodify_saves_regs
    assert form_for((6, 12), {"CONFIG_X": "y"}).ipmodify_saves_regs
    assert form_for((5, 10), {"CONFIG_DYNAMIC_FTRACE_WITH_ARGS": "y"}) == replace(
        form_for((5, 10), {}), ipmodify_saves_regs=False
    )
    assert form_for((6, 12), {}) == Form(
        direct_shows_ipmodify=False, ipmodify_saves_regs=False, modified=True, jmp=False
    )
