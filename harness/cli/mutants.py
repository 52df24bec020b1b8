# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit mutants``: kernels that each break one rule, and whether a scenario notices."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.arch import X86_64
from harness.errors import CohabitError, InfraError, UsageError
from harness.kernels import build, mutantfile, series, trees
from harness.kernels.model import Kernel
from harness.kernels.mutantfile import Mutant
from harness.kernels.store import Store
from harness.report.model import RunModel, read
from harness.report.views import HARMLESS, NO_RESULT
from harness.report.words import brief, duration, plural
from harness.run.template import KIND, image_digest
from harness.scenario import catalogue
from harness.scenario.steps import Scenario

from . import stirring
from .run import add_run_options, check_options, run_once
from .setup import REPOSITORY, Setup, add_machine_options, add_tree_options, say

MUTANTS = REPOSITORY / "tests/mutants"
DEFAULT_TREE = "source:7.2"

EXAMPLES = """examples:
  cohabit mutants                         all of them: an hour or two on two cores
  cohabit mutants 'two-*' modified-*      some, by name
  cohabit mutants --list                  what there is, and what should notice it
  cohabit mutants --arch arm64            those that break a kernel for arm64
  cohabit mutants --races --seed 2        those that only tasks at the same time can notice
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "mutants",
        help="build kernels that break a rule, and see whether it is noticed",
        description="Builds the kernel once for each patch under tests/mutants, runs the "
        "scenarios that should notice it, and says which did. The kernel without any patch "
        "must pass them all.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="names or globs")
    parser.add_argument(
        "--races", action="store_true",
        help="those that need tasks at work at the same time: minutes each; else only by name",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument(
        "--tree", default=DEFAULT_TREE, metavar="REF",
        help=f"the sources that they are for (default {DEFAULT_TREE})",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome as JSON too")
    add_run_options(parser.add_argument_group("running"))
    stirring.add_options(parser)
    add_tree_options(parser)
    add_machine_options(parser)
    # A snapshot of a kernel that is run once or twice does not pay.
    parser.set_defaults(handler=run, snapshots=False)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: ``state`` is one of _STATES; ``seed``: of the scenario that
    noticed, None where that has none."""

    name: str
    state: str
    by: str = ""
    witness: str = ""
    record: str = ""
    seed: int | None = None

    def line(self) -> str:
        """The outcome in a line."""
        seed = "" if self.seed is None else f" (seed {self.seed})"
        why = f" by {self.by}{seed}: {self.witness}" if self.by else f": {self.witness}"
        return f"{self.state:10} {self.name}{why if self.witness else ''}"


def run(args: argparse.Namespace) -> int:
    """The command; 0 if every mutant that is not equivalent was killed."""
    mutants = mutantfile.read(MUTANTS)
    if args.list:
        arches = [arch.name for arch in args.arches]
        # A list costs nothing.
        races = None if not args.races else True
        for mutant in select(mutants, args.names, arches, races):
            what = " ".join(mutant.rules) or mutant.bug or mutant.race
            print(f"{mutant.name}: {what}{' (equivalent)' if mutant.equivalent else ''}")
            if mutant.arches != (X86_64.name,):
                print(f"  of {' '.join(mutant.arches)}")
            if mutant.flavour:
                print(f"  on a kernel of flavour {mutant.flavour}")
            print(f"  {' '.join(mutant.scenarios)}\n  {mutant.expect}")
        return 0
    check_options(args)
    setup = Setup.of(args)
    chosen = select(mutants, args.names, [setup.arch.name], args.races)
    tree = trees.resolve(args.tree, setup.store, say)
    begun = time.monotonic()
    green(setup, tree, chosen, args)
    outcomes = []
    for mutant, kernel in built(setup, tree, chosen):
        outcome = (
            judge(setup, mutant, kernel, args)
            if isinstance(kernel, Kernel)
            else Outcome(mutant.name, "not built", witness=brief(str(kernel)))
        )
        outcomes.append(outcome)
        print(f"[{len(outcomes)}/{len(chosen)}] {outcome.line()}", flush=True)
    if args.json:
        data = {
            "tree": tree.origin,
            "arch": setup.arch.name,
            "mutants": [vars(outcome) for outcome in outcomes],
        }
        args.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    counts = {s: sum(o.state == s for o in outcomes) for s in _STATES}
    told = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    took = duration(time.monotonic() - begun)
    of = f"{tree.origin} ({setup.arch.policy})"
    print(f"{plural(len(outcomes), 'mutant')} of {of}: {told}; {took}")
    return 1 if counts["survived"] else 3 if counts["not built"] + counts["no result"] else 0


_STATES = ("killed", "survived", "equivalent", "not built", "no result")


def select(
    mutants: Sequence[Mutant],
    globs: Sequence[str],
    arches: Sequence[str] = (),
    races: bool | None = None,
) -> list[Mutant]:
    """Those of these names that break one of these architectures; all for no name and no one.

    ``races``: of all only those that are races, or only those that are not.  Raises
    UsageError for a name that none of them has.
    """
    there = [m for m in mutants if not arches or set(arches) & set(m.arches)]
    where = f" for {' or '.join(arches)}" if arches else ""
    for glob in globs:
        if not fnmatch.filter([m.name for m in there], glob):
            raise UsageError(
                f"no mutant{where} is called {glob!r}", "`cohabit mutants --list` names them"
            )
    if not globs:
        return [m for m in there if races is None or bool(m.race) is races]
    return [m for m in there if any(fnmatch.fnmatchcase(m.name, g) for g in globs)]


