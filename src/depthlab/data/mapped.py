"""Arrays used where they lie in their file: processes that map the same file have its pages in memory once."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

LOCAL_HEADER = struct.Struct("<26xHH")
"""Before the bytes of a member of a zip: at its end the lengths of the name and of the extra field that follow."""

LONGEST_HEADER = 1 << 16
"""Bytes of the longest header of an array in numpy's format 1.0, which np.savez writes."""


def map_pixels(stream: BinaryIO, member: zipfile.ZipInfo) -> NDArray[np.uint8] | None:
    """The uint8 array that np.savez has stored as a member of an open file, mapped; None if it has to be read.

    Its pages are those of the file, shared by all processes that map it; one that is written to becomes the writer's
    own, and the file stays as it is. They are what the member's checksum says when this returns. The file may later
    be replaced or deleted, but not overwritten in place, and above all not shortened: what is read beyond its end
    kills a process (SIGBUS).

    It has to be read if the member is compressed or damaged, is no uint8 array in C order, or if the file ends too
    early or lies where nothing can be mapped.
    """
    try:
        content = _map(stream, member)
    except (OSError, ValueError, struct.error):
        return None
    if zlib.crc32(content.data) != member.CRC:
        return None
    header = io.BytesIO(content[:LONGEST_HEADER].tobytes())
    if np.lib.format.read_magic(header) != (1, 0):
        return None
    shape, is_fortran, kind = np.lib.format.read_array_header_1_0(header)
    return None if is_fortran or kind != np.uint8 else content[header.tell() :].reshape(shape)


def _map(stream: BinaryIO, member: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """The bytes of a stored member; ValueError if it is not stored, or its end is not in the file."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    stream.seek(member.header_offset)
    # The name and the extra field are not as long here as the list of members says at the end of the file.
    start = member.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size)))
    # Copies of pages on writing, and not read-only ones: torch has no tensors that may not be written to.
    return np.asarray(np.memmap(stream, np.uint8, "c", start, (member.file_size,)))
