"""A data set folder in, batches of decoded faces out: the feed of one worker, which never keeps a step waiting.

Faces are decoded once, through `dataset_tools.prepare`, and stay in memory as uint8 when they fit; a set that does not
is streamed, row groups in shuffled order through a shuffle buffer. The order is drawn from (seed, epoch, rank) alone,
so an epoch that is repeated after a death is the same epoch. Short batches are filled up with faces of weight 0: real
ones, since blank ones would shift BatchNorm's statistics.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataset_tools import parquet, storage
from dataset_tools.images import DecodedImage, decode
from dataset_tools.limits import Limits
from dataset_tools.prepare import prepare
from schemas.model import ModelSpec
from schemas.tables import facemill_metadata
from train.votes import soft_targets

_DECODERS = 2
_CHUNK_FACES = 256
_BUFFER_FACES = 8192


class DataError(ValueError):
    """A folder that is no data set, or that cannot be trained on; one line that names the next step."""


class Batch(NamedTuple):
    """images: (n, side, side, channels) uint8. targets: (n, classes) float32. weights: (n,) float32, 0 for a filler."""

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class DataSet:
    """What a data set folder says of itself. crop: the recipe of its crops. fingerprint: of its faces."""

    url: str
    label_set: str
    label_names: tuple[str, ...]
    crop: dict[str, Any]
    fingerprint: str


@dataclass(frozen=True)
class Fold:
    """Validation is the `number`-th of `count` parts of training and validation faces, by photo."""

    number: int
    count: int
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """Labelled faces of one split: where each stands, and its target. group: its row group, counted over all parts."""

    parts: tuple[str, ...]
    part: NDArray[np.int32]
    row: NDArray[np.int64]
    group: NDArray[np.int32]
    targets: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.part)

    def take(self, chosen: NDArray[Any]) -> "Rows":
        """These rows only, by index or mask."""
        own = (getattr(self, name)[chosen] for name in ("part", "row", "group", "targets", "labels"))
        return Rows(self.parts, *own)

    def counts(self) -> NDArray[np.int64]:
        """Faces of each class, (classes,)."""
        return np.bincount(self.labels, minlength=self.targets.shape[1])


@dataclass(frozen=True)
class Feed:
    """One worker's share of a split. rows: faces in it. batch: faces in each batch. batches(epoch, steps): exactly
    `steps` batches, all of one size. unreadable: faces that could not be decoded, and are left out."""

    rows: int
    batch: int
    batches: Callable[[int, int], Iterator[Batch]]
    unreadable: int = 0


def describe(url: str) -> DataSet:
    """Label set, crops and fingerprint of a data set folder. Raises DataError."""
    url = storage.normalize(url)
    parts = [part for _, part in parquet.data_parts(url)]
    if not parts:
        raise DataError(f"{url} is no data set: it has no data/train-*.parquet (make one with just import-labels)")
    with storage.open_read(parts[0]) as file:
        ours = facemill_metadata(pq.ParquetFile(file).schema_arrow)
    if "label_names" not in ours:
        raise DataError(f"{url} was not written by facemill: import it with just import-labels --format csv")
    crop = ours.get("recipe", {}).get("crop", ours.get("crop", {}))
    return DataSet(url, ours["label_set"], tuple(ours["label_names"]), crop, _fingerprint(url, parts))


def read_rows(
    data: DataSet, split: str, fold: Fold | None = None, *, soft: float = 0.0, translate: bool = False
) -> Rows:
    """The labelled faces of `train` or `validation`, in the order of the data set.

    soft, translate: part of the votes in a target, and whether they are translated first (train.votes). Only small
    columns are read. Raises DataError when no face has a label.
    """
    classes = len(data.label_names)
    wanted = ("train", "validation") if fold else (split,)
    found: list[tuple[NDArray[Any], ...]] = []
    parts: list[str] = []
    groups = 0
    for own_split, url in parquet.data_parts(data.url):
        if own_split not in wanted:
            continue
        with storage.open_read(url) as file:
            reader = pq.ParquetFile(file)
            sizes = [reader.metadata.row_group(group).num_rows for group in range(reader.metadata.num_row_groups)]
            columns = ["label", "source_phash", *(["votes"] if soft else [])]
            table = reader.read(columns=columns)
        labels = table["label"].fill_null(-1).to_numpy()
        keep = labels >= 0
        if fold:
            keep &= _in_fold(table["source_phash"].to_pylist(), fold) == (split == "validation")
        if keep.any() and labels.max() >= classes:
            raise DataError(f"{url} has label {labels.max()}, but {data.label_set} has {classes} classes")
        at = np.flatnonzero(keep)
        shares = _shares(table["votes"].to_pylist(), classes, url) if soft else np.zeros((len(labels), classes), "f4")
        group = groups + np.repeat(np.arange(len(sizes)), sizes)
        found.append((np.full(len(at), len(parts)), at, group[at], shares[at], labels[at]))
        parts.append(url)
        groups += len(sizes)
    if not any(len(one[0]) for one in found):
        step = (
            "import labels with just import-labels"
            if split == "train"
            else "split with --split 0.8,0.1,0.1 or use --folds"
        )
        raise DataError(f"{data.url} has no labelled face in its {split} split: {step}")
    part, row, group, shares, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    targets = soft_targets(shares, labels, soft, translate=translate)
    return Rows(tuple(parts), part.astype(np.int32), row, group.astype(np.int32), targets, labels)


def class_factors(counts: NDArray[np.int64], power: float) -> NDArray[np.float32]:
    """A weight for each class, (classes,): count to the minus power, scaled so that the mean weight of a face is 1."""
    present = counts > 0
    raw = np.where(present, np.maximum(counts, 1).astype(np.float64) ** -power, 0.0)
    return (raw * counts.sum() / (raw * counts).sum()).astype(np.float32)


def make_feed(
    rows: Rows,
    spec: ModelSpec,
    batch: int,
    *,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    draw: NDArray[np.float32] | None = None,
    memory_bytes: float = 4e9,
) -> Feed:
    """The share of worker `rank` of `world`, in batches of `batch` faces. draw: class factors for balanced sampling.

    Whether the set is kept or streamed is decided from the size of all shares together, so all workers decide alike.
    """
    face_bytes = spec.input_px**2 * (1 if spec.colour == "grey" else 3)
    if len(rows) * face_bytes / world <= memory_bytes:
        mine = rows.take(np.arange(rank, len(rows), world))
        images, readable = load(mine, spec)
        kept = mine.take(readable)
        chance = None if draw is None else draw[kept.labels]
        return Feed(
            len(kept),
            batch,
            _from_memory(images, kept.targets, batch, seed, rank, shuffle, chance),
            int((~readable).sum()),
        )
    if draw is not None:
        raise DataError("balance = sampling needs the faces in memory: raise memory_gb, or use balance = weights")
    mine = rows.take(rows.group % world == rank)
    buffered = int(np.clip(memory_bytes / face_bytes, 2 * batch, _BUFFER_FACES))
    return Feed(len(mine), batch, _from_stream(mine, spec, batch, seed, rank, buffered if shuffle else 1))


def load(rows: Rows, spec: ModelSpec) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """All of these faces, (readable, side, side, channels), in their order, and which of the rows could be read."""
    images = np.empty((len(rows), spec.input_px, spec.input_px, 1 if spec.colour == "grey" else 3), np.uint8)
    readable = np.zeros(len(rows), bool)
    filled = 0
    for at, face in _decoded(rows, spec, np.unique(rows.group)):
        readable[at] = face is not None
        if face is not None:
            images[filled] = face
            filled += 1
    return images[:filled], readable


def _from_memory(
    images: NDArray[np.uint8],
    targets: NDArray[np.float32],
    batch: int,
    seed: int,
    rank: int,
    shuffle: bool,
    chance: NDArray[np.float32] | None,
) -> Callable[[int, int], Iterator[Batch]]:
    def batches(epoch: int, steps: int) -> Iterator[Batch]:
        random = np.random.default_rng(np.random.SeedSequence([seed, epoch, rank]))
        if chance is not None:
            order = random.choice(len(images), len(images), p=chance / chance.sum(dtype=np.float64))
        else:
            order = random.permutation(len(images)) if shuffle else np.arange(len(images))
        places = np.resize(order, steps * batch).reshape(steps, batch)  # wraps round: fillers are real faces
        weights = (np.arange(steps * batch) < len(order)).astype(np.float32).reshape(steps, batch)
        for chosen, weight in zip(places, weights, strict=True):
            yield Batch(images[chosen], targets[chosen], weight)

    return batches


def _from_stream(
    rows: Rows, spec: ModelSpec, batch: int, seed: int, rank: int, buffered: int
) -> Callable[[int, int], Iterator[Batch]]:
    def batches(epoch: int, steps: int) -> Iterator[Batch]:
        random = np.random.default_rng(np.random.SeedSequence([seed, epoch, rank]))
        groups = np.unique(rows.group)
        faces = _shuffled(rows, spec, random.permutation(groups) if buffered > 1 else groups, buffered, random)
        first: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
        for _ in range(steps):
            some = list(itertools.islice(faces, batch))
            weights = (np.arange(batch) < len(some)).astype(np.float32)
            first = first or some
            if not first:
                raise DataError("none of the faces can be decoded: look into the data set's ledger")
            some += list(itertools.islice(itertools.cycle(first), batch - len(some)))
            yield Batch(np.stack([face for face, _ in some]), np.stack([target for _, target in some]), weights)

    return batches


def _shuffled(
    rows: Rows, spec: ModelSpec, groups: NDArray[np.int32], buffered: int, random: np.random.Generator
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Faces with their targets; each leaves a full buffer from a random place."""
    waiting: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
    for at, face in _decoded(rows, spec, groups):
        if face is None:
            continue
        waiting.append((face, rows.targets[at]))
        if len(waiting) >= buffered:
            chosen = int(random.integers(len(waiting)))
            waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
            yield waiting.pop()
    while waiting:
        chosen = int(random.integers(len(waiting)))
        waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
        yield waiting.pop()


