# SPDX-License-Identifier: GPL-2.0-only
"""Takes the kernel proper out of an x86 boot image.

Building modules with BTF needs vmlinux's, and packages older than 6.12 ship
only the boot image.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

from harness.errors import InfraError

#: Offsets into the setup header, Documentation/arch/x86/boot.rst.
_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_VERSION = 0x206
_PAYLOAD = 0x248
#: payload_offset and payload_length are there from this protocol on.
_PAYLOAD_SINCE = 0x208

_LZ4_LEGACY = b"\x02\x21\x4c\x18"


def _lz4_block(data: bytes, out: bytearray) -> None:
    """Appends to ``out`` what the LZ4 block ``data`` holds; IndexError if it is damaged."""
    at, end = 0, len(data)
    start = len(out)
    while True:
        token = data[at]
        at += 1
        literals = token >> 4
        if literals == 15:
            while (more := data[at]) == 255:
                literals += 255
                at += 1
            literals += more
            at += 1
        out += data[at : at + literals]
        at += literals
        if at >= end:
            return
        distance = data[at] | data[at + 1] << 8
        at += 2
        length = token & 15
        if length == 15:
            while (more := data[at]) == 255:
                length += 255
                at += 1
            length += more
            at += 1
        length += 4
        source = len(out) - distance
        if not distance or source < start:
            raise IndexError(source)
        if distance >= length:
            out += out[source : source + length]
        else:
            # A match that overlaps what it produces repeats its first bytes.
            piece = bytes(out[source:])
            out += (piece * (length // distance + 1))[:length]


def _lz4(payload: bytes) -> bytes:
    """Decompresses the legacy LZ4 format; the kernel appends the size, as 4 bytes."""
    out = bytearray()
    at, end = len(_LZ4_LEGACY), len(payload) - 4
    while at < end:
        (size,) = struct.unpack_from("<I", payload, at)
        at += 4
        _lz4_block(payload[at : at + size], out)
        at += size
    return bytes(out)


def _zstd(payload: bytes) -> bytes:
    """Decompresses through the zstd program; the kernel appends the size, as 4 bytes."""
    try:
        done = subprocess.run(
            ["zstd", "-dcq"], input=payload[:-4], capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise InfraError(
            "this kernel image is packed with zstd, and there is no zstd program",
            "install the package zstd",
        ) from error
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip())
    return done.stdout


#: First bytes of the payload, and what unpacks it (scripts/extract-vmlinux has the same list).
_FORMATS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", lambda payload: zlib.decompressobj(31).decompress(payload)),
    (b"\xfd7zXZ\0", lambda payload: lzma.LZMADecompressor().decompress(payload)),
    (b"\x5d\0\0", lambda payload: lzma.LZMADecompressor().decompress(payload)),
    (b"BZh", lambda payload: bz2.BZ2Decompressor().decompress(payload)),
    (_LZ4_LEGACY, _lz4),
    (b"\x28\xb5\x2f\xfd", _zstd),
)


def _payload(image: bytes, name: str) -> bytes:
    """The compressed part of boot image ``image``, called ``name`` in errors."""
    if image[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise InfraError(f"{name} is not an x86 boot image (bzImage)")
    (version,) = struct.unpack_from("<H", image, _VERSION)
    if version < _PAYLOAD_SINCE:
        raise InfraError(f"{name}: boot protocol {version:#x} doesn't say where vmlinux is")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    # boot.rst: 0 setup sectors mean 4; the boot sector comes on top.
    start = ((image[_SETUP_SECTS] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    if len(payload) != length:
        raise InfraError(f"{name} is shorter than it says", "fetch it again")
    return payload


def extract_vmlinux(bzimage: Path, out: Path) -> None:
    """Writes the vmlinux inside boot image ``bzimage`` to ``out``.

    It is an ELF file without symbols, with BTF if the kernel was built so.
    ``out`` appears complete or not at all.  Raises InfraError: not a boot
    image, damaged, packed in a way that isn't known, or no zstd program where
    that is needed.  A kernel packed with LZ4 takes some seconds.
    """
    payload = _payload(bzimage.read_bytes(), str(bzimage))
    unpack = next((unpack for magic, unpack in _FORMATS if payload.startswith(magic)), None)
    if not unpack:
        raise InfraError(f"{bzimage}: vmlinux is packed in an unknown way ({payload[:6].hex()})")
    try:
        vmlinux = unpack(payload)
    except (IndexError, struct.error, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InfraError(f"{bzimage} is damaged: {error}", "fetch it again") from error
    # arch/x86/boot/compressed/Makefile: the payload ends with the unpacked size.
    (size,) = struct.unpack("<I", payload[-4:])
    if len(vmlinux) != size or not vmlinux.startswith(b"\x7fELF"):
        raise InfraError(f"{bzimage} is damaged: no vmlinux of {size} bytes", "fetch it again")
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(vmlinux)
    partial.replace(out)
