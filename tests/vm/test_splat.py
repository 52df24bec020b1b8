# SPDX-License-Identifier: GPL-2.0-only
"""The kernel complains: known or not, the VM is not used any more."""

from __future__ import annotations

import json
from pathlib import Path

from world import World, assert_booted, of_type, verdicts

from harness.scenario import catalogue

KNOWN = "ops-regs/ftrace_enabled:detach-while-off/then:ops"


def test_warning(world: World, tmp_path: Path) -> None:
    """The same steps under another name are no known difference."""
    unknown = {**catalogue.select([KNOWN])[0].to_json(), "name": "unknown"}
    replay = tmp_path / "unknown.json"
    replay.write_text(json.dumps(unknown), encoding="utf-8")
    run = world.run("run", KNOWN, "--replay", str(replay), "--jobs", "1")
    assert run.end() == 1, run.told
    assert_booted(run.events, 2)
    assert verdicts(run.events) == {f"{KNOWN}#1": "XFAIL", "unknown#1": "SPLAT"}
    known, unknown_end = of_type(run.events, "scenario_end")
    assert known["xfail"] == "stale-regs"
    assert "docs/findings/stale-regs.md" in known["reason"]
    assert "ftrace_shutdown" in unknown_end["reason"]
    for end in of_type(run.events, "vm_end"):
        assert end["reason"] == "poisoned"
        assert "WARNING: " in end["detail"]
    assert "1 SPLAT, 1 XFAIL" in run.out
    world.assert_nothing_left()