def _decoded(rows: Rows, spec: ModelSpec, groups: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
    """(index in rows, prepared face or None) of these row groups, in this order; a group's rows in their order."""
    limits = Limits()

    def one(data: bytes | None) -> NDArray[np.uint8] | None:
        image = decode(data or b"", limits)
        return prepare(image.pixels, spec) if isinstance(image, DecodedImage) else None

    by_group = np.argsort(rows.group, kind="stable")
    starts = np.searchsorted(rows.group[by_group], groups)
    ends = np.searchsorted(rows.group[by_group], groups, side="right")
    with ThreadPoolExecutor(_DECODERS) as pool:
        for start, end in zip(starts, ends, strict=True):
            own = by_group[start:end]
            part = int(rows.part[own[0]])
            with storage.open_read(rows.parts[part]) as file:
                reader = pq.ParquetFile(file)
                sizes = [reader.metadata.row_group(group).num_rows for group in range(reader.metadata.num_row_groups)]
                edges = np.cumsum([0, *sizes])
                group = int(np.searchsorted(edges, rows.row[own[0]], side="right")) - 1
                column = reader.read_row_group(group, columns=["image"])["image"].combine_chunks().field("bytes")
            wanted = column.take(rows.row[own] - edges[group])
            for offset in range(0, len(own), _CHUNK_FACES):
                faces = pool.map(one, wanted.slice(offset, _CHUNK_FACES).to_pylist())
                yield from zip((int(at) for at in own[offset : offset + _CHUNK_FACES]), faces, strict=True)


def _shares(votes: list[list[int] | None], classes: int, url: str) -> NDArray[np.float32]:
    """Of the votes for each face, (faces, classes); zeros for a face without any."""
    shares = np.zeros((len(votes), classes), np.float32)
    for number, vote in enumerate(votes):
        if vote is not None and sum(vote) > 0:
            if len(vote) != classes:
                raise DataError(f"{url} has {len(vote)} votes for {classes} classes: set soft_labels = 0")
            shares[number] = np.asarray(vote, np.float32) / sum(vote)
    return shares


def _in_fold(phashes: list[str], fold: Fold) -> NDArray[np.bool_]:
    """By the photo's hash, so that copies and faces of one photo stay on one side."""
    digests = (hashlib.sha256(f"{fold.seed}:fold:{phash}".encode()).digest() for phash in phashes)
    return np.array([int.from_bytes(one[:8], "big") % fold.count == fold.number for one in digests], bool)


def _fingerprint(url: str, parts: list[str]) -> str:
    """The run's own fingerprint of the faces, or one over the names and sizes of the parts."""
    summary = storage.join(url, "summary.json")
    if storage.exists(summary):
        own = json.loads(storage.read_bytes(summary)).get("fingerprint")
        if own:
            return str(own)
    sizes = [f"{part.rsplit('/', 1)[-1]}:{storage.file_size(part)}" for part in parts]
    return hashlib.sha256("\n".join(sizes).encode()).hexdigest()
