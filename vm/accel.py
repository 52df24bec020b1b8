# SPDX-License-Identifier: GPL-2.0-only
"""KVM or emulation: decided by really booting something.

A ``/dev/kvm`` that opens proves nothing: on a host whose KVM is paravirtual or
badly nested, creating a VM succeeds and the guest stops before its first
message.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from harness.arch import Arch
from harness.errors import InfraError

from .machine import Accelerator

#: What a kernel says first, and so the proof that a guest runs.
_FIRST_WORDS = b"Linux version"
#: Seconds that a guest on KVM has for it; it takes about one.
_PROBE_TIMEOUT = 6


#: QEMU's machine, and how its kernel speaks before it knows the console.
_MACHINES = {
    "x86_64": ("q35", "earlyprintk=serial,ttyS0,115200"),
    "arm64": ("virt,gic-version=host", "earlycon"),
}


def probe(qemu: Path, image: Path, arch: Arch) -> str | None:
    """Boots ``image`` on KVM as far as its first message; the reason why not, or None."""
    if not arch.native:
        return f"KVM runs no {arch.name} guest on this host"
    if not Path("/dev/kvm").exists():
        return "there is no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm may not be used by this user (group kvm)"
    machine, early = _MACHINES[arch.name]
    command = [
        str(qemu), "-machine", f"{machine},accel=kvm", "-cpu", "host", "-m", "256M", "-nodefaults",
        "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(image),
        "-append", f"console={arch.console} {early} panic=-1",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as guest:
        try:
            output, _ = guest.communicate(timeout=_PROBE_TIMEOUT)
            ended = True
        except subprocess.TimeoutExpired:
            guest.kill()
            output, _ = guest.communicate()
            ended = False
    if _FIRST_WORDS in output:
        return None
    words = output.decode("utf-8", "replace").strip().splitlines()
    if words:
        return f"a guest on KVM stopped before its first message: {words[0][:120]}"
    if ended:
        return "a guest on KVM ended without a message"
    return "a guest on KVM gave no message"


def choose(
    wanted: str, qemu: Path, image: Path, memory: Path, say: Callable[[str], None], arch: Arch
) -> Accelerator:
    """The accelerator to use; ``wanted`` is auto, kvm or tcg.

    The probe's outcome is remembered in the file ``memory`` for this boot of the
    host and this QEMU.  Raises InfraError when KVM is demanded and does not work.
    """
    if wanted == "tcg":
        return Accelerator("tcg", "asked for")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    key = {"boot": boot, "qemu": str(qemu), "user": os.geteuid()}
    known = _recall(memory, key)
    if known is None:
        if arch.native:
            say("trying KVM by booting a kernel")
        known = {"reason": probe(qemu, image, arch)}
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({**key, **known}), encoding="utf-8")
        temporary.replace(memory)
    reason = known["reason"]
    if reason is None:
        return Accelerator("kvm", "a guest booted on KVM")
    if wanted == "kvm":
        raise InfraError(f"KVM does not work here: {reason}", "leave out --accel, or --accel tcg")
    return Accelerator("tcg", str(reason))


def _recall(memory: Path, key: dict[str, object]) -> dict[str, object] | None:
    try:
        data = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or "reason" not in data:
        return None
    return data if all(data.get(name) == value for name, value in key.items()) else None
