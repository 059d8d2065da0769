"""A whole archive in, every image with its bytes out, in one pass: for those that cannot be entered in the middle, and
where there are more archives than workers.

An index would cost a request for each member of a remote tar, and unpack a compressed one twice. Keys, order and what
is passed over are those of the listing (`sources.list_images`), so either way gives the same rows.
"""

from collections.abc import Iterator
from itertools import islice
from time import sleep
from typing import IO

from dataset_tools import archives, sources, storage
from dataset_tools.limits import Limits
from dataset_tools.listing import DamagedArchiveError, ImageRef, Member, SourceError
from schemas.outcomes import Failure, Reason

_SKIP_BYTES = 2**20
_BATCH = 1024

Streamed = tuple[ImageRef, bytes | Failure] | str
"""An image with its bytes or why there are none; or, as a str, what kind of thing was passed over."""


def stream_archive(archive: ImageRef, limits: Limits) -> Iterator[Streamed]:
    """Every member of an archive (a ref of kind "archive"). Raises OutageError alone, for a store that is down.

    What is wrong with the archive itself, a bound that it passes included, is a failure with the archive's own key
    after the members before it. A store that fails is asked three times. Memory holds one image at a time.
    """
    done = tries = 0
    while True:
        try:
            for item in islice(_once(archive, limits), done, None):
                yield item
                done, tries = done + 1, 0
            return
        except storage.OutageError:
            raise
        except OSError as error:
            tries += 1
            if tries == sources.TRIES or sources.is_final(error):
                yield archive, sources.unreadable(error)
                return
            sleep(sources.PAUSES_S[tries - 1])


def _once(archive: ImageRef, limits: Limits) -> Iterator[Streamed]:
    try:
        kind = archives.archive_kind(archive.container)
        yield from (_indexed if kind in ("zip", "parquet") else _walked)(archive, kind, limits)
    except archives.NoImageColumnError:
        yield ".parquet without images"
    except DamagedArchiveError:
        yield archive, Failure(Reason.UNREADABLE, "the archive is damaged: what follows its last member is lost")
    except SourceError as error:  # a bound; the message names the archive, as the key does
        yield archive, Failure(Reason.TOO_LARGE, str(error).removeprefix(storage.redact(archive.container)).strip())


def _indexed(archive: ImageRef, kind: str, limits: Limits) -> Iterator[Streamed]:
    """Its own directory says where all members lie."""
    names = _Names()
    _, members = archives.open_archive(archive.container, limits)
    while batch := list(islice(members, _BATCH)):
        refs = [_named(archive, kind, member, names) for member in batch]
        yield from (ref for ref in refs if isinstance(ref, str))
        yield from sources.read_images([ref for ref in refs if isinstance(ref, ImageRef)], limits)


def _walked(archive: ImageRef, kind: str, limits: Limits) -> Iterator[Streamed]:
    names = _Names()
    with archives.open_tar(archive.container, kind) as file:
        forward = _Forward(file)
        for member in archives.bounded(archives.walk_tar(forward, archive.container), archive.container, limits):  # type: ignore[arg-type]
            ref = _named(archive, kind, member, names)
            yield ref if isinstance(ref, str) else (ref, archives.read_member(forward, ref, limits))  # type: ignore[arg-type]


def _named(archive: ImageRef, kind: str, member: Member | str, names: "_Names") -> ImageRef | str:
    if isinstance(member, str):
        return member
    passed = sources.passed_over_member(kind, member.name)
    if passed is not None:
        return passed
    return ImageRef(
        names.unique(sources.member_key(archive.container, member.name)), archive.container, kind, *member[1:]
    )


class _Names:
    """Keys that are unique in the archive: a second member of one name is ~2, as in a listing. Kept as hashes, since a
    million names would be too much."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def unique(self, key: str) -> str:
        number = self._seen.get(hash(key), 0) + 1
        if number == 1:
            self._seen[hash(key)] = 1
            return key
        while hash(f"{key}~{number}") in self._seen:
            number += 1
        self._seen[hash(key)] = number
        self._seen[hash(f"{key}~{number}")] = 1
        return f"{key}~{number}"


class _Forward:
    """A file that is only ever read forwards, for whoever believes that he can seek in it.

    tarfile goes back by one byte before each header, and that alone would make gzip unpack everything again.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._at = file, 0
        self._last, self._back = b"", False

    def tell(self) -> int:
        return self._at - self._back

    def seek(self, position: int) -> int:
        if position == self._at - 1 and self._last:
            self._back = True
            return position
        self._back = False
        if position < self._at:
            raise ValueError(f"the archive leads back from byte {self._at} to {position}")
        while self._at < position:
            if not self._read(min(_SKIP_BYTES, position - self._at)):
                break  # as a file that is sought past its end: the next read gives nothing
        return position

    def read(self, size: int) -> bytes:
        if not size:
            return b""
        if self._back:
            self._back = False
            return self._last + self._read(size - 1)
        return self._read(size)

    def _read(self, size: int) -> bytes:
        data = self._file.read(size) if size else b""
        self._at += len(data)
        self._last = data[-1:] or self._last
        return data
