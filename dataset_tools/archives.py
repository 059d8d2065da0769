"""Images inside tar, zip and Parquet files: an archive's URL in, where each member lies out; later these in, bytes out.

An archive is gone through once. From then on a member is a place (an offset, a row), so that any worker reads its share
without a second look at the index, by ranged reads and unpacking nothing to disk. Only a compressed tar has to be
streamed from its start. Declared sizes are claims: nothing is inflated past the bound, whatever a header says.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_tools import storage
from dataset_tools.limits import Limits
from dataset_tools.listing import DamagedArchiveError, ImageRef, Member, SourceError, short
from dataset_tools.zips import read_zip, zip_members
from schemas.outcomes import Failure, Reason

STREAMED = {"tar.gz": gzip.open, "tar.bz2": bz2.open, "tar.xz": lzma.open}
KINDS = ("file", "tar", *STREAMED, "zip", "parquet", "damaged", "archive")

_SUFFIXES = {
    ".tar": "tar",
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".tar.bz2": "tar.bz2",
    ".tbz2": "tar.bz2",
    ".tbz": "tar.bz2",
    ".tar.xz": "tar.xz",
    ".txz": "tar.xz",
    ".zip": "zip",
    ".parquet": "parquet",
}
_ANY_SUFFIX = tuple(_SUFFIXES)
_MAGIC = {b"\x1f\x8b": "tar.gz", b"BZh": "tar.bz2", b"\xfd7zXZ\0": "tar.xz", b"PK": "zip", b"PAR1": "parquet"}


def kind_by_name(name: str) -> str | None:
    """The kind of archive that a file name promises, None for no archive that is read here."""
    name = name[-9:].lower()
    if not name.endswith(_ANY_SUFFIX):  # a million names come by here
        return None
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def archive_suffix_kinds() -> frozenset[str]:
    """All that `kind_by_name` may give."""
    return frozenset(_SUFFIXES.values())


def open_archive(url: str, limits: Limits) -> tuple[str, Iterator[Member | str]]:
    """The kind of an archive, by its first bytes, and its members in the order in which they lie in it.

    A str among the members says what kind of thing was passed over ("link", "device"). The iterator raises
    DamagedArchiveError where the archive breaks off, and SourceError when a limit is passed.
    """
    kind = archive_kind(url)
    members = {"zip": zip_members, "parquet": _parquet_members}.get(kind)
    return kind, bounded(members(url) if members else _tar_members(url, kind), url, limits)


def archive_kind(url: str) -> str:
    """The kind of an archive by its first bytes. Raises DamagedArchiveError for a file that is none."""
    start = storage.read_bytes(url, 0, 512)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "tar")
    if kind == "tar" and start[257:262] != b"ustar" and kind_by_name(url) not in ("tar", None):
        raise DamagedArchiveError(f"{storage.redact(url)} is no archive: its first bytes are of no known kind")
    return kind


def read_members(refs: Sequence[ImageRef], limits: Limits) -> Iterator[bytes | Failure]:
    """The bytes of each ref, in order; all refs are of one container. Raises StorageError when the store fails.

    Refs in the order of the listing read forwards only; any other order is right, but slow in a streamed archive.
    """
    kind = refs[0].kind
    if kind == "damaged":
        yield from (
            Failure(Reason.UNREADABLE, "the archive is damaged: what follows its last member is lost") for _ in refs
        )
    elif kind == "parquet":
        yield from _read_rows(refs, limits)
    else:
        with open_tar(refs[0].container, kind) as file:
            yield from _read_places(file, refs, read_zip if kind == "zip" else _read_tar, limits)


def read_member(file: IO[bytes], ref: ImageRef, limits: Limits) -> bytes | Failure:
    """The bytes of one member of a tar that is open."""
    return next(_read_places(file, [ref], _read_tar, limits))


def bounded(members: Iterator[Member | str], url: str, limits: Limits) -> Iterator[Member | str]:
    """The same members. Raises SourceError where they are more, or declare more bytes, than one archive may."""
    total = 0
    for count, member in enumerate(members, start=1):
        if count > limits.max_members:
            raise SourceError(f"{storage.redact(url)} has over {limits.max_members} members (max_members)")
        if isinstance(member, Member):
            total += member.size or 0
            if total > limits.max_archive_bytes:
                raise SourceError(
                    f"{storage.redact(url)} declares over {limits.max_archive_bytes} bytes (max_archive_bytes)"
                )
        yield member


def _read_places(
    file: IO[bytes],
    refs: Sequence[ImageRef],
    read: Callable[[IO[bytes], ImageRef, Limits], bytes | Failure],
    limits: Limits,
) -> Iterator[bytes | Failure]:
    broken_at: int | None = None
    for ref in refs:
        if ref.offset is None:
            yield Failure(Reason.UNREADABLE, "a sparse member of the archive")
        elif ref.size is not None and ref.size > limits.max_image_bytes:
            yield Failure(Reason.TOO_LARGE, f"{ref.size} bytes declared, over {limits.max_image_bytes}")
        elif broken_at is not None and ref.offset >= broken_at:
            # A stream cannot be entered behind its damage: trying again would unpack all of it for nothing.
            yield Failure(Reason.UNREADABLE, "the compressed stream is damaged before this member")
        else:
            try:
                yield read(file, ref, limits)
            except _STREAM_ERRORS as error:
                if _is_of_the_store(error):
                    raise
                broken_at = ref.offset
                yield Failure(Reason.UNREADABLE, f"the compressed stream is damaged: {short(error)}")


_STREAM_ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError)


def _is_of_the_store(error: Exception) -> bool:
    """gzip and bz2 raise OSError for damaged data too, but without an error number."""
    return isinstance(error, storage.StorageError) or getattr(error, "errno", None) is not None


# --- tar --------------------------------------------------------------------------------------------------------------


@contextmanager
def open_tar(url: str, kind: str) -> Iterator[IO[bytes]]:
    """The bytes of a tar (or of any file) as they are unpacked; seeking forwards in a compressed one reads on."""
    with ExitStack() as stack:
        block_bytes = 8 * 2**20 if kind in STREAMED else 256 * 1024
        file: Any = stack.enter_context(storage.open_read(url, block_bytes))
        yield stack.enter_context(STREAMED[kind](file, "rb")) if kind in STREAMED else file  # type: ignore[operator]


class _Headers:
    """A file for tarfile that reads headers only: a member that claims a gigabyte of them is hostile."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2**24:
            raise tarfile.ReadError("a header of over 16 MiB")
        self.last = self._file.read(size)
        return self.last


