"""The images of a source as one table: where each lies, in a form that a million of them fit in.

It is made once and kept with the run, so that resuming never lists again, and its fingerprint says whether two runs
mean the same images. A row becomes an ImageRef, which travels to workers.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_tools import storage


class SourceError(ValueError):
    """A source that cannot be read as one: the message is one line for the user."""


class DamagedArchiveError(SourceError):
    """The rest of an archive cannot be read; what came before it can."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where the bytes of one image lie; small, and picklable.

    key: its name in every table: the file's URI, ARCHIVE#MEMBER or FILE.parquet#ROW; unique in a listing. container:
    the file to open, the key itself for a plain file. kind: how to open it, of KINDS; "archive" is a whole one that was
    not gone through. offset: of the data in a tar (unpacked, for a compressed one), of the local header in a zip, the
    row in a Parquet file. size: bytes of the image file as declared, None where only reading tells. packed and crc32:
    of a zip's member, deflated size and checksum.
    """

    key: str
    container: str
    kind: str = "file"
    offset: int | None = None
    size: int | None = None
    packed: int | None = None
    crc32: int | None = None


class Member(NamedTuple):
    """One entry of an archive that may be an image. offset None: it cannot be read (a sparse member)."""

    name: str
    offset: int | None
    size: int | None
    packed: int | None = None
    crc32: int | None = None


TABLE = pa.schema(
    [
        ("key", pa.string()),
        ("container", pa.dictionary(pa.int32(), pa.string())),  # null for a plain file, whose key it is
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("packed", pa.int64()),
        ("crc32", pa.int64()),
    ]
)

_GROUP_ROWS = 16384
"""Of the listing on the store: a worker that wants some rows reads no more than it must."""


@dataclass(frozen=True)
class Listing:
    """Every image of a source. table: the columns of ImageRef, a row an image. ignored: how many things were passed
    over, by suffix or kind. archives: bytes of each archive file that was gone through."""

    table: pa.Table
    ignored: dict[str, int] = field(default_factory=dict)
    archives: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def total_bytes(self) -> int:
        """Declared bytes of the images; those in Parquet files count with their file."""
        parquet = sum(size for url, size in self.archives.items() if url.lower().endswith(".parquet"))
        return int(pc.sum(self.table["size"]).as_py() or 0) + parquet

    def refs(self, start: int = 0, stop: int | None = None) -> list[ImageRef]:
        """The images from row `start` to before row `stop`."""
        return _refs(self.table.slice(start, None if stop is None else max(0, stop - start)))

    def fingerprint(self) -> str:
        """sha256 over keys and sizes, and the sizes of the archives: the same images, the same digits."""
        digest = hashlib.sha256()
        for batch in self.table.select(["key", "size"]).to_batches(max_chunksize=16384):
            pairs = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
            digest.update("".join(f"{len(key)}:{key}:{size}\n" for key, size in pairs).encode())
        digest.update(json.dumps(self.archives, sort_keys=True).encode())
        return digest.hexdigest()

    def to_parquet(self, url: str) -> None:
        """Write the listing as one file, whole or not at all."""
        told = {"ignored": self.ignored, "archives": self.archives}
        with storage.open_write(url) as file:
            table = self.table.replace_schema_metadata({"facemill": json.dumps(told)})
            pq.write_table(table, file, compression="zstd", row_group_size=_GROUP_ROWS)

    @classmethod
    def from_parquet(cls, url: str) -> "Listing":
        """Read what `to_parquet` wrote. Raises StorageError, SourceError."""
        with storage.open_read(url, block_bytes=8 * 2**20) as file:
            table = pq.read_table(file)
        told = json.loads((table.schema.metadata or {}).get(b"facemill", b"{}"))
        if table.schema.names != TABLE.names:
            raise SourceError(f"{storage.redact(url)} is not a listing that this program wrote")
        return cls(table.replace_schema_metadata(None).cast(TABLE), told["ignored"], told["archives"])


def read_refs(url: str, start: int, stop: int) -> list[ImageRef]:
    """The images from row `start` to before row `stop` of a listing on the store, reading only what holds them."""
    groups = list(range(start // _GROUP_ROWS, -(-stop // _GROUP_ROWS)))
    with storage.open_read(url) as file:
        table = pq.ParquetFile(file).read_row_groups(groups)
    return _refs(table.slice(start - groups[0] * _GROUP_ROWS, stop - start))


def _refs(rows: pa.Table) -> list[ImageRef]:
    columns = [rows[name].to_pylist() for name in TABLE.names]
    return [ImageRef(key, container or key, *rest) for key, container, *rest in zip(*columns, strict=True)]


def short(error: Exception) -> str:
    """An error's text as part of one line."""
    return " ".join(str(error).split())[:100] or type(error).__name__
