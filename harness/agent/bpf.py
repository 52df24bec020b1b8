# SPDX-License-Identifier: GPL-2.0-only
"""BPF programs through bcc: compiled once, loaded when first attached."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Optional

from . import abi

#: Program kinds, their macro in bpf_progs/attach.bpf.c, and the prefix of the
#: name by which bcc finds the function a program is for (libbpf.c in bcc:
#: bcc_prog_load_xattr, find_btf_id). ``kmod_ret__`` knows vmlinux only.
_KINDS = {
    "fentry": ("FENTRY", "kfunc__%s__%s"),
    "fexit": ("FEXIT", "kretfunc__%s__%s"),
    "fmod_ret": ("FMOD_RET", "kmod_ret__%s%s"),
}
SLOTS = "ab"
_FMOD_RET_TAGS = (abi.TAG_FMOD_RET_A, abi.TAG_FMOD_RET_B)


class Programs:
    """All programs for a table of functions, from one compilation.

    ``functions`` maps a function's name to its description
    (harness/scenario/functions.py as JSON); ``source`` is the text of
    bpf_progs/attach.bpf.c; ``reload``: load a program anew for each attach.
    """

    def __init__(self, functions: dict[str, dict[str, Any]], source: str, reload: bool) -> None:
        from bcc import BPF, libbcc  # type: ignore[import-not-found]

        self._tracing = BPF.TRACING
        self._reload = reload
        self._lib = libbcc.lib
        self._functions = functions
        self._index: dict[tuple[str, str, int], int] = {}
        self._fds: dict[tuple[str, str, int], int] = {}
        lines = []
        for name, function in functions.items():
            for kind, (macro, _) in _KINDS.items():
                if kind == "fmod_ret" and not function["fmod_ret"]:
                    continue
                for slot in range(len(SLOTS)):
                    index = len(self._index)
                    self._index[kind, name, slot] = index
                    line = "%s(%s, %d, %d" % (
                        macro,
                        self._symbol(kind, name, slot),
                        index,
                        function["nr_args"],
                    )
                    if kind == "fmod_ret":
                        line += ", %d" % -(abi.ERRNO_BASE + _FMOD_RET_TAGS[slot])
                    lines.append(line + ")")
        text = "#define NR_PROGS %d\n%s\n%s\n" % (len(self._index), source, "\n".join(lines))
        self._bpf = BPF(text=text)
        self._seen = self._bpf["seen"]
        self._caller = self._bpf["caller"]
        self._caller[0] = ctypes.c_uint32(os.getpid())

    @staticmethod
    def _symbol(kind: str, name: str, slot: int) -> str:
        return "%s_%s_%s" % (kind, SLOTS[slot], name)

    def _load(self, kind: str, name: str, slot: int) -> int:
        """The program's file descriptor, or a negative errno."""
        key = (kind, name, slot)
        if key in self._fds:
            return self._fds[key]
        lib, module = self._lib, self._bpf.module
        symbol = self._symbol(kind, name, slot).encode()
        object_name = self._functions[name]["module"] or "vmlinux"
        if kind == "fmod_ret":
            object_name = ""
        attach_name = (_KINDS[kind][1] % (object_name, name)).encode()
        ctypes.set_errno(0)
        fd = lib.bcc_func_load(
            module,
            self._tracing,
            attach_name,
            lib.bpf_function_start(module, symbol),
            lib.bpf_function_size(module, symbol),
            lib.bpf_module_license(module),
            lib.bpf_module_kern_version(module),
            0,
            None,
            0,
            None,
            -1,
        )
        if fd < 0:
            return -(ctypes.get_errno() or 22)
        self._fds[key] = fd
        return int(fd)

    def attach(self, kind: str, name: str, slot: int) -> tuple[int, Optional[int], str]:
        """Errno (0 for success), the link's file descriptor, and which call said it."""
        if self._reload and (kind, name, slot) in self._fds:
            os.close(self._fds.pop((kind, name, slot)))
        fd = self._load(kind, name, slot)
        if fd < 0:
            return -fd, None, "load"
        ctypes.set_errno(0)
        link = self._lib.bpf_attach_kfunc(fd)
        if link < 0:
            return ctypes.get_errno() or 22, None, "attach"
        return 0, int(link), "attach"

    def stat(self, kind: str, name: str, slot: int, reset: bool) -> dict[str, Any]:
        """What a program has seen; ``reset`` clears it afterwards."""
        index = self._index[kind, name, slot]
        seen = self._seen[index]
        count = self._functions[name]["nr_args"]
        result = {
            "hits": int(seen.hits),
            "others": int(seen.others),
            "args": [int(arg) for arg in seen.args][:count],
        }
        if kind == "fexit":
            result["ret"] = int(seen.ret)
        if reset:
            self._seen[index] = self._seen.Leaf()
        return result
