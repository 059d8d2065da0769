"""What a reader wants to see of a data set: one pass over its parts in, histograms and a handful of picked faces out.

Memory does not grow with the faces: they are read column by column and batch by batch, histograms have fixed bins, and
crops are left where they are until a page asks for the picked ones. Only perceptual hashes are held for all photos, at
some 20 bytes each. Every pick follows from the content, so the same data set gives the same page.
"""

import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataset_tools import near_duplicates, parquet, storage
from schemas.tables import SPLITS, facemill_metadata

CONTACT_FACES = 60
DOUBTED_FACES = 12
FAILURE_EXAMPLES = 5
GROUP_EXAMPLES = 10
PHOTOS_OF_GROUP = 4

_BATCH_ROWS = 8192
_CROP_ROWS = 64
_SCORE_BAND = 0.05
_MEASURES = ("score", "sharpness", "luminance_mean", "head_roll_deg", "inter_eye_distance_px")
_FACE_COLUMNS = ["key", "source_sha256", "face_index", "bbox", "label", *_MEASURES]


@dataclass
class Histogram:
    """Counts in bins of equal width, from `low` up; of values, or when `log`, of their base-2 logarithm. Values beyond
    the ends count in the outermost bins; what is not a number is left out. bar_bins: bins of the finest bar that is
    drawn; bins are finer than bars, so that quantiles are close."""

    low: float
    step: float
    counts: NDArray[np.int64]
    log: bool = False
    bar_bins: int = 1

    @classmethod
    def between(cls, low: float, high: float, step: float, *, log: bool = False, bar_bins: int = 1) -> "Histogram":
        return cls(low, step, np.zeros(round((high - low) / step), np.int64), log, bar_bins)

    def add(self, values: NDArray[np.float64]) -> None:
        values = values[np.isfinite(values)]
        if self.log:
            values = np.log2(np.maximum(values, 2.0**self.low))
        # 1e-6 of a bin: a value on an edge belongs to the bin above, although 0.7 / 0.1 is less than 7.
        places = np.clip(np.floor((values - self.low) / self.step + 1e-6), 0, len(self.counts) - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=len(self.counts))

    def quantile(self, share: float) -> float:
        """The value below which this share of all lies, as closely as the bins tell; nan when nothing was added."""
        total = self.counts.sum()
        if not total:
            return math.nan
        below = np.concatenate([[0], np.cumsum(self.counts)])
        place = int(np.clip(np.searchsorted(below, share * total, side="left") - 1, 0, len(self.counts) - 1))
        while self.counts[place] == 0:
            place += 1
        within = (share * total - below[place]) / self.counts[place]
        return self.value(place + min(max(within, 0.0), 1.0))

    def value(self, place: float) -> float:
        """The value at a place counted in bins from `low`."""
        position = self.low + place * self.step
        return 2.0**position if self.log else position

    def bars(self, fewest: int = 12, most: int = 42) -> tuple[int, int, list[int]]:
        """(first bin, bins a bar, counts): the filled part in at most `most` bars of a round number of bins."""
        filled = np.flatnonzero(self.counts)
        if not len(filled):
            return 0, 1, []
        first, last = int(filled[0]), int(filled[-1])
        widths = (self.bar_bins * times for times in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000))
        width = next(width for width in widths if last // width - first // width < most)
        first, last = first // width, last // width
        missing = max(0, fewest - (last - first + 1))
        first = max(0, min(first - missing // 2, len(self.counts) // width - fewest))
        last = min(max(last, first + fewest - 1), -(-len(self.counts) // width) - 1)
        sums = [int(self.counts[bar * width : (bar + 1) * width].sum()) for bar in range(first, last + 1)]
        return first * width, width, sums


@dataclass(frozen=True, order=True)
class Pick:
    """A face to be shown. rank: smallest first. part, row: where its crop is."""

    rank: float
    key: str
    face_index: int
    score: float = field(compare=False)
    """nan where no detector looked."""
    sharpness: float = field(compare=False)
    label: str = field(compare=False)
    """Name of its class; empty where it has none."""
    part: str = field(compare=False)
    row: int = field(compare=False)


@dataclass(frozen=True)
class Twin:
    """One photo of a near-duplicate group. face: its first face, if it has one."""

    key: str
    split: str
    face: Pick | None


@dataclass(frozen=True)
class Duplicates:
    """groups and the photos in them, and groups that reach over more than one split. examples: (photos in the group,
    a few of them), groups over several splits first, then the largest."""

    groups: int = 0
    photos: int = 0
    across_splits: int = 0
    examples: tuple[tuple[int, tuple[Twin, ...]], ...] = ()


@dataclass
class Survey:
    """failures: for each reason, the first few (key, detail). labels: faces by class name, empty when none is labelled.
    contact: from the highest score down, as many of each band of score; doubted ones: lowest first."""

    size_px: Histogram = field(default_factory=lambda: Histogram.between(3, 14, 1 / 32, log=True, bar_bins=4))
    inter_eye_distance_px: Histogram = field(
        default_factory=lambda: Histogram.between(0, 12, 1 / 32, log=True, bar_bins=4)
    )
    score: Histogram = field(default_factory=lambda: Histogram.between(0, 1, 0.0005, bar_bins=4))
    sharpness: Histogram = field(default_factory=lambda: Histogram.between(-2, 17, 1 / 32, log=True, bar_bins=8))
    luminance_mean: Histogram = field(default_factory=lambda: Histogram.between(0, 1, 0.001, bar_bins=10))
    head_roll_deg: Histogram = field(default_factory=lambda: Histogram.between(-180, 180, 0.1, bar_bins=10))
    contact: list[Pick] = field(default_factory=list)
    lowest_score: list[Pick] = field(default_factory=list)
    least_sharp: list[Pick] = field(default_factory=list)
    failures: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    duplicates: Duplicates = field(default_factory=Duplicates)


def survey(out: str) -> Survey:
    """Read the ledger and the face columns of a data set folder once."""
    found = Survey()
    groups = _read_ledger(out, found)
    wanted = [key for _, members in groups.examples for key, _ in members]
    faces = _read_faces(out, found, wanted)
    examples = tuple(
        (size, tuple(Twin(key, split, faces.get(key)) for key, split in members)) for size, members in groups.examples
    )
    found.duplicates = Duplicates(groups.groups, groups.photos, groups.across_splits, examples)
    return found


def read_crops(picks: Collection[Pick]) -> Iterator[tuple[Pick, bytes]]:
    """The encoded crops of some faces, each row group read once and a few crops at a time."""
    by_part: dict[str, dict[int, list[Pick]]] = {}
    for pick in picks:
        by_part.setdefault(pick.part, {}).setdefault(pick.row, []).append(pick)
    for part, by_row in sorted(by_part.items()):
        with storage.open_read(part) as file:
            faces, start = pq.ParquetFile(file), 0
            for group in range(faces.num_row_groups):
                stop = start + faces.metadata.row_group(group).num_rows
                rows = [row for row in by_row if start <= row < stop]
                at = start
                for batch in faces.iter_batches(_CROP_ROWS, [group], ["image.bytes"]) if rows else ():
                    for row in rows:
                        if at <= row < at + len(batch):
                            crop = batch["image"][row - at]["bytes"].as_py() or b""
                            yield from ((pick, crop) for pick in by_row[row])
                    at += len(batch)
                start = stop


# --- The ledger -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """Duplicates whose photos are still (key, split)."""

    groups: int
    photos: int
    across_splits: int
    examples: list[tuple[int, list[tuple[str, str]]]]


def _read_ledger(out: str, found: Survey) -> _Groups:
    parts = parquet.parts(storage.join(out, "ledger"))
    hashes, splits, places = [], [], []
    for number, part in enumerate(parts):
        table = parquet.read_part(part, ["key", "reason", "detail", "phash", "split"])
        for row in table.filter(pc.is_valid(table["reason"])).to_pylist():
            examples = found.failures.setdefault(row["reason"], [])
            if len(examples) < FAILURE_EXAMPLES:
                examples.append((row["key"], row["detail"] or ""))
        # What an import dropped is in no split any more.
        dropped = pc.starts_with(pc.fill_null(table["detail"], ""), "dropped: ").to_numpy()
        hashed = np.flatnonzero(pc.is_valid(table["phash"]).to_numpy() & ~dropped)
        table = table.take(hashed)
        hashes.append(near_duplicates.parse_hashes(table["phash"].to_pylist()))
        splits.append(pc.index_in(table["split"], pa.array(SPLITS)).to_numpy().astype(np.int8))
        places.append(hashed + number * _PART_STRIDE)
    if not hashes:
        return _Groups(0, 0, 0, [])
    return _group(parts, np.concatenate(hashes), np.concatenate(splits), np.concatenate(places))


_PART_STRIDE = 2**32
"""A photo's place is its part's number times this, plus its row."""


def _group(
    parts: Sequence[str], hashes: NDArray[np.uint64], splits: NDArray[np.int8], places: NDArray[np.int64]
) -> _Groups:
    group = near_duplicates.group_of(hashes)
    members = np.flatnonzero(group >= 0)
    if not len(members):
        return _Groups(0, 0, 0, [])
    sizes = np.bincount(group[members])
    in_splits = np.sum([np.bincount(group[members], splits[members] == n) > 0 for n in range(len(SPLITS))], axis=0)
    ordered = members[np.argsort(group[members], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    examples = []
    for number in np.lexsort((np.arange(len(sizes)), -sizes, in_splits <= 1))[:GROUP_EXAMPLES]:
        of_group = ordered[starts[number] : starts[number] + sizes[number]]
        # One photo of each split first, so that a reader sees what lies apart.
        _, first = np.unique(splits[of_group], return_index=True)
        shown = [*of_group[np.sort(first)], *np.delete(of_group, first)][:PHOTOS_OF_GROUP]
        keys = [_key_at(parts, int(places[index])) for index in shown]
        names = [SPLITS[splits[index]] for index in shown]
        examples.append((int(sizes[number]), list(zip(keys, names, strict=True))))
    return _Groups(len(sizes), int(sizes.sum()), int((in_splits > 1).sum()), examples)


def _key_at(parts: Sequence[str], place: int) -> str:
    part, row = divmod(place, _PART_STRIDE)
    return str(parquet.read_part(parts[part], ["key"])["key"][row].as_py())


# --- The faces --------------------------------------------------------------------------------------------------------


def _read_faces(out: str, found: Survey, wanted: list[str]) -> dict[str, Pick]:
    """Fill the survey's histograms, picks and labels; the first face of each of the `wanted` photos comes back."""
    bands: dict[int, list[Pick]] = {}
    of_photo: dict[str, Pick] = {}
    # Without a single face there is no data folder.
    for _, part in parquet.data_parts(out) if storage.exists(storage.join(out, "data")) else ():
        for start, batch, names in _batches(part):
            numbers = {name: _numbers(batch[name]) for name in _MEASURES}
            for name, values in numbers.items():
                getattr(found, name).add(values)
            boxes = _numbers(batch["bbox"].flatten()).reshape(-1, 4)
            found.size_px.add(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]))
            for entry in pc.value_counts(batch["label"].drop_null()).to_pylist():
                found.labels[names[entry["values"]]] += entry["counts"]

            faces = _Batch(part, start, batch, names, numbers["score"], numbers["sharpness"])
            faces.keep_smallest(found.lowest_score, faces.score, DOUBTED_FACES)
            faces.keep_smallest(found.least_sharp, faces.sharpness, DOUBTED_FACES)
            draw, by_class = faces.draw(), -2.0 - _numbers(pc.fill_null(batch["label"], -1))
            band = np.where(np.isnan(faces.score), by_class, faces.score // _SCORE_BAND)
            for number in np.unique(band):
                ranks = np.where(band == number, draw, np.nan)
                faces.keep_smallest(bands.setdefault(int(number), []), ranks, CONTACT_FACES)
            for row in np.flatnonzero(pc.is_in(batch["key"], pa.array(wanted, pa.string()))):
                pick = faces.pick(int(row), 0.0)
                of_photo[pick.key] = min(pick, of_photo.get(pick.key, pick))
    found.contact = sorted(
        _in_turn([bands[n] for n in sorted(bands)], CONTACT_FACES),
        key=lambda pick: (0.0 if math.isnan(pick.score) else -pick.score, pick.label, pick),
    )
    return of_photo


def _batches(part: str) -> Iterator[tuple[int, pa.RecordBatch, list[str]]]:
    """(first row, columns, class names) for stretches of a part."""
    with storage.open_read(part) as file:
        faces, start = pq.ParquetFile(file), 0
        names = facemill_metadata(faces.schema_arrow).get("label_names", [])
        for batch in faces.iter_batches(_BATCH_ROWS, columns=_FACE_COLUMNS):
            yield start, batch, names
            start += len(batch)


@dataclass(frozen=True)
class _Batch:
    part: str
    start: int
    columns: pa.RecordBatch
    names: list[str]
    score: NDArray[np.float64]
    sharpness: NDArray[np.float64]

    def draw(self) -> NDArray[np.float64]:
        """A number for each face that looks random and depends on nothing but which face it is."""
        ids = zip(self.columns["source_sha256"].to_pylist(), self.columns["face_index"].to_pylist(), strict=True)
        return np.array([zlib.crc32(f"{sha256}:{index}".encode()) for sha256, index in ids], np.float64)

    def keep_smallest(self, kept: list[Pick], ranks: NDArray[np.float64], most: int) -> None:
        """Merge this batch's faces into `kept`, which is sorted and holds at most `most`; a rank of nan is left out."""
        bound = kept[-1].rank if len(kept) == most else math.inf
        order = np.argsort(ranks, kind="stable")[:most]
        kept += [self.pick(int(row), float(ranks[row])) for row in order if ranks[row] <= bound]
        kept[:] = sorted(kept)[:most]

    def pick(self, row: int, rank: float) -> Pick:
        key, index = self.columns["key"][row].as_py(), self.columns["face_index"][row].as_py()
        label = self.columns["label"][row].as_py()
        name = "" if label is None else self.names[label]
        values = float(self.score[row]), float(self.sharpness[row]), name
        return Pick(rank, key, index, *values, self.part, self.start + row)


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _in_turn(lists: list[list[Pick]], most: int) -> list[Pick]:
    """The first of each list, then the second of each, and so on, until there are `most`."""
    longest = max((len(picks) for picks in lists), default=0)
    return [picks[place] for place in range(longest) for picks in lists if place < len(picks)][:most]
