# SPDX-License-Identifier: GPL-2.0-only
"""Traces as kernels wrote them, and the numbers of functions in available_filter_functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.agent import abi
from harness.agent.tracers import Numbers, calls, title
from harness.scenario.functions import FUNCTIONS, TEST_MODULE

#: Of 5.10.262 and 7.3.4 (Debian).
FUNCTION = {
    "5.10": """\
# tracer: function
#
# entries-in-buffer/entries-written: 4/4   #P:1
#
#           TASK-PID     CPU#  ||||   TIMESTAMP  FUNCTION
#              | |         |   ||||      |         |
         python3-109     [000] ....    36.986962: security_cohabit_000 <-cohabit_funcs_ioctl
         python3-109     [000] ....    36.987182: cohabit_sleep <-cohabit_funcs_ioctl
         python3-109     [000] ....    37.026442: cohabit_f1 <-cohabit_funcs_ioctl
         python3-109     [000] ....    37.035664: cmdline_proc_show <-seq_read_iter
""",
    "7.3": """\
         python3-109     [000] .....    32.881478: security_cohabit_000 <-cohabit_funcs_ioctl
         python3-109     [000] .....    32.881634: cohabit_sleep <-cohabit_funcs_ioctl
         python3-109     [000] .....    32.893688: cohabit_f1 <-cohabit_funcs_ioctl
         python3-109     [000] .....    32.895465: cmdline_proc_show <-seq_read_iter
""",
}
GRAPH = {
    "5.10": """\
# tracer: function_graph
#
# CPU  TASK/PID         DURATION                  FUNCTION CALLS
# |     |    |           |   |                     |   |   |   |
 0)  python3-109   | + 48.064 us   |  security_cohabit_000 [cohabit_funcs]();
 0)  python3-109   | * 10198.01 us |  cohabit_sleep [cohabit_funcs]();
 0)  python3-109   |   9.810 us    |  cohabit_f1 [cohabit_funcs]();
 0)  python3-109   | + 36.152 us   |  cmdline_proc_show();
""",
    "7.3": """\
 0)  python3-109   | + 34.921 us   |  security_cohabit_000 [cohabit_funcs]();
 0)  python3-109   | # 3679.630 us |  cohabit_sleep [cohabit_funcs]();
 0)  python3-109   |   7.208 us    |  cohabit_f1 [cohabit_funcs]();
 0)  python3-109   | + 24.969 us   |  cmdline_proc_show();
""",
}
CALLED = ["security_cohabit_000", "cohabit_sleep", "cohabit_f1", "cmdline_proc_show"]


@pytest.mark.parametrize("release", FUNCTION)
def test_calls_by_function_and_task(release: str) -> None:
    once = {name: {109: 1} for name in CALLED}
    assert calls("function", FUNCTION[release]) == once
    assert calls("function_graph", GRAPH[release]) == once


def test_calls_of_others_are_told_apart() -> None:
    other = FUNCTION["7.3"].replace("python3-109", "kworker/0:1-12").splitlines()[3]
    text = FUNCTION["7.3"] + other + "\n" + other + "\n"
    assert calls("function", text)["cmdline_proc_show"] == {109: 1, 12: 2}
    other = GRAPH["7.3"].replace("python3-109", "a-b c-12").splitlines()[3]
    assert calls("function_graph", GRAPH["7.3"] + other)["cmdline_proc_show"] == {109: 1, 12: 1}


def test_names_with_their_module() -> None:
    text = FUNCTION["7.3"].replace(" <-", " [cohabit_funcs] <-")
    assert set(calls("function", text)) == set(CALLED)


def test_graph_counts_entries() -> None:
    """Kernel: print_graph_entry_nested, print_graph_return; a call that called others."""
    text = """\
 0)  python3-109   |               |  cohabit_sleep [cohabit_funcs]() {
 ------------------------------------------
 0)  python3-109   =>   kworker-12
 ------------------------------------------
 0)  kworker-12    |   3.000 us    |    cmdline_proc_show();
 0)  python3-109   | * 10198.01 us |  } /* cohabit_sleep [cohabit_funcs] */
 0)  python3-109   | + 10.000 us   |  }
