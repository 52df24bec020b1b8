# SPDX-License-Identifier: GPL-2.0-only
"""BPF programs: compiled once by bcc, loaded and attached by bpf(2) itself.

A compiled program serves every function and slot: what differs is a number in its
instructions (bpf_progs/attach.bpf.c), which is put there before each load.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from . import abi, system
from .btf import Btf

# include/uapi/linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type
_MAP_CREATE, _PROG_LOAD, _OBJ_GET_INFO, _RAW_TRACEPOINT_OPEN, _LINK_CREATE = 0, 5, 15, 17, 28
_MAP_TYPE_ARRAY, _F_MMAPABLE = 2, 1 << 10
_PROG_TYPE_KPROBE, _PROG_TYPE_TRACING = 2, 26
_ATTACH_TYPES = {"fentry": 24, "fexit": 25, "fmod_ret": 26, "kprobe-multi": 42}
_EFAULT, _ENOENT = 14, 2

#: The kinds that are one program and one link a function.
KINDS = ("fentry", "fexit", "fmod_ret")

#: The numbers in the compiled instructions (attach.bpf.c).
TGID, INDEX, RETURNS = 0x5EED0000, 0x5EED0001, 0x5EED0002

#: struct seen of attach.bpf.c: hits, others, args[], ret.
_SEEN = struct.Struct("<%dQ" % (3 + abi.MAX_ARGS))
#: Elements of the map. Nobody counts in the first: it is what a program finds
#: whose cookie the kernel does not know.
NR_SEEN = 4096
_ZERO = bytes(NR_SEEN * _SEEN.size)

#: struct bpf_insn: opcode, registers, offset, immediate value.
_INSN = struct.Struct("<BBhi")
#: Where struct bpf_prog_info has recursion_misses, since 5.12.
_RECURSION_MISSES = 208
_LD_IMM64, _PSEUDO_MAP_FD = 0x18, 1


class _MapCreate(ctypes.Structure):
    """union bpf_attr of BPF_MAP_CREATE, as far as we need it"""

    _fields_ = [
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    ]


class _ProgLoad(ctypes.Structure):
    """union bpf_attr of BPF_PROG_LOAD, as far as we need it"""

    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
        ("debug_info", ctypes.c_uint32 * 9),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
    ]


class _ObjGetInfo(ctypes.Structure):
    """union bpf_attr of BPF_OBJ_GET_INFO_BY_FD"""

    _fields_ = [
        ("bpf_fd", ctypes.c_uint32),
        ("info_len", ctypes.c_uint32),
        ("info", ctypes.c_uint64),
    ]


class _RawTracepointOpen(ctypes.Structure):
    """union bpf_attr of BPF_RAW_TRACEPOINT_OPEN"""

    _fields_ = [("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32), ("pad", ctypes.c_uint32)]


class _LinkCreate(ctypes.Structure):
    """union bpf_attr of BPF_LINK_CREATE for kprobe-multi"""

    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("multi_flags", ctypes.c_uint32),
        ("cnt", ctypes.c_uint32),
        ("syms", ctypes.c_uint64),
        ("addrs", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
    ]


def patched(code: bytes, numbers: dict[int, int], map_fd: int) -> bytes:
    """The program with other numbers in it (by those that are there), and its map."""
    insns = bytearray(code)
    for at in range(0, len(code), _INSN.size):
        opcode, registers, offset, value = _INSN.unpack_from(code, at)
        if opcode == _LD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
            value = map_fd
        elif value in numbers:
            value = numbers[value]
        _INSN.pack_into(insns, at, opcode, registers, offset, value)
    return bytes(insns)


def _symbol(kind: str, function: dict[str, Any]) -> str:
    """The compiled program that is for a kind and a function's number of arguments."""
    if kind == "kprobe-multi":
        return "kprobe_multi"
    tag = "_tag" if kind == "fmod_ret" and function["witnessed"] == "tag" else ""
    return "%s%s_%d" % (kind, tag, function["nr_args"])


def source(text: str, functions: Iterable[dict[str, Any]]) -> tuple[str, list[str]]:
    """What to compile for these functions, and the symbols of the programs in it."""
    lines = {"kprobe_multi": "KPROBE_MULTI(kprobe_multi)"}
    for function in functions:
        for kind in KINDS:
            if kind == "fmod_ret" and not function["fmod_ret"]:
                continue
            symbol = _symbol(kind, function)
            macro = symbol.rpartition("_")[0].upper()
            lines[symbol] = "%s(%s, %d)" % (macro, symbol, function["nr_args"])
    programs = "\n".join(lines.values())
    return "#define NR_SEEN %d\n%s\n%s\n" % (NR_SEEN, text, programs), list(lines)


