"""One shard of a labelled set: annotations in, its parts on the store and its counts out; and leaks taken out of it.

The order of writing is that of `dataset_tools.shards`, and so is what a done marker means.
"""

import itertools
import json
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_tools import parquet, storage
from dataset_tools.counts import Counts
from dataset_tools.detection import Detector
from dataset_tools.importers import fer2013
from dataset_tools.importers.annotations import DROPPED, from_table
from dataset_tools.importers.step import ImportRecipe, import_image
from dataset_tools.listing import ImageRef
from dataset_tools.shards import done_marker
from dataset_tools.sources import read_images
from schemas.labels import LabelSet
from schemas.outcomes import Failure
from schemas.tables import SPLITS, LedgerRow, faces_schema, ledger_schema, to_table

LEAK = "its copy is in another split"


@dataclass(frozen=True)
class ImportTask:
    """What a worker needs to make one shard. rows: the shard's annotations, a table of LISTED. recipe_told: what the
    tables say of the recipe."""

    out: str
    shard: int
    shards: int
    rows: pa.Table
    labels: LabelSet
    recipe: ImportRecipe
    recipe_told: dict[str, object]


def run_shard(task: ImportTask, detector: Detector | None) -> Counts:
    """Make one shard and return its counts. Raises only what should stop the run: a store that takes no parts."""
    counts, ledger = Counts(), []
    schema = faces_schema(task.labels, {"recipe": task.recipe_told})
    annotations = list(from_table(task.rows))
    with parquet.FaceWriter(task.out, task.shard, task.shards, schema) as writer:
        bytes_of = read([one.ref for one in annotations], task.recipe)
        for annotation, (_, data) in zip(annotations, bytes_of, strict=True):
            result = import_image(annotation, data, task.recipe, detector)
            for face in result.faces:
                writer.add(face)
            ledger.append(result.ledger)
            counts.add_image(result.ledger, result.faces)
    _finish(task.out, task.shard, ledger, counts)
    return counts


def drop_faces(out: str, shard: int, shards: int, keys: Set[str]) -> Counts:
    """Take the faces of these images out of a shard that is done; their ledger rows tell so."""
    rows = [LedgerRow(**row) for row in parquet.read_part(parquet.ledger_part(out, shard)).to_pylist()]
    ledger = [_leaked(row) if row.key in keys and row.faces else row for row in rows]
    by_key, counts, counted = {row.key: row for row in ledger}, Counts(), set()
    storage.remove(done_marker(out, shard))
    urls = [parquet.data_part(out, split, shard, shards) for split in SPLITS]
    for url in [url for url in urls if storage.exists(url)]:
        kept = 0
        with storage.open_read(url) as file:
            schema = pq.read_schema(file)
        with parquet.FaceWriter(out, shard, shards, schema) as writer:
            for face in parquet.read_faces(url):
                if face.key not in keys:
                    writer.add(face)
                    counts.add_image(by_key[face.key], [face])
                    counted.add(face.key)
                    kept += 1
        if not kept:
            storage.remove(url)
    for row in ledger:
        if row.key not in counted:
            counts.add_image(row, [])
    _finish(out, shard, ledger, counts)
    return counts


def _leaked(row: LedgerRow) -> LedgerRow:
    return replace(row, faces=0, faces_screened=row.faces_screened + row.faces, detail=DROPPED + LEAK)


def _finish(out: str, shard: int, ledger: list[LedgerRow], counts: Counts) -> None:
    parquet.write_part(parquet.ledger_part(out, shard), to_table(ledger, ledger_schema()))
    marker = {"shard": shard} | counts.to_dict()
    storage.write_bytes(done_marker(out, shard), json.dumps(marker).encode())


def read(refs: list[ImageRef], recipe: ImportRecipe) -> Iterator[tuple[ImageRef, bytes | Failure]]:
    """The bytes of each ref, in order: of images as they are stored, of rows of FER-2013's csv their pixels."""
    for kind, group in itertools.groupby(refs, key=lambda ref: ref.kind):
        if kind == fer2013.CSV_ROW:
            yield from fer2013.read_rows(list(group))
        elif kind == "row":  # a row that names no file: its annotation says why
            yield from ((ref, b"") for ref in group)
        else:
            yield from read_images(list(group), recipe.faces.limits)