"""
    assert calls("function_graph", text) == {
        "cohabit_sleep": {109: 1},
        "cmdline_proc_show": {12: 1},
    }


def test_nothing_traced() -> None:
    assert calls("function", "") == calls("function_graph", "") == {}


# --- numbers --------------------------------------------------------------------------------

TABLE = {name: dataclasses.asdict(function) for name, function in FUNCTIONS.items()}
LANE = abi.lane_function(7)


@dataclasses.dataclass
class Kernel:
    """available_filter_functions and /proc/modules, as files."""

    path: Path

    def __post_init__(self) -> None:
        self.load()

    def load(self, *modules: str) -> None:
        """These are loaded, in this order; each has two functions."""
        lines = ["version_proc_show", "__ftrace_invalid_address___496", "cmdline_proc_show"]
        for module in modules:
            names = [LANE, "cohabit_f1"] if module == TEST_MODULE else ["start", "stop"]
            lines += [f"{name} [{module}]" for name in names]
        text = "".join(f"{line}\n" for line in lines)
        (self.path / "available_filter_functions").write_text(text, encoding="ascii")
        newest_first = "".join(f"{m} 16384 0 - Live 0x0 (OE)\n" for m in reversed(modules))
        (self.path / "modules").write_text(newest_first, encoding="ascii")

    def numbers(self) -> Numbers:
        return Numbers(TABLE, f"{self.path}/", str(self.path / "modules"))


def test_numbers_are_of_lines_from_one_on(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.load("other", TEST_MODULE)
    numbers = kernel.numbers()
    wanted = ["cmdline_proc_show", LANE, "version_proc_show", "cohabit_f1"]
    assert numbers.of(wanted) == {
        "cmdline_proc_show": 3,
        LANE: 6,
        "version_proc_show": 1,
        "cohabit_f1": 7,
    }
    assert numbers.of(["cohabit_f3"]) == {}


def test_numbers_follow_the_modules(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    numbers = kernel.numbers()
    assert numbers.of([LANE]) == {}
    kernel.load(TEST_MODULE)
    assert numbers.of([LANE]) == {LANE: 4}
    kernel.load()
    assert numbers.of([LANE, "cmdline_proc_show"]) == {"cmdline_proc_show": 3}
    kernel.load("cohabit_klp_a", TEST_MODULE)
    assert numbers.of([LANE]) == {LANE: 6}
    kernel.load(TEST_MODULE)
    assert numbers.of([LANE]) == {LANE: 4}


def test_what_comes_behind_moves_nothing(tmp_path: Path) -> None:
    """The file is long, and reading it takes the kernel a second under emulation."""
    kernel = Kernel(tmp_path)
    kernel.load("other", TEST_MODULE)
    numbers = kernel.numbers()
    numbers.of([LANE])
    kernel.load("other", TEST_MODULE, "cohabit_klp_a", "cohabit_klp_b")
    (tmp_path / "available_filter_functions").unlink()
    assert numbers.of([LANE]) == {LANE: 6}


def test_while_modules_come_and_go(tmp_path: Path) -> None:
    """A number could be another function's by the time that it is written."""
    kernel = Kernel(tmp_path)
    kernel.load(TEST_MODULE)
    numbers = kernel.numbers()
    wanted = [LANE, "cmdline_proc_show"]
    assert numbers.of(wanted) == {LANE: 4, "cmdline_proc_show": 3}
    numbers.moving = True
    for modules in ((TEST_MODULE,), (), ("other", TEST_MODULE)):
        kernel.load(*modules)
        assert numbers.of(wanted) == {"cmdline_proc_show": 3}
    numbers.moving = False
    assert numbers.of(wanted) == {LANE: 6, "cmdline_proc_show": 3}


def test_title() -> None:
    assert title("cmdline_proc_show", None) == "cmdline_proc_show"
    assert title(LANE, TEST_MODULE) == f"{LANE} [cohabit_funcs]"
