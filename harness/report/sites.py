# SPDX-License-Identifier: GPL-2.0-only
"""Call sites that were looked at (arm64): which instruction, where it leads, how far it is.

From the ``site`` of observed witnesses (docs/events.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.report.model import RunModel
from harness.report.views import Scenario, Step

#: What in an instruction's words differs from boot to boot, or from slot to slot.
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+\b")


@dataclass(frozen=True)
class Way:
    """A way that calls took, alike in all ``scenarios`` (names); the rest is of the first.

    ``decoded``: the instruction in words; ``instruction`` and ``address`` in hexadecimal;
    ``name`` of the direct call's trampoline, ``reach``: whether that is ``near`` or
    ``far``, ``distance`` to it in words; empty where there was none.
    """

    decoded: str
    instruction: str
    address: str
    name: str
    reach: str
    distance: str
    scenarios: tuple[str, ...]

    @property
    def trampoline(self) -> str:
        """How far the direct call's trampoline was."""
        name = self.name or "trampoline"
        return f"{name} {self.reach}, {self.distance}" if self.reach else "no direct call"


def distance(size: int) -> str:
    """``-95.7 MB`` for a number of bytes; 1 MB is what a BL's reach is counted in, 2^20."""
    value, unit = size / 2**20, "MB"
    for bigger in ("GB", "TB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:+.1f} {unit}"


def of_step(step: Step) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each function whose call site was looked at, with what was found."""
    for function, site in ((step.observed or {}).get("site") or {}).items():
        if site and site.get("decoded"):
            yield function, site


def brief(site: Mapping[str, Any]) -> str:
    """``bl ftrace_caller, far, -2.0 GB``"""
    reach = site.get("reach")
    where = f", {reach}, {distance(int(site['distance']))}" if reach else ""
    return f"{site['decoded']}{where}"


def ways(model: RunModel, kernel: str) -> tuple[Way, ...]:
    """All ways that calls took on a kernel, those straight to a trampoline first; not the nops."""
    found: dict[tuple[str, ...], list[tuple[Scenario, Mapping[str, Any]]]] = {}
    for scenario in model.of_kernel(kernel):
        for step in scenario.steps:
            for _, site in of_step(step):
                if site.get("path") != "nop":
                    words = (site.get(key) or "" for key in ("path", "reach", "name", "decoded"))
                    key = tuple(_NUMBER.sub("", word) for word in words)
                    found.setdefault(key, []).append((scenario, site))
    return tuple(_way(found[key]) for key in sorted(found))


def _way(seen: list[tuple[Scenario, Mapping[str, Any]]]) -> Way:
    first = seen[0][1]
    reach = first.get("reach") or ""
    return Way(
        str(first["decoded"]),
        str(first.get("instruction")),
        str(first.get("address")),
        str(first.get("name") or ""),
        reach,
        distance(int(first["distance"])) if reach else "",
        tuple(dict.fromkeys(scenario.name for scenario, _ in seen)),
    )
