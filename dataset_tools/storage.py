"""Files on a disk or in an object store, by one name: an absolute POSIX path or a URL, through fsspec.

A file appears whole or not at all, so that its existence may mean that it is complete. What fails raises StorageError:
one line that names the next step and never shows a credential. Nothing is tried again here: the clients of the stores
do that, five times and more, also for a read that breaks off in the middle (tests/test_faults.py).
"""

import errno
import glob as glob_module
import io
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec

from dataset_tools import store_pages
from dataset_tools.locations import (
    DeniedError,
    MissingFileError,
    OutageError,
    StorageError,
    as_text,
    is_local,
    join,
    normalize,
    protocol_of,
    redact,
)

# Names are part of this module for everybody else: `storage` is the one door to files.
__all__ = [
    "DeniedError",
    "MissingFileError",
    "OutageError",
    "StorageError",
    "arrow_filesystem",
    "as_text",
    "exists",
    "file_size",
    "flush_disks",
    "glob",
    "is_folder",
    "is_local",
    "join",
    "list_files",
    "normalize",
    "open_read",
    "open_write",
    "read_bytes",
    "read_each",
    "redact",
    "remove",
    "remove_partials",
    "remove_tree",
    "write_bytes",
]

_EXTRAS = {"s3": "s3:// needs the extra s3: uv pip install 'facemill[s3]'"}
_CREDENTIALS = {
    "gs": " (log in: gcloud auth application-default login)",
    "s3": " (log in: aws configure; a public bucket: FSSPEC_S3_ANON=true)",
}
_PART = ".part"
_READERS = 32


def exists(url: str) -> bool:
    """Whether a file or a folder (a prefix, in an object store) has this name now."""
    if is_local(url):
        return os.path.lexists(normalize(url))
    with _told(url, "look up"):
        fs, path = _filesystem(url)
        return bool(fs.exists(path))


def is_folder(url: str) -> bool:
    """Whether this is a folder, or a prefix of an object store that holds something."""
    if is_local(url):
        return Path(normalize(url)).is_dir()
    if protocol_of(url) in ("http", "https"):
        return False  # fsspec would fetch the page and look for links
    with _told(url, "look up"):
        fs, path = _filesystem(url)
        if protocol_of(normalize(url)) == "s3":
            return store_pages.holds_something(fs, path)
        return bool(fs.isdir(path))


def file_size(url: str) -> int | None:
    """Bytes of a file, None where the store does not say. Raises MissingFileError."""
    with _told(url, "look up"):
        if is_local(url):
            return Path(normalize(url)).stat().st_size
        fs, path = _filesystem(url)
        size = fs.info(path).get("size")
        return None if size is None else int(size)


@contextmanager
def open_read(url: str, block_bytes: int = 256 * 1024) -> Iterator[IO[bytes]]:
    """A binary, seekable file. From a store, `block_bytes` come with each request and nothing is kept on disk."""
    with _told(url, "read"):
        if is_local(url):
            file: IO[bytes] = _open_regular(normalize(url))
        else:
            fs, path = _filesystem(url)
            remote = fs.open(path, "rb", block_size=block_bytes, cache_type="readahead")
            file = io.BufferedReader(_StoreFile(remote, url))
    with file:
        yield file