def _tar_members(url: str, kind: str) -> Iterator[Member | str]:
    with open_tar(url, kind) as file:
        yield from walk_tar(file, url)


def walk_tar(file: IO[bytes], url: str) -> Iterator[Member | str]:
    """The members of an open tar, as `open_archive` gives them. Whoever takes one may read it from the file at once."""
    try:
        headers = _Headers(file)
        with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members.clear()  # they would all be kept
                if info.size < 0:  # it would lead the walk backwards
                    raise tarfile.ReadError("a member of negative size")
                if info.issparse():
                    yield Member(_clean(info.name), None, info.size)
                elif info.isreg():
                    yield Member(_clean(info.name), info.offset_data, info.size)
                elif not info.isdir():
                    yield "link" if info.islnk() or info.issym() else "device"
        # tarfile takes a damaged header for the end of the archive.
        if headers.last.strip(b"\0"):
            raise tarfile.ReadError("it breaks off, or a header is damaged")
    except (tarfile.TarError, *_STREAM_ERRORS, OverflowError, ValueError) as error:
        if _is_of_the_store(error):
            raise
        raise DamagedArchiveError(f"{storage.redact(url)} is damaged: {short(error)}") from None


def _clean(name: str) -> str:
    """Valid UTF-8: other bytes are shown as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _read_tar(file: IO[bytes], ref: ImageRef, limits: Limits) -> bytes | Failure:
    del limits  # the declared size was checked, and no more than that is read
    assert ref.offset is not None
    assert ref.size is not None
    file.seek(ref.offset)
    data = file.read(ref.size)
    if len(data) < ref.size:
        return Failure(Reason.UNREADABLE, f"the archive ends within this member: {len(data)} of {ref.size} bytes")
    return data


# --- Parquet ----------------------------------------------------------------------------------------------------------

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "photo", "picture", "image_bytes", "bytes", "content")
_ROWS_AT_ONCE = 16


class NoImageColumnError(SourceError):
    """A Parquet file of something else."""


@contextmanager
def _open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    # Buffered and not pre-fetched: a row group of a thousand photos is a gigabyte.
    with (
        storage.open_read(url, block_bytes=2**20) as file,
        pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as parquet,
    ):
        yield parquet


def _parquet_members(url: str) -> Iterator[Member | str]:
    try:
        with _open_parquet(url) as parquet:
            image_column(parquet.schema_arrow, url)
            rows = parquet.metadata.num_rows
    except pa.ArrowException as error:
        raise DamagedArchiveError(f"{storage.redact(url)} is damaged: {short(error)}") from None
    for row in range(rows):
        yield Member(str(row), row, None)


def image_column(schema: pa.Schema, url: str) -> str:
    """The dotted path of the column with the encoded images. Raises NoImageColumnError, which names the columns."""
    found = {}
    for column in schema:
        if _is_binary(column.type):
            found[column.name] = column.name
        elif pa.types.is_struct(column.type):
            child = column.type.get_field_index("bytes")
            if child >= 0 and _is_binary(column.type.field(child).type):
                found[column.name] = f"{column.name}.bytes"
    for name in _IMAGE_COLUMNS:
        if name in found:
            return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    problem = "no column of images" if not found else f"several columns of bytes ({', '.join(found)})"
    raise NoImageColumnError(
        f"{storage.redact(url)} has {problem}: name one `image`, of type binary or struct<bytes, path>; "
        f"its columns are {', '.join(schema.names[:20])}"
    )


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _read_rows(refs: Sequence[ImageRef], limits: Limits) -> Iterator[bytes | Failure]:
    done = 0
    try:
        for image in _row_images(refs, limits):
            yield image
            done += 1
    except pa.ArrowInvalid as error:
        for _ in refs[done:]:
            yield Failure(Reason.UNREADABLE, f"the Parquet file is damaged: {short(error)}")


def _row_images(refs: Sequence[ImageRef], limits: Limits) -> Iterator[bytes | Failure]:
    with _open_parquet(refs[0].container) as parquet:
        column = image_column(parquet.schema_arrow, refs[0].container)
        rows: Iterator[tuple[int, pa.Scalar]] = iter(())
        at = 0
        last_of_group = -1
        for ref in refs:
            row = ref.offset or 0
            if row < at or row > last_of_group:
                group, first, last_of_group = _group_of(parquet, row)
                rows, at = _rows_of_group(parquet, group, first, column), first
            value = None
            for at, value in rows:  # noqa: B007 (value is used below)
                if at == row:
                    break
            at += 1
            yield _row_bytes(value, limits)


def _group_of(parquet: pq.ParquetFile, row: int) -> tuple[int, int, int]:
    first = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if row < first + rows:
            return group, first, first + rows - 1
        first += rows
    raise storage.MissingFileError(f"row {row} is past the end of the Parquet file")


def _rows_of_group(parquet: pq.ParquetFile, group: int, first: int, column: str) -> Iterator[tuple[int, Any]]:
    for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
        values = batch.column(0)
        for part in column.split(".")[1:]:
            values = values.field(part)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        yield from enumerate(values, start=first)
        first += len(values)


def _row_bytes(value: Any, limits: Limits) -> bytes | Failure:
    if value is None or not value.is_valid:
        return Failure(Reason.UNREADABLE, "the row holds no bytes (its image is kept elsewhere)")
    size = value.as_buffer().size
    if size > limits.max_image_bytes:
        return Failure(Reason.TOO_LARGE, f"{size} bytes, over {limits.max_image_bytes}")
    return bytes(value.as_py())
