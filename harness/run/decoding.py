# SPDX-License-Identifier: GPL-2.0-only
"""After a run: files and lines for what its kernels reported (docs/events.md: decoded)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import CohabitError
from harness.kernels import decode
from harness.kernels.model import Kernel
from harness.report.model import RunModel
from harness.report.views import Report, Vm
from harness.report.words import plural

from .record import Record

#: The decoder for a kernel and a directory of modules, at an empty directory to mount things
#: on (harness.kernels.decode.of_kernel).
MakeDecoder = Callable[[Kernel, Path, Path], decode.Decoder]


@dataclass(frozen=True)
class Booted:
    """A kernel that was run, and our modules for it: a directory of .ko files."""

    kernel: Kernel
    modules: Path


def decode_reports(
    record: Record, model: RunModel, booted: Iterable[Booted], make: MakeDecoder
) -> None:
    """Record what could be decoded of the run's reports and backtraces.

    ``model`` has been fed what ``record`` has.  What can't be decoded is a note.
    """
    for one in booted:
        release = one.kernel.release
        reports, vms = _worth(model, release)
        if not reports and not vms:
            continue
        if why := decode.obstacle(one.kernel):
            record.note(f"{release}: the kernel's reports are not decoded: {why}")
            continue
        record.note(f"{release}: decoding {plural(len(reports) + len(vms), 'report')}")
        try:
            with tempfile.TemporaryDirectory(prefix="cohabit-decode-") as mountpoint:
                decoder = make(one.kernel, one.modules, Path(mountpoint))
                texts = [*(r.lines for r in reports), *(vm.backtraces for vm in vms)]
                done = decoder.decode(texts)
        except (CohabitError, OSError) as error:
            record.note(f"{release}: the kernel's reports are not decoded: {error}", "warning")
            continue
        if done.note:
            record.note(f"{release}: decoding the kernel's reports: {done.note}", "warning")
        names = [*({"report": r.id} for r in reports), *({"vm": vm.id} for vm in vms)]
        for name, raw, lines in zip(names, texts, done.reports, strict=True):
            if lines != raw:
                record.event("decoded", **name, lines=list(lines))


def _worth(model: RunModel, kernel: str) -> tuple[list[Report], list[Vm]]:
    """The reports of a kernel that are no step's promise, and VMs with backtraces."""
    vms = {vm.id: vm for vm in model.vms_of(kernel)}
    reports = [
        report
        for report in model.reports.values()
        if report.vm in vms
        and not (report.scenarios and all(_passed(model, s) for s in report.scenarios))
    ]
    return reports, [vm for vm in vms.values() if vm.backtraces]


def _passed(model: RunModel, scenario: str) -> bool:
    found = model.attempts.get(scenario)
    return found is not None and found.verdict == "PASS"
