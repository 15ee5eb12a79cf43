"""Find files that hold fewer bytes than their header declares: FFmpeg decodes what is left of them without complaint.

Programs that write to a pipe do not know the length. They declare 0, or the largest number that fits.
"""

import os
import struct
from collections.abc import Iterator
from typing import Protocol

UNKNOWN = 0x7FFF0000  # bytes: a larger 32-bit length means "unknown"
_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")  # "riff" as Sony Wave64 has it
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # its File Properties object
_ASF_HEADER = 1 << 16  # bytes in which that object is looked for


class BinaryFile(Protocol):
    """An open file, as far as it is used here."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, whence: int = ..., /) -> int: ...

    def tell(self) -> int: ...


def truncation(file: BinaryFile, size: int) -> str:
    """Says in words how much shorter a file of `size` bytes is than it declares; empty if it is complete or declares
    nothing."""
    head = file.read(24)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        spans = _data_of_wave(file)
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        spans = _parts_of_avi(file, size)
    elif head[:16] == _W64 and len(head) == 24:
        spans = iter([(0, struct.unpack("<Q", head[16:])[0])])
    elif head[:16] == _ASF:
        spans = _all_of_asf(file)
    else:
        return ""
    for begin, length in spans:
        if size - begin < length < 1 << 62:
            return f"declares {length} bytes and holds {size - begin}"
    return ""


def _data_of_wave(file: BinaryFile) -> Iterator[tuple[int, int]]:
    file.seek(12)
    while len(head := file.read(8)) == 8:
        chunk, length = struct.unpack("<4sI", head)
        if chunk == b"data" and length < UNKNOWN:
            yield file.tell(), length
        file.seek(length + length % 2, os.SEEK_CUR)


def _parts_of_avi(file: BinaryFile, size: int) -> Iterator[tuple[int, int]]:
    """One part of up to a gigabyte, and further ones after it."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        chunk, length = struct.unpack("<4sI", file.read(8))
        if chunk != b"RIFF" or not 0 < length < UNKNOWN:
            return
        yield place + 8, length
        place += 8 + length + length % 2


def _all_of_asf(file: BinaryFile) -> Iterator[tuple[int, int]]:
    file.seek(0)
    header = file.read(_ASF_HEADER)
    place = header.find(_ASF_FILE)
    if place >= 0 and len(header) >= place + 92:
        length, flags = struct.unpack("<Q", header[place + 40 : place + 48])[0], header[place + 88]
        if not flags & 1:  # a broadcast, whose length was not known
            yield 0, length