def compiled(text: str, functions: Iterable[dict[str, Any]]) -> dict[str, bytes]:
    """The instructions of each program, by symbol; imports bcc, which takes seconds."""
    from bcc import BPF, libbcc  # type: ignore[import-not-found]

    whole, symbols = source(text, functions)
    program, lib = BPF(text=whole), libbcc.lib
    found = {}
    for symbol in symbols:
        start = lib.bpf_function_start(program.module, symbol.encode())
        size = lib.bpf_function_size(program.module, symbol.encode())
        found[symbol] = ctypes.string_at(start, size)
    # Its map and its compiler's memory: none of it is needed any more.
    program.cleanup()
    return found


def has_kprobe_multi() -> bool:
    """Whether the kernel has kprobe-multi links.

    kernel/trace/bpf_trace.c: bpf_kprobe_multi_link_attach. Loading a program does not
    tell: kernels from before load it, too. One that has them looks at the addresses.
    """
    code = _INSN.pack(0xB7, 0, 0, 0) + _INSN.pack(0x95, 0, 0, 0)  # r0 = 0; exit
    fd, _ = _load(code, "kprobe-multi", 0, 0)
    if fd < 0:
        return False
    try:
        link = _LinkCreate(prog_fd=fd, attach_type=_ATTACH_TYPES["kprobe-multi"], cnt=1, addrs=1)
        return system.bpf(_LINK_CREATE, link) == -_EFAULT
    finally:
        os.close(fd)


def _load(code: bytes, kind: str, btf_id: int, btf_fd: int) -> tuple[int, str]:
    """A file descriptor, or a negative errno and the end of what the verifier said."""
    insns, gpl = ctypes.create_string_buffer(code, len(code)), ctypes.c_char_p(b"GPL")
    attr = _ProgLoad(
        prog_type=_PROG_TYPE_KPROBE if kind == "kprobe-multi" else _PROG_TYPE_TRACING,
        insn_cnt=len(code) // _INSN.size,
        insns=ctypes.addressof(insns),
        license=ctypes.cast(gpl, ctypes.c_void_p).value,
        prog_name=b"cohabit",
        expected_attach_type=_ATTACH_TYPES[kind],
        attach_btf_id=btf_id,
        attach_btf_obj_fd=btf_fd,
    )
    fd = system.bpf(_PROG_LOAD, attr)
    if fd >= 0:
        return fd, ""
    log = ctypes.create_string_buffer(1 << 16)
    attr.log_level, attr.log_size, attr.log_buf = 1, len(log), ctypes.addressof(log)
    again = system.bpf(_PROG_LOAD, attr)
    if again >= 0:
        # Memory was short, or another such moment: the first answer stands.
        os.close(again)
    said = log.value.decode("utf-8", "replace").splitlines()
    useful = [line for line in said if line and not line.startswith("processed ")]
    return fd, "; ".join(useful[-2:])


def _missed(fd: int) -> int:
    """How many calls of a program the kernel left out, for it was running on that CPU.

    kernel/bpf/trampoline.c: bpf_prog_inc_misses_counter.
    """
    info = ctypes.create_string_buffer(_RECURSION_MISSES + 8)
    attr = _ObjGetInfo(fd, len(info), ctypes.addressof(info))
    if system.bpf(_OBJ_GET_INFO, attr) < 0 or attr.info_len < len(info):
        return 0
    return int.from_bytes(info.raw[_RECURSION_MISSES:], "little")


class _Program:
    """A loaded program, the element that it counts in, and how many links it has."""

    def __init__(self, fd: int, index: int) -> None:
        self.fd = fd
        self.index = index
        self.links = 0


class Link(NamedTuple):
    """What attaching gave: an errno and who said it, or a link and where its hits are counted."""

    errno: int
    remark: str = ""
    fd: int = -1
    elements: tuple[int, ...] = ()


