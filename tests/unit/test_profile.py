# SPDX-License-Identifier: GPL-2.0-only
"""Profiles: which release has which policy, and how its registry shows it."""

from __future__ import annotations

import errno
import itertools
from dataclasses import fields, replace

import pytest
from policy_help import OFF, V5_10, V6_12, V7_2, F, attach, on, outcome, run, shown

from harness.errors import UsageError
from harness.policy.profile import (
    NAMED,
    Form,
    Semantics,
    choose,
    form_for,
    options,
    release_version,
    semantics_for,
)
from harness.scenario.steps import Modify

RELEASES = [
    *((5, n) for n in range(5, 20)), *((6, n) for n in range(20)), *((7, n) for n in range(10)),
]  # fmt: skip

# --- profiles -------------------------------------------------------------------------------


#: Fact, the first release with another value, the value before it and from then on.
CHANGES: list[tuple[str, tuple[int, int], object, object]] = [
    ("direct_is_ipmodify", (6, 0), True, False),
    ("direct_is_permanent", (6, 0), True, False),
    ("bpf_after_direct", (7, 0), errno.EBUSY, errno.EINVAL),
    ("disabling", (7, 3), 0, errno.EOPNOTSUPP),
    ("trampoline_args", (6, 6), 6, 12),
    ("trampoline_links", (6, 0), 40, 38),
    ("trampoline_links", (7, 2), 38, 36),
    ("fmod_ret_counts", (6, 0), False, True),
    ("force_pins", (5, 12), True, False),
    ("multi_pins", (6, 3), False, True),
    ("graph_follows_ip", (5, 16), True, False),
    ("direct_shows_ipmodify", (6, 0), True, False),
    ("ipmodify_saves_regs", (5, 11), True, False),
    ("modified", (6, 4), False, True),
    ("jmp", (6, 19), False, True),
    ("direct_ops", (6, 0), "all", "function"),
    ("direct_ops", (7, 0), "function", "bpf"),
    ("fprobe_shares", (6, 14), False, True),
    ("fprobe_saves_regs", (6, 14), True, False),
]
#: Facts that are always so on x86-64; what a configuration makes of them: see below.
OF_THE_ARCHITECTURE = {
    "saves_regs": True,
    "direct_calls": True,
    "kprobes_on_ftrace": True,
    "call_ops": False,
    "own_trampolines": True,
}
#: The same for arm64: each fact that is not as on x86-64, with all of its changes.
ARM64_CHANGES: list[tuple[str, tuple[int, int], object, object]] = [
    ("trampoline_args", (6, 16), 8, 12),
    ("trampoline_links", (6, 0), 40, 38),
    ("trampoline_links", (7, 2), 38, 37),
    ("saves_regs", (6, 2), True, False),
    ("ipmodify_saves_regs", (6, 2), True, False),
    ("direct_calls", (6, 4), False, True),
    ("call_ops", (6, 3), False, True),
]
ARM64_ALWAYS = {
    "bpf_after_direct": errno.EBUSY,
    "kprobes_on_ftrace": False,
    "jmp": False,
    "own_trampolines": False,
    "direct_ops": "function",
}
#: Facts that no release has changed; only a proposal does.
PROPOSED = {"direct_refused", "peer_told", "share_is_flag", "permanent_stays", "shows_permanent"}


def value(fact: str, version: tuple[int, int], arch: str = "x86-64") -> object:
    semantics = fact in {f.name for f in fields(Semantics)}
    whole = semantics_for(version, arch) if semantics else form_for(version, {}, arch)
    return getattr(whole, fact)


@pytest.mark.parametrize(
    ("fact", "since", "old", "new"), CHANGES, ids=[f"{c[0]}-{c[1][0]}.{c[1][1]}" for c in CHANGES]
)
def test_each_fact_changes_where_it_did(
    fact: str, since: tuple[int, int], old: object, new: object
) -> None:
    before = RELEASES[RELEASES.index(since) - 1]
    assert (value(fact, before), value(fact, since)) == (old, new)
    # And nowhere else than this list says.
    assert changes(fact) == [c[1] for c in CHANGES if c[0] == fact]
    assert value(fact, (5, 5)) == next(c[2] for c in CHANGES if c[0] == fact)


def changes(fact: str, arch: str = "x86-64") -> list[tuple[int, int]]:
    return [
        b for a, b in itertools.pairwise(RELEASES) if value(fact, a, arch) != value(fact, b, arch)
    ]


def test_what_an_architecture_always_has() -> None:
    for facts, arch in ((OF_THE_ARCHITECTURE, "x86-64"), (ARM64_ALWAYS, "arm64")):
        for fact, always in facts.items():
            assert {value(fact, release, arch) for release in RELEASES} == {always}, fact


