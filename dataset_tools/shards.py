"""One shard of a collection: its images in, its parts on the store and its counts out. No engine is known here.

The order of writing is what makes a run resumable: data and YOLO files, then the ledger, then `done/NNNNN.json`, whose
existence means that the shard is complete. Every name and byte is decided by the input, so a shard that is run twice,
even at the same time, writes the same files.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from dataset_tools import parquet, storage, yolo
from dataset_tools.counts import Counts
from dataset_tools.detection import Detector
from dataset_tools.encoding import upright_jpeg
from dataset_tools.faces import ImageResult, Recipe, failed, process_image
from dataset_tools.sources import ImageRef, read_images
from schemas.labels import label_set
from schemas.outcomes import Failure, Reason
from schemas.tables import SPLITS, LedgerRow, faces_schema, ledger_schema, to_table

_DEATHS_BEFORE_FAILED = 2


@dataclass(frozen=True)
class YoloOptions:
    """labels: `off`, `boxes` or `pose` (boxes and five key points). images: whether upright copies are written."""

    labels: str = "boxes"
    images: bool = True


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to make one shard. retry: None makes the whole shard anew; otherwise only these keys are
    processed again, and all else is taken over from the parts there are. careful: note each image before touching it,
    so that one that kills its process is found and recorded."""

    out: str
    shard: int
    shards: int
    refs: tuple[ImageRef, ...]
    recipe: Recipe
    yolo: YoloOptions
    label_set: str
    retry: frozenset[str] | None = None
    careful: bool = False


def run_shard(task: ShardTask, detector: Detector, on_image: Callable[[Counts], None] = lambda _: None) -> Counts:
    """Make one shard and return its counts. Raises only what should stop the run: a store that does not take the parts.

    on_image: called after each image with the counts so far.
    """
    counts = Counts()
    ledger: list[LedgerRow] = []
    schema = faces_schema(label_set(task.label_set), {"recipe": task.recipe.to_dict()})
    with parquet.FaceWriter(task.out, task.shard, task.shards, schema) as writer:
        for result in _results(task, detector):
            for face in result.faces:
                writer.add(face)
            ledger.append(result.ledger)
            counts.add_image(result.ledger, result.faces)
            on_image(counts)
        if task.retry is not None:
            storage.remove(done_marker(task.out, task.shard))
    parquet.write_part(parquet.ledger_part(task.out, task.shard), to_table(ledger, ledger_schema()))
    if task.yolo.labels != "off":
        storage.flush_disks(task.out)
    marker = {"shard": task.shard} | counts.to_dict()
    storage.write_bytes(done_marker(task.out, task.shard), json.dumps(marker).encode())
    if task.careful:
        storage.remove(_journal(task))
    return counts


def done_marker(out: str, shard: int) -> str:
    return storage.join(out, "done", f"{shard:05d}.json")


def _results(task: ShardTask, detector: Detector) -> Iterator[ImageResult]:
    """The result of every image of the shard, in its order: processed now, or taken over from the parts there are."""
    if task.retry is None:
        yield from _process(task, task.refs, detector)
        return
    anew = _process(task, [ref for ref in task.refs if ref.key in task.retry], detector)
    kept_faces = {split: parquet.read_faces(url) for split, url in _own_parts(task)}
    for values in parquet.read_part(parquet.ledger_part(task.out, task.shard)).to_pylist():
        row = LedgerRow(**values)
        if row.key in task.retry:
            yield next(anew)
        else:
            faces = islice(kept_faces[row.split], row.faces) if row.faces and row.split else ()
            yield ImageResult(row, tuple(faces))


def _own_parts(task: ShardTask) -> Iterator[tuple[str, str]]:
    for split in SPLITS:
        url = parquet.data_part(task.out, split, task.shard, task.shards)
        if storage.exists(url):
            yield split, url


def _process(task: ShardTask, refs: Sequence[ImageRef], detector: Detector) -> Iterator[ImageResult]:
    deaths = _read_journal(task) if task.careful else {}
    for ref, data in read_images(refs, task.recipe.limits):
        if deaths.get(ref.key, 0) >= _DEATHS_BEFORE_FAILED:
            yield failed(ref.key, Failure(Reason.DETECTOR_CRASH, "its worker process died each time"))
            continue
        if task.careful:
            deaths[ref.key] = deaths.get(ref.key, 0) + 1
            storage.write_bytes(_journal(task), json.dumps(deaths).encode())
        yield _process_one(task, ref.key, data, detector)
        if task.careful:
            deaths.pop(ref.key)


def _process_one(task: ShardTask, key: str, data: bytes | Failure, detector: Detector) -> ImageResult:
    """The result without its pixels: two large photos at a time would be one too many."""
    result = process_image(key, data, detector, task.recipe)
    _write_yolo(task, result, data)
    return replace(result, image=None)


def _write_yolo(task: ShardTask, result: ImageResult, data: bytes | Failure) -> None:
    row = result.ledger
    if task.yolo.labels == "off" or result.image is None or isinstance(data, Failure):
        return
    height, width = result.image.pixels.shape[:2]
    name, split = yolo.image_name(row.key), row.split or SPLITS[0]
    if task.yolo.images:
        picture = upright_jpeg(data, result.image)
        storage.write_bytes(yolo.image_url(task.out, split, name), picture, flush=False)
    lines = yolo.label_lines(result.found, width, height, pose=task.yolo.labels == "pose")
    storage.write_bytes(yolo.label_url(task.out, split, name), lines.encode(), flush=False)


def _journal(task: ShardTask) -> str:
    return storage.join(task.out, "attempts", f"{task.shard:05d}.json")


def _read_journal(task: ShardTask) -> dict[str, int]:
    """How often the process died while it worked on an image, by key: what was noted and not taken back."""
    if not storage.exists(_journal(task)):
        return {}
    return json.loads(storage.read_bytes(_journal(task)))