def read_bytes(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes from `start` to before `end` (not counted from the back), in one ranged request; all, without them.

    A range that begins or ends past the end gives what there is.
    """
    with _told(url, "read"):
        if is_local(url):
            with _open_regular(normalize(url)) as file:
                size = os.fstat(file.fileno()).st_size  # asked for more, read() would make room for all of it first
                first = min(start or 0, size)
                file.seek(first)
                return file.read((size if end is None else max(first, min(end, size))) - first)
        fs, path = _filesystem(url)
        try:
            return bytes(fs.cat_file(path, start=start, end=end))
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            # Stores answer a range of an empty object, or past the end, with an error (416) of their own class.
            if not re.search(r"(?i)range|not satisfiable|416", str(error)):
                raise
            size = fs.info(path).get("size")
            if size is not None and (start or 0) >= size:
                return b""
            raise


def read_each(urls: Iterable[str]) -> Iterator[bytes]:
    """The bytes of many small files, in order; from a store some at a time, or each would cost a round trip."""
    named = list(urls)
    if all(is_local(url) for url in named):
        yield from map(read_bytes, named)
        return
    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(read_bytes, named)


def list_files(folder: str) -> Iterator[tuple[str, int]]:
    """(URL, bytes) of every file below `folder`, at any depth, sorted by URL; hidden ones too, the caller chooses.

    Symbolic links are followed and no folder is entered twice, so loops end. A dangling link is listed with 0 bytes: it
    is for the reader to fail on. Devices, pipes and sockets are left out. Nothing is held
    but a folder's names, or a page of the store's. A folder that may not be listed raises StorageError: what it holds
    would be lost without a word.
    """
    if is_local(folder):
        yield from _list_local(normalize(folder), set())
        return
    base = normalize(folder)
    with _told(folder, "list"):
        fs, path = _filesystem(base)
    pages = store_pages.pages(fs, path, protocol_of(base))
    while True:
        with _told(folder, "list"):
            page = next(pages, None)
        if page is None:
            return
        for name, size in page:
            # An empty object named like a folder is how web consoles make folders.
            if name and not name.endswith("/"):
                yield f"{base.rstrip('/')}/{name}", size


def glob(pattern: str) -> list[tuple[str, int | None]]:
    """(URL, bytes) of what matches (`*`, `?`, `[…]`, `**` for any depth), sorted; bytes is None for a folder."""
    pattern = normalize(pattern)
    if is_local(pattern):
        found = sorted(glob_module.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return [(name, None if Path(name).is_dir() else _size_or_0(name)) for name in found]
    base = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    with _told(base, "list"):
        fs, path = _filesystem(pattern)
        prefix = _filesystem(base)[1].rstrip("/")
        matches = fs.glob(path, detail=True)
    return sorted(
        (base + name.rstrip("/").removeprefix(prefix), None if info["type"] == "directory" else int(info["size"] or 0))
        for name, info in matches.items()
    )


def _size_or_0(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0  # a dangling link: for the reader to fail on


def write_bytes(url: str, data: bytes, *, flush: bool = True) -> None:
    """Write a file whole or not at all: a rename on a disk, one upload to a store. Replaces what was there.

    flush: wait until a disk has it. A writer of many small files leaves that to one `flush_disks` at the end, since a
    wait of some 5 ms a file would cost more than finding the faces.
    """
    if is_local(url):
        with open_write(url, flush=flush) as file:
            file.write(data)
        return
    with _told(url, "write"):
        fs, path = _filesystem(url)
        fs.pipe_file(path, data)


def flush_disks(url: str) -> None:
    """Wait until the disks here have all that was written without waiting; nothing to do for a store."""
    if is_local(url):
        os.sync()


@contextmanager
def open_write(url: str, *, flush: bool = True) -> Iterator[IO[bytes]]:
    """A local binary file for a streaming writer, published under `url` when the block ends, and never on an exception.

    On a disk it is a hidden file in the same folder (made if need be), flushed and renamed; for a store a temporary
    file here, then uploaded.
    """
    if is_local(url):
        with _told(url, "write"):
            target = Path(normalize(url))
            part = target.with_name(f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")
            file = _create(part)
        try:
            with file:
                yield file
                with _told(url, "write"):
                    file.flush()
                    if flush:
                        os.fsync(file.fileno())
            with _told(url, "write"):
                part.replace(target)
                if flush:
                    _sync_folder(target.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return
    with tempfile.NamedTemporaryFile(suffix=_PART) as spool:
        yield spool
        spool.flush()
        with _told(url, "write"):
            fs, path = _filesystem(url)
            fs.put_file(spool.name, path)


def _create(path: Path) -> IO[bytes]:
    """Looks for the folder only where it turns out to be missing: of many small files that takes a notable part."""
    try:
        return path.open("xb+")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb+")


def remove(url: str) -> None:
    """Remove one file; that it is not there is fine."""
    with _told(url, "remove"), suppress(FileNotFoundError):
        if is_local(url):
            Path(normalize(url)).unlink()
        else:
            fs, path = _filesystem(url)
            fs.rm_file(path)


def remove_tree(url: str) -> None:
    """Remove a folder and all below it; that it is not there is fine. Refuses a whole disk, home folder or bucket."""
    name = normalize(url)
    too_much = name in ("/", str(Path.home())) if is_local(name) else "/" not in name.split("://", 1)[1]
    if too_much and not name.startswith("memory://"):
        raise StorageError(f"will not remove all of {redact(name)}: name a folder inside it")
    with _told(url, "remove"), suppress(FileNotFoundError):
        if is_local(name):
            shutil.rmtree(name)
        else:
            fs, path = _filesystem(name)
            fs.rm(path, recursive=True)


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a store for Arrow, and the URL's name in it: the same client and the same rights as here.

    Arrow's own clients read other settings: they know no endpoint of GCS but Google's.
    """
    import pyarrow.fs  # for training alone

    fs, path = _filesystem(url)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def remove_partials(folder: str) -> int:
    """Remove what killed writers left under a local folder, and say how many; for when no other writer runs there."""
    removed = 0
    if is_local(folder) and Path(normalize(folder)).is_dir():
        for path in Path(normalize(folder)).rglob(f".*{_PART}"):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and its name for it. Listings are never cached: others write meanwhile."""
    name = normalize(url)
    protocol = protocol_of(name)
    if protocol == "gs":
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of what it also raises
    if protocol == "gs" and "STORAGE_EMULATOR_HOST" in os.environ:
        # gcsfs asks Google's control plane for the bucket's kind, which no emulator answers: a wait of 60 s.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        fs, path = fsspec.core.url_to_fs(name, use_listings_cache=False)
    except ImportError as error:
        step = _EXTRAS.get(protocol, f"{protocol}:// needs another package: {error}")
        raise StorageError(step) from None
    except ValueError as error:
        if "not known" not in str(error):
            raise
        raise StorageError(
            f"unknown protocol {protocol}://: use a local path, gs://, s3:// or another that fsspec knows"
        ) from None
    return fs, str(path)


@contextmanager
def _told(url: str, doing: str) -> Iterator[None]:
    """Turn what a disk or a store raises into a StorageError of one line."""
    try:
        yield
    except (StorageError, GeneratorExit):
        raise
    except FileNotFoundError:
        # An object store has no folders that could be missing: a write there misses its bucket.
        what = "its bucket does not exist" if doing == "write" and not is_local(url) else "it does not exist"
        raise MissingFileError(f"cannot {doing} {redact(url)}: {what}") from None
    except Exception as error:
        of_a_store = type(error).__module__.partition(".")[0] in _STORE_PACKAGES and not is_local(url)
        if not isinstance(error, OSError) and not of_a_store:
            raise
        raise _translated(url, doing, error) from error


def _translated(url: str, doing: str, error: Exception) -> StorageError:
    what = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    what = redact(" ".join(what.split()))[:300].removesuffix(".")
    line = f"cannot {doing} {redact(url)}: {what}"
    if isinstance(error, PermissionError) or re.search(r"(?i)forbidden|access ?denied|credential|\b40[13]\b", what):
        return DeniedError(
            f"{line}; check your rights there" + ("" if is_local(url) else _CREDENTIALS.get(protocol_of(url), ""))
        )
    # Each web address has a server of its own, and one that is gone says nothing about the next.
    if not is_local(url) and protocol_of(url) not in ("http", "https") and _is_outage(error):
        return OutageError(line)
    return StorageError(line)


def _is_outage(error: Exception) -> bool:
    """No connection, no answer in time, or one that says that the store itself is at fault (429 and 5xx)."""
    answer = getattr(error.__cause__, "response", None)  # s3fs: of botocore's error
    status = answer["ResponseMetadata"].get("HTTPStatusCode") if answer else getattr(error, "code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return any(f"{kind.__module__.partition('.')[0]}.{kind.__name__}" in _NO_ANSWER for kind in type(error).__mro__)


def _open_regular(path: str) -> IO[bytes]:
    """Opening a pipe would wait for ever, so nothing but a regular file is opened."""
    mode = os.stat(path).st_mode  # noqa: PTH116 (a Path costs more than the call)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device, pipe or socket, not a file", path)
    return open(path, "rb")  # noqa: PTH123


class _StoreFile(io.RawIOBase):
    """A file of a store whose errors are StorageErrors."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _told(self._url, "read"):
            data = self._file.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _told(self._url, "read"):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _list_local(folder: str, entered: set[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    with _told(folder, "list"):
        identity = os.stat(folder)  # noqa: PTH116
        if (identity.st_dev, identity.st_ino) in entered:
            return
        entered.add((identity.st_dev, identity.st_ino))
        with os.scandir(folder) as entries:
            # A folder sorts as "name/", so that the walk gives whole paths in order. Names only: entries weigh more.
            names = sorted(entry.name + "/" if entry.is_dir() else entry.name for entry in entries)
    for name in names:
        path = f"{folder.rstrip('/')}/{name}"
        if name.endswith("/"):
            yield from _list_local(path[:-1], entered)
            continue
        try:
            found = os.stat(path)  # noqa: PTH116
        except OSError:
            yield path, 0
            continue
        if stat.S_ISREG(found.st_mode):
            yield path, found.st_size


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_NO_ANSWER = {
    "aiohttp.ClientError",
    "botocore.HTTPClientError",
    "botocore.ConnectionError",
    "requests.RequestException",
}
_STORE_PACKAGES = {"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google", "s3fs"}
