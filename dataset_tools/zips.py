"""Zip files: where each member lies, and its bytes from there.

The standard library's zipfile makes an object of every member each time it opens a file: a gigabyte and ten seconds for
a million members, in every worker. Here the directory is read once, as a stream, and a worker needs only a place.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import IO

from dataset_tools import storage
from dataset_tools.limits import Limits
from dataset_tools.listing import DamagedArchiveError, ImageRef, Member, short
from schemas.outcomes import Failure, Reason

_END = struct.Struct("<4s4H2LH")
_END64_AT = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_UTF8, _ENCRYPTED = 0x800, 0x1


def zip_members(url: str) -> Iterator[Member | str]:
    try:
        with storage.open_read(url, block_bytes=2**20) as file:
            start, count, shift = _central_directory(file)
            file.seek(start)
            for _ in range(count):
                fields = _ENTRY.unpack(_exactly(file, _ENTRY.size))
                signature, _, _, flags, _, _, _, crc32, packed, size, n_name, n_extra, n_comment = fields[:13]
                offset, attributes = fields[16], fields[15]
                if signature != b"PK\1\2":
                    raise DamagedArchiveError("its directory breaks off")
                raw, extra = _exactly(file, n_name), _exactly(file, n_extra)
                _exactly(file, n_comment)
                size, packed, offset = _wide(extra, size, packed, offset)
                name = _zip_name(raw, flags)
                if (attributes >> 16) & 0o170000 == 0o120000:
                    yield "link"
                elif not name.endswith("/"):
                    yield Member(name, offset + shift, size, packed, crc32)
    except (DamagedArchiveError, struct.error) as error:
        raise DamagedArchiveError(f"{storage.redact(url)} is damaged: {short(error)}") from None


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise DamagedArchiveError("its directory breaks off")
    return data


def _central_directory(file: IO[bytes]) -> tuple[int, int, int]:
    """Where the directory starts, how many entries it has, and what to add to all offsets (bytes put before it)."""
    end = file.seek(0, 2)
    tail_at = max(0, end - _END.size - 0xFFFF)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise DamagedArchiveError("it has no directory at its end (an upload or download cut short?)")
    _, _, _, _, count, size, start, _ = _END.unpack_from(tail, at)
    end_at = tail_at + at
    if end_at >= _END64_AT.size:
        file.seek(end_at - _END64_AT.size)
        signature, _, end64_at, _ = _END64_AT.unpack(_exactly(file, _END64_AT.size))
        if signature == b"PK\6\7":
            # Its place is told too, but wrongly when bytes were put before the zip: it lies right before its locator.
            for place in (end64_at, end_at - _END64_AT.size - _END64.size):
                file.seek(max(0, place))
                fields = _END64.unpack(_exactly(file, _END64.size))
                if fields[0] == b"PK\6\6":
                    break
            else:
                raise DamagedArchiveError("its directory is not where it should be")
            count, size, start = fields[7:10]
            end_at = place
    shift = end_at - size - start
    if shift < 0:
        raise DamagedArchiveError("its directory is not where it should be")
    return start + shift, count, shift


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit numbers of a Zip64 extra field, each there only if its 32 bits are all ones."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            field, wide = extra[at + 4 : at + 4 + length], []
            for value in (size, packed, offset):
                if value == 0xFFFFFFFF:
                    (value,) = struct.unpack_from("<Q", field)
                    field = field[8:]
                wide.append(value)
            return wide[0], wide[1], wide[2]
        at += 4 + length
    return size, packed, offset


def _zip_name(raw: bytes, flags: int) -> str:
    """Names without the UTF-8 flag are cp437 by the standard, and UTF-8 in what macOS and Linux write."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace") if flags & _UTF8 else raw.decode("cp437")


def read_zip(file: IO[bytes], ref: ImageRef, limits: Limits) -> bytes | Failure:
    assert ref.offset is not None
    assert ref.size is not None
    assert ref.packed is not None
    if ref.packed > limits.max_image_bytes:
        return Failure(Reason.TOO_LARGE, f"{ref.packed} bytes packed, over {limits.max_image_bytes}")
    file.seek(ref.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        return Failure(Reason.UNREADABLE, "the zip member is not where the directory says")
    _, _, flags, method, _, _, _, _, _, n_name, n_extra = _LOCAL.unpack(header)
    if flags & _ENCRYPTED:
        return Failure(Reason.UNREADABLE, "the zip member is encrypted")
    if method not in (0, 8):
        return Failure(Reason.UNREADABLE, f"zip compression method {method} is not read (stored and deflate are)")
    file.seek(ref.offset + _LOCAL.size + n_name + n_extra)
    packed = file.read(ref.packed)
    if len(packed) < ref.packed:
        return Failure(Reason.UNREADABLE, "the archive ends within this member")
    try:
        # One byte more than declared is enough to know that the declaration lies.
        data = packed if method == 0 else zlib.decompressobj(-15).decompress(packed, ref.size + 1)
    except zlib.error as error:
        return Failure(Reason.UNREADABLE, f"the zip member is damaged: {short(error)}")
    if len(data) != ref.size:
        return Failure(Reason.UNREADABLE, f"the zip member is not of the {ref.size} bytes it declares")
    if zlib.crc32(data) != ref.crc32:
        return Failure(Reason.UNREADABLE, "the zip member fails its checksum")
    return data