def options_of(setup: Setup, mutant: Mutant) -> build.Options:
    """How its kernel is built: of its own flavour where it has one."""
    return dataclasses.replace(setup.options, flavour=mutant.flavour or setup.options.flavour)


def scenarios_of(mutants: Sequence[Mutant], args: argparse.Namespace) -> list[Scenario]:
    """What mutants are judged by, with what the options for those that stir say."""
    names = {name for mutant in mutants for name in mutant.selected()}
    found = [s for s in (*catalogue.everything(), *catalogue.beside()) if s.name in names]
    if any(scenario.stir for scenario in found):
        return list(stirring.overridden(found, args))
    return found


def green(
    setup: Setup, tree: trees.Tree, mutants: Sequence[Mutant], args: argparse.Namespace
) -> None:
    """Run all that mutants are judged by on the kernel without a patch, of each flavour.

    Raises InfraError when it does not pass: nothing that failed on a mutant would then
    be the mutant's.
    """
    for flavour in dict.fromkeys(options_of(setup, mutant).flavour for mutant in mutants):
        options = dataclasses.replace(setup.options, flavour=flavour)
        kernel = setup.build(tree, options=options)
        judged = [m for m in mutants if options_of(setup, m).flavour == flavour]
        scenarios = scenarios_of(judged, args)
        model = read(run_once(setup, kernel, scenarios, args, override=args.profile))
        of = f" ({flavour})" if flavour != "plain" else ""
        if failed := noticed(model):
            raise InfraError(
                f"{tree.reference}{of} without any mutant fails {failed[0]}: {failed[1]}",
                "a mutant can be judged only where the unmodified kernel passes",
            )
        print(f"unmodified{of}: {plural(len(scenarios), 'scenario')}, all as promised", flush=True)


def noticed(model: RunModel) -> tuple[str, str] | None:
    """The scenario that failed first, and in what; None where all were as promised.

    Raises InfraError where the run has no result of its own.
    """
    if model.cut_short or model.not_started():
        raise InfraError("the run was cut short", "its record says why")
    failed = [s for s in model.scenarios if s.verdict not in HARMLESS | NO_RESULT]
    if failed:
        first = min(failed, key=lambda s: s.started_t)
        return first.name, f"{first.verdict}: {brief(first.reason)}"
    for group in model.group_failures():
        if group.verdict not in NO_RESULT:
            return f"{plural(len(group.scenarios), 'scenario')} side by side", group.verdict
    for vm in model.vm_failures():
        if vm.verdict not in NO_RESULT:
            return vm.id, f"{vm.verdict}: {brief(vm.detail)}"
    if lost := [s for s in model.scenarios if s.verdict in NO_RESULT]:
        raise InfraError(f"{lost[0].name} has no result: {brief(lost[0].reason)}")
    return None


def judge(setup: Setup, mutant: Mutant, kernel: Kernel, args: argparse.Namespace) -> Outcome:
    """Run a mutant's scenarios on its kernel."""
    scenarios = scenarios_of([mutant], args)
    directory = run_once(setup, kernel, scenarios, args, override=args.profile)
    try:
        found = noticed(read(directory))
    except InfraError as error:
        return Outcome(mutant.name, "no result", witness=str(error), record=str(directory))
    if found:
        seed = next((s.stir.seed for s in scenarios if s.name == found[0] and s.stir), None)
        return Outcome(mutant.name, "killed", *found, str(directory), seed)
    state = "equivalent" if mutant.equivalent else "survived"
    return Outcome(mutant.name, state, record=str(directory))


def built(
    setup: Setup, tree: trees.Tree, mutants: Sequence[Mutant]
) -> Iterator[tuple[Mutant, Kernel | CohabitError]]:
    """Each mutant with its kernel, or why there is none; the next is built meanwhile.

    A mutant's kernel leaves the cache when the next one is asked for.
    """
    ready: queue.Queue[tuple[Mutant, Kernel | CohabitError, Store] | BaseException] = queue.Queue(1)
    stopped = threading.Event()

    def make() -> None:
        try:
            for mutant in mutants:
                if stopped.is_set():
                    return
                # Its own, so that it can be let go of alone.
                store = Store(setup.store.root)
                made: Kernel | CohabitError
                try:
                    patch = series.Patch(mutant.path.name, mutant.name, mutant.patch)
                    (patched,) = series.apply(tree, [patch])
                    options = options_of(setup, mutant)
                    # 180 MB less to write for each of kernels that are gone as soon as they
                    # were judged.
                    options = dataclasses.replace(options, debug_info=False)
                    made = setup.build(patched, store, options)
                except CohabitError as error:
                    made = error
                ready.put((mutant, made, store))
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        for _ in mutants:
            got = ready.get()
            if isinstance(got, BaseException):
                raise got
            mutant, made, store = got
            yield mutant, made
            store.close()
            if isinstance(made, Kernel):
                _forget(setup.store, made)
    finally:
        stopped.set()


def _forget(store: Store, kernel: Kernel) -> None:
    # First what was made of it to boot it.
    made = {"entry": str(kernel.tree.relative_to(store.root / "objects"))}
    for entry in store.entries("disk"):
        if made.items() <= entry.inputs.items():
            store.drop(entry)
    for entry in store.entries(KIND):
        if entry.inputs.get("kernel") == image_digest(kernel):
            store.drop(entry)
    for entry in store.entries("built"):
        if entry.tree == kernel.tree:
            store.remove(entry)
