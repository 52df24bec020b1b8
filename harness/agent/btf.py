# SPDX-License-Identifier: GPL-2.0-only
"""Types of the running kernel and its modules: what a BPF program names its function by."""

from __future__ import annotations

import ctypes
import os
from typing import Optional

# include/uapi/linux/btf.h
_KIND_FUNC = 12


class _Type(ctypes.Structure):
    """struct btf_type (include/uapi/linux/btf.h)"""

    _fields_ = [
        ("name_off", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size_or_type", ctypes.c_uint32),
    ]


class _Info(ctypes.Structure):
    """struct bpf_btf_info (include/uapi/linux/bpf.h)"""

    _fields_ = [
        ("btf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("name", ctypes.c_uint64),
        ("name_len", ctypes.c_uint32),
        ("kernel_btf", ctypes.c_uint32),
    ]


def _libbpf() -> ctypes.CDLL:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    pointer, number, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p
    for name, result, arguments in (
        ("btf__load_vmlinux_btf", pointer, []),
        ("btf__load_module_btf", pointer, [text, pointer]),
        ("btf__free", None, [pointer]),
        ("btf__type_cnt", number, [pointer]),
        ("btf__type_by_id", ctypes.POINTER(_Type), [pointer, number]),
        ("btf__name_by_offset", text, [pointer, number]),
        ("btf__find_by_name_kind", ctypes.c_int32, [pointer, text, number]),
        ("bpf_btf_get_next_id", ctypes.c_int, [number, pointer]),
        ("bpf_btf_get_fd_by_id", ctypes.c_int, [number]),
        ("bpf_btf_get_info_by_fd", ctypes.c_int, [ctypes.c_int, pointer, pointer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Btf:
    """Finds functions in the kernel's BTF, by libbpf."""

    def __init__(self) -> None:
        self._lib = _libbpf()
        self._vmlinux = self._lib.btf__load_vmlinux_btf()
        if not self._vmlinux:
            raise OSError(ctypes.get_errno(), "the kernel's BTF cannot be loaded")
        #: Functions looked for in vmlinux; 0: not there.
        self._known: dict[str, int] = {}
        #: By module: the kernel's object, and its functions.
        self._modules: dict[str, tuple[int, dict[str, int]]] = {}

    def find(self, function: str, module: Optional[str]) -> Optional[tuple[int, int]]:
        """File descriptor of the BTF object (0: vmlinux's) and the function's type id in it."""
        if module is None:
            if function not in self._known:
                found = self._lib.btf__find_by_name_kind(
                    self._vmlinux, function.encode(), _KIND_FUNC
                )
                self._known[function] = max(found, 0)
            return (0, self._known[function]) if self._known[function] else None
        if module not in self._modules:
            fd = self._object(module)
            if fd is None:
                return None
            self._modules[module] = (fd, self._functions(module))
        fd, functions = self._modules[module]
        return (fd, functions[function]) if function in functions else None

    def forget(self, module: str) -> None:
        """Lets go of a module's BTF: the module goes, or came anew."""
        if module in self._modules:
            os.close(self._modules.pop(module)[0])

    def _functions(self, module: str) -> dict[str, int]:
        """The module's own functions: searching all of vmlinux's types for each takes too long."""
        lib = self._lib
        btf = lib.btf__load_module_btf(module.encode(), self._vmlinux)
        if not btf:
            return {}
        try:
            found = {}
            for number in range(lib.btf__type_cnt(self._vmlinux), lib.btf__type_cnt(btf)):
                kind = lib.btf__type_by_id(btf, number).contents
                if kind.info >> 24 & 0x1F == _KIND_FUNC:
                    found[lib.btf__name_by_offset(btf, kind.name_off).decode()] = number
            return found
        finally:
            lib.btf__free(btf)

    def _object(self, module: str) -> Optional[int]:
        """A file descriptor of the module's BTF in the kernel, None where there is none."""
        number = ctypes.c_uint32(0)
        while self._lib.bpf_btf_get_next_id(number.value, ctypes.byref(number)) == 0:
            fd: int = self._lib.bpf_btf_get_fd_by_id(number.value)
            if fd < 0:
                # Gone since: somebody's program was unloaded.
                continue
            name = ctypes.create_string_buffer(64)
            info = _Info(name=ctypes.addressof(name), name_len=len(name))
            size = ctypes.c_uint32(ctypes.sizeof(info))
            error = self._lib.bpf_btf_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size))
            if error == 0 and info.kernel_btf and name.value == module.encode():
                return fd
            os.close(fd)
        return None
