"""Tables to Parquet parts and back. Faces are rows of a few kilobytes of JPEG, so the writer is set for that.

Image bytes stay uncompressed (JPEG does not shrink and a reader can map them), everything else is zstd; row groups of
500 faces let a reader shuffle and skip; content-defined chunking makes two versions of a data set share pages in
stores that deduplicate; the page index lets a reader fetch one row.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_tools import storage
from schemas.tables import SPLITS, FaceRow, to_table

ROW_GROUP_ROWS = 500
_READ_ROWS = 64


class FaceWriter:
    """The data parts of one shard, one for each split that has faces, written as the faces come.

    Holds at most a row group of faces in memory for each split. All parts appear when the block ends well, none when it
    raises.
    """

    def __init__(self, out: str, shard: int, shards: int, schema: pa.Schema) -> None:
        self._out, self._shard, self._shards, self._schema = out, shard, shards, schema
        self._waiting: dict[str, list[FaceRow]] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._files = ExitStack()

    def __enter__(self) -> "FaceWriter":
        return self

    def add(self, row: FaceRow) -> None:
        rows = self._waiting.setdefault(row.split, [])
        rows.append(row)
        if len(rows) == ROW_GROUP_ROWS:
            self._flush(row.split)

    def _flush(self, split: str) -> None:
        if split not in self._writers:
            url = data_part(self._out, split, self._shard, self._shards)
            file = self._files.enter_context(storage.open_write(url))
            self._writers[split] = pq.ParquetWriter(file, self._schema, **_writer_options(self._schema))
        self._writers[split].write_table(to_table(self._waiting[split], self._schema))
        self._waiting[split] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None:
            try:
                for split in [split for split, rows in self._waiting.items() if rows]:
                    self._flush(split)
                for writer in self._writers.values():
                    writer.close()
            except BaseException as failure:
                self._files.__exit__(type(failure), failure, failure.__traceback__)
                raise
        return self._files.__exit__(kind, error, trace)


def write_part(url: str, table: pa.Table) -> None:
    """One part, whole or not at all, on a disk or an object store. Replaces a part of the same name."""
    with storage.open_write(url) as file, pq.ParquetWriter(file, table.schema, **_writer_options(table.schema)) as part:
        part.write_table(table)


def read_part(url: str, columns: list[str] | None = None) -> pa.Table:
    """One part, or some of its columns."""
    with storage.open_read(url) as file:
        return pq.ParquetFile(file).read(columns=columns)


def read_faces(url: str) -> Iterator[FaceRow]:
    """The faces of one part in their order, a few at a time."""
    with storage.open_read(url) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_READ_ROWS):
            yield from (FaceRow(**row) for row in batch.to_pylist())


def data_part(out: str, split: str, shard: int, shards: int) -> str:
    """The faces of one shard that belong to one split."""
    return storage.join(out, "data", f"{split}-{shard:05d}-of-{shards:05d}.parquet")


def ledger_part(out: str, shard: int) -> str:
    """The outcomes of one shard's images."""
    return storage.join(out, "ledger", f"shard-{shard:05d}.parquet")


def parts(folder: str) -> list[str]:
    """The Parquet files under a folder, sorted; none where there is no folder: a run may find no face at all."""
    if not storage.is_folder(folder):
        return []
    return sorted(url for url, _ in storage.list_files(folder) if url.endswith(".parquet"))


def data_parts(out: str) -> Iterator[tuple[str, str]]:
    """(split, part) for every data part of a data set, in order of split and shard."""
    found = parts(storage.join(out, "data"))
    for split in SPLITS:
        yield from ((split, url) for url in found if url.rsplit("/", 1)[-1].startswith(f"{split}-"))


def _writer_options(schema: pa.Schema) -> dict[str, Any]:
    compression = {_leaf(column): "zstd" for column in schema if column.name != "image"}
    if "image" in schema.names:
        compression |= {"image.bytes": "none", "image.path": "zstd"}
    return {"compression": compression, "write_page_index": True, "use_content_defined_chunking": True}


def _leaf(column: pa.Field) -> str:
    """The path of a column's leaf: Parquet names every level of a nested list."""
    path, kind = column.name, column.type
    while pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path
