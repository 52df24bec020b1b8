# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit shell``: a person's shell in the same VM that scenarios run in."""

from __future__ import annotations

import argparse

from vm.process import interact

from .setup import Setup, add_machine_options, say

EXAMPLES = """examples:
  cohabit shell                             the default kernel
  cohabit shell --kernel debian:7.2
  cohabit shell --arch arm64
  cohabit shell -c 'insmod /cohabit/kmods/cohabit_klp_cmdline.ko; cat /proc/cmdline'
In the guest: modules are in /cohabit/kmods, the agent in /cohabit/agent, tracefs in
/sys/kernel/tracing; `poweroff` or Ctrl-D ends it, Ctrl-A X ends QEMU.
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "shell",
        help="a shell in a VM with the modules in place",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kernel", metavar="REF")
    parser.add_argument("-c", "--command", metavar="TEXT", help="run this and end")
    add_machine_options(parser)
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """The command; its status is the guest command's."""
    setup = Setup.of(args)
    setup.by_virtme()
    kernel = setup.kernel(args.kernel)
    machine = setup.machine(kernel)
    say(f"booting {kernel.release} ({machine.accelerator.name}: {machine.accelerator.why})")
    return interact(machine, args.command)
