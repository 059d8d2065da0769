"""FER+: the votes of ten annotators for each image of FER-2013 (Barsoum et al., 2016), and the label they make.

Votes are found by the row where the images come from FER-2013's csv, since fer2013new.csv has its order; otherwise by
the file's name: `Image name` (fer0000000.png), or a column `kaggle_jpg` that names the files of the class folders.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dataset_tools import storage
from dataset_tools.importers.annotations import Annotation, LabelledSet, votes_for
from dataset_tools.importers.fer2013 import CSV_ROW
from dataset_tools.importers.files import SPLIT_NAMES, relative_name, rows
from dataset_tools.listing import Listing, SourceError
from schemas.labels import FER_2013, FER_PLUS, LabelSet, id_map

_NO_EMOTION = ("unknown", "nf")
_NO_MAJORITY = "no emotion, by the votes"
_NAMES = ("image name", "kaggle_jpg")


@dataclass(frozen=True, slots=True)
class Votes:
    """The votes for one image. emotions: in the order of FER_PLUS, which is not that of the csv's columns. others: for
    "unknown" and "no face". names: files that hold the image, as the row names them."""

    split: str | None
    emotions: tuple[int, ...]
    others: tuple[int, int]
    names: tuple[str, ...]

    def label(self) -> int | None:
        """The emotion with the most votes, the first in the order of FER_PLUS when several have as many. None when
        none has a vote, or when more were for "unknown" or for "no face"."""
        most = max(self.emotions)
        return self.emotions.index(most) if most and most >= max(self.others) else None

    @property
    def is_tie(self) -> bool:
        return self.emotions.count(max(self.emotions)) > 1


def read_votes(url: str) -> list[Votes]:
    """Every row of a votes file. Raises SourceError for columns that are missing and votes that are no numbers."""
    votes = []
    for number, row in enumerate(rows(url, ("usage", *FER_PLUS.names, *_NO_EMOTION))):
        try:
            counts = [int(row[name] or 0) for name in (*FER_PLUS.names, *_NO_EMOTION)]
            if min(counts) < 0:
                raise ValueError
        except ValueError:
            raise SourceError(f"{storage.redact(url)}: row {number} has votes that are no whole numbers") from None
        names = tuple(row[name] for name in _NAMES if row.get(name))
        emotions, others = tuple(counts[:8]), (counts[8], counts[9])
        votes.append(Votes(SPLIT_NAMES.get(row["usage"].lower()), emotions, others, names))
    return votes


def with_votes(found: LabelledSet, votes: Sequence[Votes], *, relabel: bool) -> LabelledSet:
    """FER-2013 with the votes for each of its images. relabel: by their majority, as FER+; else its labels are kept.

    Raises SourceError when the votes are not for these images.
    """
    if all(one.ref.kind == CSV_ROW for one in found.annotations):
        by_image = _by_row(found.annotations, votes)
    else:
        by_image = _by_name(found, votes)
    labels = FER_PLUS if relabel else FER_2013
    notes = []
    if relabel:
        ties = sum(row is not None and row.label() is not None and row.is_tie for row in by_image)
        notes.append(f"{ties:,} ties between emotions, decided by the order of ids")
    annotations = [
        _voted(one, row, labels, relabel=relabel) for one, row in zip(found.annotations, by_image, strict=True)
    ]
    return replace(found, labels=labels, annotations=annotations, notes=(*found.notes, *notes))


def from_images(listing: Listing, source: str, votes: Sequence[Votes]) -> LabelledSet:
    """The images that the FER+ scripts write, fer0000000.png and so on, which only the votes give a split."""
    named = _named(votes)
    annotations = []
    for ref in listing.refs():
        row = _find(named, relative_name(ref, source))
        annotations.append(Annotation(ref, split=row.split if row else None))
    return with_votes(LabelledSet(FER_2013, annotations, listing.ignored, listing.archives), votes, relabel=True)


def _voted(one: Annotation, row: Votes | None, labels: LabelSet, *, relabel: bool) -> Annotation:
    if one.failure is not None or one.dropped is not None:
        return replace(one, label=None if relabel else one.label)
    if row is None:
        return replace(one, label=None, dropped="it has no votes") if relabel else one
    votes = votes_for(row.emotions, id_map(FER_PLUS, labels), labels)
    if not relabel:
        return replace(one, votes=votes)
    label = row.label()
    return replace(one, label=label, votes=votes, dropped=_NO_MAJORITY if label is None else None)


def _by_row(annotations: Sequence[Annotation], votes: Sequence[Votes]) -> list[Votes | None]:
    if len(votes) != len(annotations):
        raise SourceError(f"the votes have {len(votes):,} rows and the csv {len(annotations):,}: they go row by row")
    for number, (one, row) in enumerate(zip(annotations, votes, strict=True)):
        if one.split is not None and one.split != row.split:
            raise SourceError(f"row {number} of the votes is for another split than that of the csv: the order differs")
    return list(votes)


def _by_name(found: LabelledSet, votes: Sequence[Votes]) -> list[Votes | None]:
    named = _named(votes)
    matched = [_find(named, one.ref.key) for one in found.annotations]
    if not any(matched):
        raise SourceError(
            "no row of the votes names a file of this set: give fer2013.csv itself as SOURCE, "
            "or a votes file with a column kaggle_jpg"
        )
    return matched


def _named(votes: Sequence[Votes]) -> dict[str, Votes]:
    counts = Counter(name for row in votes for name in row.names)
    return {name: row for row in votes for name in row.names if counts[name] == 1}


def _find(named: dict[str, Votes], path: str) -> Votes | None:
    """The row that names this file, by its own name or with one or two folders above it."""
    parts = path.replace("#", "/").split("/")
    return next((named[name] for k in (3, 2, 1) if (name := "/".join(parts[-k:])) in named), None)