class Programs:
    """Loads and attaches programs, and reads what they count.

    ``functions`` maps a function's name to its description (harness/scenario/functions.py
    as JSON); ``code`` is from ``compiled``; ``reload``: load a program anew for each attach.
    """

    def __init__(
        self, functions: dict[str, dict[str, Any]], code: dict[str, bytes], reload: bool
    ) -> None:
        # A program and a link for each function and slot; and locked memory, before 5.11.
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16, 1 << 16))
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
        self._functions = functions
        self._code = code
        self._reload = reload
        self._btf = Btf()
        attr = _MapCreate(_MAP_TYPE_ARRAY, 4, _SEEN.size, NR_SEEN, _F_MMAPABLE)
        self._map = system.bpf(_MAP_CREATE, attr)
        if self._map < 0:
            raise OSError(-self._map, "no map for the counters: %s" % os.strerror(-self._map))
        self._memory = mmap.mmap(self._map, len(_ZERO))
        self._free = list(range(NR_SEEN - 1, 0, -1))
        self._loaded: dict[tuple[str, str, int], _Program] = {}
        self._multi = -1
        #: What other threads must not see half done: none of it is attached or detached in here.
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Sets all counters to zero."""
        self._memory[:] = _ZERO

    def seen(self, element: int) -> tuple[int, ...]:
        """Hits, others, arguments, return value."""
        return _SEEN.unpack_from(self._memory, element * _SEEN.size)

    def attach(self, kind: str, name: str, slot: int) -> Link:
        """Attaches one of KINDS to one function."""
        key = (kind, name, slot)
        with self._lock:
            program = self._loaded.get(key)
            if self._reload and program and not program.links:
                self._drop(key)
                program = None
            if program:
                # Before it is attached, so that nobody lets go of it meanwhile.
                program.links += 1
        if not program:
            error, said = self._program(kind, name, slot)
            if error:
                return Link(error, ("load: " + said).rstrip(": "))
            program = self._loaded[key]
        link = system.bpf(_RAW_TRACEPOINT_OPEN, _RawTracepointOpen(prog_fd=program.fd))
        if link < 0:
            program.links -= 1
            return Link(-link, "attach")
        return Link(0, "", link, (program.index,))

    def detach(self, kind: str, name: str, slot: int, link: Link) -> None:
        """Closes a link, which detaches the program."""
        os.close(link.fd)
        self._loaded[kind, name, slot].links -= 1

    def attach_multi(self, addresses: Sequence[int]) -> Link:
        """Attaches the kprobe-multi program to functions: one link, an element for each."""
        with self._lock:
            if self._multi < 0:
                code = patched(self._code["kprobe_multi"], {TGID: os.getpid()}, self._map)
                self._multi, said = _load(code, "kprobe-multi", 0, 0)
                if self._multi < 0:
                    return Link(-self._multi, ("load: " + said).rstrip(": "))
            elements = tuple(self._element() for _ in addresses)
        array = ctypes.c_uint64 * len(addresses)
        where, cookies = array(*addresses), array(*elements)
        attr = _LinkCreate(
            prog_fd=self._multi,
            attach_type=_ATTACH_TYPES["kprobe-multi"],
            cnt=len(addresses),
            addrs=ctypes.addressof(where),
            cookies=ctypes.addressof(cookies),
        )
        link = system.bpf(_LINK_CREATE, attr)
        if link < 0:
            self._free += elements
            return Link(-link, "attach")
        return Link(0, "", link, elements)

    def detach_multi(self, link: Link) -> None:
        """Closes such a link."""
        os.close(link.fd)
        self._free += link.elements

    def missed(self, kind: str, name: str, slot: int) -> int:
        """How many calls a program was not told, since it was loaded."""
        return _missed(self._loaded[kind, name, slot].fd)

    def missed_multi(self) -> int:
        """How many calls the kprobe-multi program was not told."""
        return _missed(self._multi)

    def forget(self, module: str) -> None:
        """Lets go of a module as far as nothing is attached: loaded programs hold it."""
        with self._lock:
            for key, program in list(self._loaded.items()):
                if self._functions[key[1]]["module"] == module and not program.links:
                    self._drop(key)
            self._btf.forget(module)

    def _program(self, kind: str, name: str, slot: int) -> tuple[int, str]:
        """Loads one, to be attached; errno, and words where it is not 0."""
        function = self._functions[name]
        with self._lock:
            target = self._btf.find(name, function["module"])
            if target is None:
                return _ENOENT, "no BTF for the function"
            btf_fd, btf_id = target
            # Its own, which stays open when another thread lets go of the module.
            own = os.dup(btf_fd) if btf_fd else 0
            index = self._element()
        symbol = _symbol(kind, function)
        if symbol not in self._code:
            # fmod_ret where the table says that it is refused: any program will do.
            symbol = _symbol("fentry", function)
        numbers = {TGID: os.getpid(), INDEX: index}
        if kind == "fmod_ret":
            tag = abi.TAG_FMOD_RET + slot
            numbers[RETURNS] = tag if function["witnessed"] == "tag" else -(abi.ERRNO_BASE + tag)
        code = patched(self._code[symbol], numbers, self._map)
        try:
            fd, said = _load(code, kind, btf_id, own)
        finally:
            if own:
                os.close(own)
        if fd < 0:
            self._free.append(index)
            return -fd, said
        program = _Program(fd, index)
        program.links = 1
        self._loaded[kind, name, slot] = program
        return 0, ""

    def _element(self) -> int:
        """A free element; programs that are not attached lose theirs when there is none."""
        if not self._free:
            for key, program in list(self._loaded.items()):
                if not program.links:
                    self._drop(key)
        return self._free.pop()

    def _drop(self, key: tuple[str, str, int]) -> None:
        program = self._loaded.pop(key)
        os.close(program.fd)
        self._free.append(program.index)
