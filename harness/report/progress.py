# SPDX-License-Identifier: GPL-2.0-only
"""What a run is doing right now, for the person (or the log) that waits for it.

On a terminal: one live line with a bar, and under it what runs at this moment;
troubles scroll past above.  Anywhere else: one plain line for each thing that
ended, of a group that passed one for all.  Nothing to configure; NO_COLOR and a
dumb terminal are respected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.report.model import RunModel
from harness.report.text import verdict_style
from harness.report.views import HARMLESS, Scenario, tally
from harness.report.words import brief, duration, plural, printable, step_title

_BAR_WIDTH = 24
#: Seconds between two lines about one stir, where nothing is live.
_TELL_STIRRED = 30.0


@dataclass(frozen=True)
class _Now:
    """What the live display shows; replaced as a whole, because another thread draws it."""

    kernels: str = ""
    done: int = 0
    planned: int = 0
    trouble: int = 0
    running: tuple[str, ...] = ()


class Progress:
    """A display of a run that is fed the run's events.

    Use as a context manager around the run.  ``stream`` is where a person
    looks, standard error as a rule.
    """

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self.model = RunModel()
        self._now = _Now()
        self._open: dict[str, str] = {}
        self._stirred: dict[str, float] = {}
        self._groups: dict[str, str] = {}
        self._regrouped: set[str] = set()
        self._ended: dict[tuple[str, str], tuple[int, int]] = {}
        self._done = 0
        self._trouble = 0
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(
                console=self.console,
                get_renderable=self._view,
                refresh_per_second=4,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take the next event of the run, or a passing one, which has no ``seq``.

        Raises what RunModel.feed raises.
        """
        if "seq" in event:
            self.model.feed(event)
        handler = getattr(self, f"_on_{event.get('type')}", None)
        if handler is not None:
            handler(event)

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(printable(text), style), soft_wrap=self._live is None)

    def _plain(self, text: str) -> None:
        """A line only for those who don't see the live display."""
        if self._live is None:
            self._say(text)

    def _on_run_start(self, event: Mapping[str, Any]) -> None:
        self._plain(f"{plural(int(event.get('planned', 0)), 'scenario')} planned")
        self._update()

    def _on_kernel(self, event: Mapping[str, Any]) -> None:
        kernel = self.model.kernels[event["kernel"]]
        self._plain(f"kernel {kernel.release} ({kernel.reference}), profile {kernel.profile}")
        self._update()

    def _on_vm_start(self, event: Mapping[str, Any]) -> None:
        vm = self.model.vms[event["vm"]]
        self._open[vm.id] = f"{vm.id}: booting {vm.kernel} under {vm.accel}"
        self._plain(f"{self._open[vm.id]} ({vm.accel_why})" if vm.accel_why else self._open[vm.id])
        self._update()

    def _on_vm_ready(self, event: Mapping[str, Any]) -> None:
        vm = self.model.vms[event["vm"]]
        self._open[vm.id] = f"{vm.id}: ready"
        self._plain(f"{vm.id}: ready after {duration(vm.boot_s or 0)}")
        self._update()

    def _on_vm_end(self, event: Mapping[str, Any]) -> None:
        vm = self.model.vms[event["vm"]]
        self._open.pop(vm.id, None)
        self._groups.pop(vm.id, None)
        told = {(s.vm, s.verdict) for s in self.model.attempts.values()}
        if vm.verdict and (vm.id, vm.verdict) not in told:
            self._say(f"{vm.id}: {vm.verdict}: {brief(vm.detail)}", verdict_style(vm.verdict))
        elif vm.reason in {"poisoned", "died"}:
            self._plain(f"{vm.id}: {vm.reason}")
        self._update()

    def _on_group_start(self, event: Mapping[str, Any]) -> None:
        group = self.model.groups[event["group"]]
        self._groups[group.vm] = group.id
        members = plural(len(group.scenarios), "scenario")
        self._open[group.vm] = f"{group.vm}: {members} side by side"
        self._plain(f"{group.id}: {members} side by side")
        self._update()

    def _on_group_end(self, event: Mapping[str, Any]) -> None:
        group = self.model.groups[event["group"]]
        if self._groups.get(group.vm) == group.id:
            del self._groups[group.vm]
            self._open[group.vm] = f"{group.vm}: between scenarios"
        self._update()
        what = f"{group.id} on {group.kernel}"
        if group.verdict in HARMLESS:
            members = [self.model.attempts[i] for i in group.scenarios if i in self.model.attempts]
            found = ", ".join(f"{n} {verdict}" for verdict, n in tally(members).items())
            took = duration(self.model.seconds - group.started_t)
            self._plain(f"{self._place()}{what} ({took}): {found}")
            return
        self._say(
            f"{self._place()}{group.verdict:5} {what}: {brief(group.reason)}",
            verdict_style(group.verdict),
        )

    def _on_scenario_regroup(self, event: Mapping[str, Any]) -> None:
        scenario = self.model.attempts[event["scenario"]]
        if scenario.group not in self._regrouped:
            self._regrouped.add(scenario.group)
            why = brief(scenario.regrouped)
            self._say(f"{scenario.group}: its scenarios run again alone: {why}", "yellow")
        self._count(scenario)

    def _on_scenario_start(self, event: Mapping[str, Any]) -> None:
        scenario = self.model.attempts[event["scenario"]]
        if scenario.vm and not scenario.group:
            self._open[scenario.vm] = f"{scenario.vm}: {scenario.name}"
        self._count(scenario)

    def _on_step_start(self, event: Mapping[str, Any]) -> None:
        scenario = self.model.attempts[event["scenario"]]
        step = event.get("step", {})
        number = f"step {event['index'] + 1} of {len(scenario.planned)}"
        what, title = scenario.name, step_title(step, scenario.attacher_of)
        if group := self.model.groups.get(scenario.group):
            what = f"{plural(len(group.scenarios), 'scenario')} side by side"
            title = str(step.get("do", ""))
        self._open[scenario.vm] = f"{scenario.vm}: {what}, {number}: {title}"
        self._update()

    def _on_stir_progress(self, event: Mapping[str, Any]) -> None:
        scenario = self.model.attempts[event["scenario"]]
        elapsed, rounds = float(event["elapsed"]), event["rounds"]
        done = [f"{int(event['calls']):,} calls", f"{int(event['patches']):,} patches"]
        done += [f"{int(n):,} of {name}" for name, n in rounds.items()]
        text = f"{scenario.vm}: {scenario.name}, {duration(elapsed)}: {', '.join(done)}"
        self._open[scenario.vm] = text
        self._update()
        # In a log file a line for each look would hide everything else.
        last = self._stirred.get(scenario.id, 0.0)
        if elapsed - last >= _TELL_STIRRED:
            self._stirred[scenario.id] = elapsed
            self._plain(text)

    def _on_scenario_end(self, event: Mapping[str, Any]) -> None:
        scenario = self.model.attempts[event["scenario"]]
        if scenario.vm in self._open and not scenario.group:
            self._open[scenario.vm] = f"{scenario.vm}: between scenarios"
        self._count(scenario)
        verdict, bad = scenario.verdict, scenario.verdict not in HARMLESS
        text = f"{verdict:5} {scenario.name} on {scenario.kernel}"
        why = brief(scenario.reason)
        if bad or (self._live is None and not scenario.group):
            self._say(
                f"{self._place()}{text} ({duration(scenario.seconds)}){': ' + why if why else ''}",
                verdict_style(verdict) if bad else "",
            )

    def _count(self, scenario: Scenario) -> None:
        """Counts this one anew: all of them at each event would take ever longer."""
        tries = self.model.tries(scenario.kernel, scenario.name)
        ended = [s for s in tries if s.finished]
        bad = sum(s.verdict not in HARMLESS for s in ended)
        before = self._ended.get((scenario.kernel, scenario.name), (0, 0))
        self._ended[scenario.kernel, scenario.name] = (len(ended), bad)
        self._done += len(ended) - before[0]
        self._trouble += bad - before[1]
        self._update()

    def _place(self) -> str:
        return f"[{self._now.done}/{self._now.planned}] " if self._live is None else ""

    def _on_note(self, event: Mapping[str, Any]) -> None:
        warning = event.get("level") == "warning"
        self._say(f"note: {brief(str(event.get('text', '')))}", "yellow" if warning else "")

    def _update(self) -> None:
        kernels = {self.model.vms[vm].kernel for vm in self._open if vm in self.model.vms}
        self._now = replace(
            self._now,
            kernels=", ".join(sorted(kernels)),
            done=self._done,
            planned=self.model.run.planned,
            trouble=self._trouble,
            running=tuple(self._open.values()),
        )

    def _view(self) -> RenderableType:
        now = self._now
        line = Table.grid(padding=(0, 1))
        trouble = Text(f"{now.trouble} failed", "bold red" if now.trouble else "dim")
        line.add_row(
            ProgressBar(
                total=max(now.planned, 1),
                completed=now.done,
                width=_BAR_WIDTH,
                complete_style="cyan",
                finished_style="cyan",
            ),
            f"{now.done}/{now.planned}",
            trouble,
            Text(now.kernels, no_wrap=True, overflow="ellipsis"),
        )
        running = [Text(f"  {text}", no_wrap=True, overflow="ellipsis") for text in now.running]
        return Group(line, *running)