@pytest.mark.parametrize("fact", sorted({c[0] for c in ARM64_CHANGES}))
def test_each_fact_of_arm64_changes_where_it_did(fact: str) -> None:
    own = [c for c in ARM64_CHANGES if c[0] == fact]
    assert changes(fact, "arm64") == [c[1] for c in own]
    for _, since, old, new in own:
        before = RELEASES[RELEASES.index(since) - 1]
        assert (value(fact, before, "arm64"), value(fact, since, "arm64")) == (old, new)


def test_all_other_facts_of_arm64_are_those_of_x86_64() -> None:
    own = {c[0] for c in ARM64_CHANGES} | set(ARM64_ALWAYS)
    facts = {f.name for kind in (Semantics, Form) for f in fields(kind)} - {"name"}
    for fact in facts - own:
        for release in RELEASES:
            assert value(fact, release, "arm64") == value(fact, release), fact


def test_the_list_has_every_fact() -> None:
    facts = {f.name for kind in (Semantics, Form) for f in fields(kind)} - {"name"}
    assert facts == {c[0] for c in CHANGES} | PROPOSED | set(OF_THE_ARCHITECTURE)
    for version in NAMED:
        mainline = semantics_for(version)
        assert (mainline.direct_refused, mainline.peer_told) == (errno.EBUSY, True)
        assert not mainline.share_is_flag
        assert not mainline.permanent_stays
        assert not form_for(version, {}).shows_permanent


@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
@pytest.mark.parametrize(
    ("fact", "option"),
    [
        ("saves_regs", "CONFIG_DYNAMIC_FTRACE_WITH_REGS"),
        ("direct_calls", "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"),
        ("kprobes_on_ftrace", "CONFIG_KPROBES_ON_FTRACE"),
        ("call_ops", "CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS"),
    ],
)
def test_what_a_kernel_can_do_is_a_matter_of_configuration(
    arch: str, fact: str, option: str
) -> None:
    # No other policy changes it.
    for override in (None, "v6.1", "v7.3"):
        assert choose("6.12.1", {option: "y"}, override, arch).fact(fact)
        assert not choose("6.12.1", {"CONFIG_FTRACE": "y"}, override, arch).fact(fact)
        unknown = choose("6.12.1", {}, override, arch).fact(fact)
        assert unknown is value(fact, (6, 12), "arm64" if arch == "arm64" else "x86-64")
    assert options({option: "y", "CONFIG_X": "m"})[option] == "y"
    assert options({"CONFIG_X": "m"})[option] == "n"
    assert options({}) == {}
    recorded = options({option: "y", "CONFIG_X": "m"})
    assert choose("6.12.1", recorded, None, arch) == choose("6.12.1", {option: "y"}, None, arch)


def test_an_architecture_has_more_than_one_name() -> None:
    for name in ("arm64", "aarch64"):
        assert choose("7.2.13", {}, None, name).arch == "arm64"
    for name in ("x86_64", "x86-64", "amd64"):
        assert choose("7.2.13", {}, None, name) == choose("7.2.13", {})
    with pytest.raises(UsageError):
        choose("7.2.13", {}, None, "riscv")


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
    assert not chosen.form.shows_permanent
    record = run(chosen, *attach("fexit"))[0][0].registry[F]
    assert record is not None
    assert record.flags == frozenset("RDM")
    # And the other way round: a 5.10 kernel held to 6.12's policy.
    record = run(choose("5.10.0", {}, "v6.12"), *attach("fexit"))[0][0].registry[F]
    assert record is not None
    assert record.flags == frozenset("RID")
    record = run(choose("7.2.0", {}, "v5.10"), *attach("fexit"))[0][0].registry[F]
    assert record is not None
    assert record.jmp is True


def test_every_named_profile_can_be_chosen() -> None:
    for version in NAMED:
        name = f"v{version[0]}.{version[1]}"
        assert choose("6.12", {}, name).semantics == semantics_for(version)


SHARE = {"direct_refused", "peer_told", "share_is_flag"}


