"""What a user names as SOURCE in, a listing of images out; then rows of the listing in, bytes out.

Every file is either an image to be accounted for or of a kind that is passed over by its name and counted, so that the
sums add up. No engine here: Dask and Beam both read through `read_images`.
"""

import io
import itertools
import time
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataset_tools import storage
from dataset_tools.archives import NoImageColumnError, kind_by_name, open_archive, read_members
from dataset_tools.ignored_names import passed_over
from dataset_tools.limits import Limits
from dataset_tools.listing import TABLE, DamagedArchiveError, ImageRef, Listing, Member, SourceError
from schemas.outcomes import Failure, Reason

__all__ = ["ImageRef", "Listing", "SourceError", "list_images", "read_images"]

# --- Listing ----------------------------------------------------------------------------------------------------------


def list_images(source: str | Sequence[str], limits: Limits, whole: Collection[str] = ()) -> Listing:
    """List the images of one or several sources, sorted by file, members in the order of their archive.

    A source is a folder (at any depth; archives in it are gone through too), a file, a glob, a `.txt` or `.list` with a
    path or URL a line (relative to the list), a tar (also .gz, .bz2, .xz), a zip, a Parquet file with a column of
    images, or a URL of any of these. An archive that breaks off gives what it has and one image of kind "damaged",
    which fails when read. whole: kinds of archives that are not gone through, by their names: each is one row of kind
    "archive", for `streaming.stream_archive`. Raises SourceError when there is nothing, and StorageError when a folder
    or store refuses.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise SourceError("no source was named: give a folder, a glob, a list file, an archive or a URL")
    listed = _Rows(limits, whole)
    for name in sorted({storage.normalize(name) for name in sources}):
        _list_source(name, listed)
    listing = listed.finish()
    if len(listing) == 0:
        names = ", ".join(storage.redact(name) for name in sources[:5])
        passed = ", ".join(f"{count} {kind}" for kind, count in listing.ignored.items())
        raise SourceError(f"no images in {names}" + (f" (passed over: {passed})" if passed else ""))
    return listing


def _list_source(name: str, listed: "_Rows") -> None:
    if _is_glob(name):
        found = storage.glob(name)
        if not found:
            raise SourceError(f"nothing matches {storage.redact(name)}")
        for match, size in found:
            if size is None:
                _list_folder(match, listed)
            else:
                _list_file(match, PurePosixPath(match).name, size, listed)
    elif storage.is_folder(name):
        _list_folder(name, listed)
    elif not storage.exists(name):
        raise SourceError(f"{storage.redact(name)} does not exist")
    elif name.lower().endswith(_LIST_SUFFIXES):
        _list_lines(name, listed)
    elif kind_by_name(name):
        listed.add_archive(name, storage.file_size(name), alone=True)
    elif (kind := passed_over(PurePosixPath(name).name)) is not None:
        raise SourceError(f"{storage.redact(name)} is no image and no archive that is read here ({kind})")
    else:
        listed.add_file(name, storage.file_size(name))


def _is_glob(name: str) -> bool:
    if not any(sign in name for sign in "*?["):
        return False
    if storage.is_local(name):
        return not storage.exists(name)  # a file may be named so
    return not name.startswith(("http://", "https://")) or "*" in name  # a ? starts a query


def _list_folder(folder: str, listed: "_Rows") -> None:
    for url, size in storage.list_files(folder):
        _list_file(url, url[len(folder) :].lstrip("/"), size, listed)


def _list_file(url: str, relative: str, size: int, listed: "_Rows") -> None:
    """`relative`: the part of the name that decides whether it is passed over (what lies below the folder named)."""
    if (kind := passed_over(relative)) is not None:
        listed.ignored[kind] += 1
    elif kind_by_name(url):
        listed.add_archive(url, size, alone=False)
    else:
        listed.add_file(url, size)


_LIST_SUFFIXES = (".txt", ".list", ".lst")


def _list_lines(url: str, listed: "_Rows") -> None:
    """A list says what it wants: no line is passed over by its name, and a missing file is an image that fails."""
    folder = url.rpartition("/")[0]
    names: list[str] = []
    with (
        storage.open_read(url, block_bytes=8 * 2**20) as file,
        io.TextIOWrapper(file, "utf-8-sig", "surrogateescape") as lines,
    ):
        for line in map(str.strip, lines):
            if line:
                here = "://" in line or line.startswith(("/", "~"))
                names.append(storage.normalize(line if here else storage.join(folder, line)))
    names.sort(reverse=True)
    before = None
    while names:  # ten million names weigh a gigabyte, which goes as the listing grows
        name = names.pop()
        if name == before:
            continue
        before = name
        if kind_by_name(name):
            listed.add_archive(name, storage.file_size(name), alone=True)
        else:
            listed.add_file(name, _size_if_there(name))


def _size_if_there(name: str) -> int | None:
    if not storage.is_local(name):
        return None  # a request each
    try:
        return storage.file_size(name)
    except storage.StorageError:
        return None


def passed_over_member(kind: str, name: str) -> str | None:
    """What a member that is no image counts as, None for one that is; kind: of its archive."""
    if kind == "parquet":
        return None
    return "nested archive" if kind_by_name(name) else passed_over(name)


def member_key(container: str, name: str) -> str:
    return f"{storage.redact(container)}#{name}"


class _Rows:
    """The listing while it grows: chunks of Arrow, since a million Python objects would weigh a gigabyte."""

    def __init__(self, limits: Limits, whole: Collection[str] = ()) -> None:
        self.ignored: Counter[str] = Counter()
        self._limits, self._whole = limits, whole
        self._archives: dict[str, int] = {}
        self._rows: list[tuple] = []
        self._batches: list[pa.RecordBatch] = []
        self._hashes = array("q")

    def add_file(self, url: str, size: int | None) -> None:
        container = storage.as_text(url)
        key = storage.redact(container)
        self._add(key, None if key == container else container, "file", None, size, None, None)

    def add_archive(self, url: str, size: int | None, alone: bool) -> None:
        """Go through an archive. `alone`: it was named by the user, so that not being one is an error."""
        container = storage.as_text(url)
        if container in self._archives:
            return
        self._archives[container] = size or 0
        if kind_by_name(url) in self._whole:
            self._add(storage.redact(container), container, "archive", None, size, None, None)
            return
        before = len(self)
        try:
            kind, members = open_archive(url, self._limits)
            for member in members:
                self._add_member(container, kind, member)
        except NoImageColumnError:
            if alone:
                raise
            del self._archives[container]
            self.ignored[".parquet without images"] += 1
        except DamagedArchiveError:
            if alone and len(self) == before:
                raise
            self._add(storage.redact(container), container, "damaged", None, None, None, None)

    def _add_member(self, container: str, kind: str, member: Member | str) -> None:
        if isinstance(member, str):
            self.ignored[member] += 1
            return
        if (passed := passed_over_member(kind, member.name)) is not None:
            self.ignored[passed] += 1
            return
        self._add(member_key(container, member.name), container, kind, *member[1:])

    def _add(self, key: str, *values: object) -> None:
        self._rows.append((key, *values))
        if len(self._rows) == 16384:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = list(zip(*self._rows, strict=True))
            self._hashes.extend(map(hash, columns[0]))
            arrays = [pa.array(column, kind.type) for column, kind in zip(columns, TABLE, strict=True)]
            self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=TABLE))
            self._rows.clear()

    def __len__(self) -> int:
        return len(self._hashes) + len(self._rows)

    def finish(self) -> Listing:
        self._flush()
        table = pa.Table.from_batches(self._batches, TABLE).unify_dictionaries()
        self._batches.clear()
        hashes = np.frombuffer(self._hashes, np.int64)
        ordered = np.sort(hashes)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            table, dropped = _unique(table, np.flatnonzero(np.isin(hashes, repeated)), ordered)
            if dropped:
                self.ignored["named twice"] += dropped
        return Listing(table, dict(sorted(self.ignored.items())), self._archives)


def _unique(table: pa.Table, rows: NDArray[np.int64], hashes: NDArray[np.int64]) -> tuple[pa.Table, int]:
    """Drop a file that came up before; name an archive's second member of one name ~2, the third ~3.

    rows: those whose key may occur more than once, in order. hashes: of all keys, sorted; a new name that only seems to
    be taken is passed by.
    """
    suspects = table.select(["key", "kind"]).take(pa.array(rows))
    kept: Counter[str] = Counter()
    renamed: dict[int, str] = {}
    given: set[str] = set()
    keep = np.ones(table.num_rows, bool)
    for row, key, kind in zip(rows.tolist(), suspects["key"].to_pylist(), suspects["kind"].to_pylist(), strict=True):
        if kept[key] and kind in ("file", "damaged", "archive"):
            keep[row] = False
            continue
        kept[key] += 1
        if kept[key] > 1:
            number = kept[key]
            while f"{key}~{number}" in given or _has(hashes, hash(f"{key}~{number}")):
                number += 1
            renamed[row] = f"{key}~{number}"
            given.add(renamed[row])
    if renamed:
        table = table.set_column(0, "key", _with_names(table["key"], renamed))
    return table.filter(pa.array(keep)), int(len(keep) - keep.sum())


def _has(ordered: NDArray[np.int64], value: int) -> bool:
    at = int(np.searchsorted(ordered, value))
    return at < len(ordered) and int(ordered[at]) == value


def _with_names(keys: pa.ChunkedArray, renamed: dict[int, str]) -> pa.ChunkedArray:
    """The column with other names in some rows; chunks without any stay as they are."""
    chunks, start = [], 0
    rows = np.array(sorted(renamed))
    for chunk in keys.chunks:
        own = rows[slice(*np.searchsorted(rows, (start, start + len(chunk))))]
        if len(own):
            names = chunk.to_pylist()
            for row in own.tolist():
                names[row - start] = renamed[row]
            chunk = pa.array(names, pa.string())
        chunks.append(chunk)
        start += len(chunk)
    return pa.chunked_array(chunks, pa.string())


# --- Reading ----------------------------------------------------------------------------------------------------------

TRIES = 3
PAUSES_S = (0.2, 1.0)


def read_images(refs: Sequence[ImageRef], limits: Limits) -> Iterator[tuple[ImageRef, bytes | Failure]]:
    """Each ref with its bytes, or the reason why there are none: every ref once, in order.

    Refs that follow each other in one container share an open file, so hand them over in the order of the listing. A
    read that fails is tried three times. Memory holds one image at a time (of a Parquet file, some rows). A store that
    is down raises OutageError: it would else turn every image that is left into one that failed.
    """
    for (_, kind), group in itertools.groupby(refs, key=lambda ref: (ref.container, ref.kind)):
        if kind == "file":
            for ref in group:
                yield ref, _read_file(ref, limits)
        else:
            yield from _read_group(list(group), limits)


def _read_file(ref: ImageRef, limits: Limits) -> bytes | Failure:
    if ref.size is not None and ref.size > limits.max_image_bytes:
        return Failure(Reason.TOO_LARGE, f"{ref.size} bytes, over {limits.max_image_bytes}")
    for pause_s in (*PAUSES_S[: TRIES - 1], None):
        try:
            data = storage.read_bytes(ref.container, 0, limits.max_image_bytes + 1)
        except storage.OutageError:
            raise
        except OSError as error:
            if pause_s is None or is_final(error):
                return unreadable(error)
            time.sleep(pause_s)
        else:
            if len(data) > limits.max_image_bytes:
                return Failure(Reason.TOO_LARGE, f"over {limits.max_image_bytes} bytes")
            return data
    raise AssertionError("the last try returns")


def _read_group(refs: Sequence[ImageRef], limits: Limits) -> Iterator[tuple[ImageRef, bytes | Failure]]:
    done, tries, patience = 0, 0, TRIES
    while done < len(refs):
        try:
            for data in read_members(refs[done:], limits):
                yield refs[done], data
                done, tries, patience = done + 1, 0, TRIES
        except storage.OutageError:
            raise
        except OSError as error:
            tries += 1
            if is_final(error):
                yield from ((ref, unreadable(error)) for ref in refs[done:])
                return
            if tries < patience:
                time.sleep(PAUSES_S[tries - 1])
                continue
            # Given up on this one; the next gets a single try, or a dead store would cost a second for each member.
            yield refs[done], unreadable(error)
            done, tries, patience = done + 1, 0, 1


def is_final(error: OSError) -> bool:
    """Trying again will not help: not there, no right, not a file."""
    cause = error.__cause__ or error
    return isinstance(error, FileNotFoundError) or isinstance(cause, PermissionError | IsADirectoryError)


def unreadable(error: OSError) -> Failure:
    """The detail names no path: it would stand in every row, and in tables that others get."""
    if isinstance(error, FileNotFoundError):
        return Failure(Reason.UNREADABLE, "the file does not exist")
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    said = cause.strerror or (str(error).rpartition(": ")[2] if isinstance(error, storage.StorageError) else str(error))
    return Failure(Reason.UNREADABLE, storage.redact(" ".join(said.split()))[:160])