@pytest.mark.parametrize(
    ("name", "release", "like", "changed"),
    [
        ("share-ipmodify-v2", "6.1.0", (6, 1), SHARE),
        ("share-ipmodify-v2", "7.2.12", (7, 2), SHARE),
        ("permanent-v1", "5.10.0", (5, 10), {"permanent_stays", "direct_is_permanent"}),
        ("permanent-v1", "7.2.12", (7, 2), {"permanent_stays"}),
        # 7.3 cannot be turned off; one with that series can.
        ("permanent-v1", "7.3.0", (7, 3), {"permanent_stays", "disabling"}),
        ("exclusive-v1", "7.2.12", (7, 2), {"direct_is_ipmodify"}),
        # Kernels that are too old for it are held to the release that it is for.
        ("share-ipmodify-v2", "5.10.0", (6, 0), SHARE),
        ("exclusive-v1", "5.10.0", (6, 0), {"direct_is_ipmodify"}),
    ],
)
def test_a_proposal_is_a_release_but_for_what_it_changes(
    name: str, release: str, like: tuple[int, int], changed: set[str]
) -> None:
    chosen = choose(release, {}, name)
    assert (chosen.name, chosen.why) == (name, "--profile")
    mainline = semantics_for(like)
    different = {
        f.name
        for f in fields(Semantics)
        if getattr(chosen.semantics, f.name) != getattr(mainline, f.name)
    }
    assert different == changed | {"name"}
    # The only one that also prints otherwise than the kernel's release.
    form = form_for(release_version(release), {})
    assert chosen.form == replace(form, shows_permanent=name == "permanent-v1")


EXCLUSIVE = choose("7.2.12", {}, "exclusive-v1")
DIRECT = ("direct", "direct-share", "direct-refuse", "fentry", "fexit", "fmod_ret")
MODIFIES = ("livepatch", "ipmodify", "kprobe-post")


@pytest.mark.parametrize("direct", DIRECT)
@pytest.mark.parametrize("other", MODIFIES)
def test_exclusive_lets_nobody_share(direct: str, other: str) -> None:
    assert outcome(EXCLUSIVE, direct, other) == (errno.EBUSY, "one-ipmodify")
    assert outcome(EXCLUSIVE, other, direct) == (errno.EBUSY, "one-ipmodify")


@pytest.mark.parametrize("one", ("ops", "kprobe", "fprobe", "function-graph", *DIRECT))
@pytest.mark.parametrize("other", ("ops-regs", "kretprobe", *DIRECT))
def test_exclusive_changes_nothing_else(one: str, other: str) -> None:
    assert outcome(EXCLUSIVE, one, other) == outcome(V7_2, one, other)


def test_exclusive_shows_and_turns_off_as_7_2_does() -> None:
    """Of v5.10 it has the exclusion, not the one direct_ops with IPMODIFY and PERMANENT."""
    found, _ = run(EXCLUSIVE, on("x", "fexit"), OFF)
    record = found[0].registry[F]
    assert record is not None
    assert (shown(record), record.jmp) == ((1, "RDM"), True)
    assert found[1].errno == (0,)
    # No ops_func is asked about anything, the own one included.
    found, _ = run(EXCLUSIVE, on("d", "direct-share"), on("i", "ipmodify"), Modify("d", 1))
    assert found[-1].behaviour[F].shares["d"] == (0, 0, 0)
    # All kinds of programs are counted, as from 6.0 on.
    programs = [on(f"m{n}", "fmod_ret") for n in range(37)]
    found, _ = run(EXCLUSIVE, *programs)
    assert [p.errno[0] for p in found[-2:]] == [0, errno.E2BIG]


def test_a_model_that_was_told_to_forget() -> None:
    """For ``cohabit rules --survivors``."""
    forgetful = replace(V6_12, without=frozenset({"one-ipmodify"}))
    assert forgetful.has("one-direct")
    assert not forgetful.has("one-ipmodify")
    assert outcome(forgetful, "livepatch", "ipmodify") == (0, "welcome")
    mistaken = replace(V6_12, errnos={"one-ipmodify": errno.EPERM})
    assert outcome(mistaken, "livepatch", "ipmodify") == (errno.EPERM, "one-ipmodify")


@pytest.mark.parametrize("name", ["6.1", "v6.2", "V6.1", "", "latest"])
def test_unknown_profile(name: str) -> None:
    with pytest.raises(UsageError, match="there is no profile") as caught:
        choose("6.12", {}, name)
    assert "v5.10" in caught.value.remedy
    assert "v7.3" in caught.value.remedy
    assert "share-ipmodify-v2" in caught.value.remedy
    assert "exclusive-v1" in caught.value.remedy


def test_configuration_decides_about_registers() -> None:
    assert not form_for((6, 12), {"CONFIG_DYNAMIC_FTRACE_WITH_ARGS": "y"}).ipmodify_saves_regs
    assert form_for((6, 12), {"CONFIG_X": "y"}).ipmodify_saves_regs
    assert form_for((5, 10), {"CONFIG_DYNAMIC_FTRACE_WITH_ARGS": "y"}) == replace(
        form_for((5, 10), {}), ipmodify_saves_regs=False
    )
    assert form_for((6, 12), {}) == Form(
        direct_shows_ipmodify=False,
        ipmodify_saves_regs=False,
        modified=True,
        jmp=False,
        call_ops=False,
        own_trampolines=True,
        direct_ops="function",
        fprobe_shares=False,
        fprobe_saves_regs=True,
    )
