"""AffectNet in both its releases.

The full one has lists (training.csv, validation.csv) with box, 68 landmarks, expression, valence and arousal for photos
in numbered folders; the later one has crops of 224 px in SET/images/ID.jpg, and what is said of each in four small
arrays, SET/annotations/ID_{exp,val,aro,lnd}.npy, whose values may be text.
"""

import io
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataset_tools import sources, storage
from dataset_tools.importers.annotations import Annotation, LabelledSet, Landmarks, bad, box_of, number
from dataset_tools.importers.files import SPLIT_NAMES, file_ref, outside, rows, without_repeats
from dataset_tools.limits import Limits
from dataset_tools.listing import ImageRef, SourceError
from schemas.labels import AFFECTNET_8

NO_FACE = "no face, by the annotators"
_UNWANTED = {8: "none of the expressions", 9: "uncertain expression", 10: NO_FACE}

LISTS = {"training.csv": "train", "validation.csv": "validation"}
LIST_COLUMNS = ("subdirectory_filepath", "expression")
_LIST_FOLDERS = ("", "Manually_Annotated_file_lists", "Manually_Annotated/Manually_Annotated_file_lists")
_IMAGE_FOLDERS = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated", "")
_SETS = ("train_set", "val_set", "train", "val", "training", "validation", "")


# --- The full release -------------------------------------------------------------------------------------------------


def find_lists(source: str) -> list[str]:
    """The lists of the full release in a folder, training first."""
    found = (storage.join(source, folder, name) for name in LISTS for folder in _LIST_FOLDERS)
    return [url for url in found if storage.exists(url)]


def read_lists(urls: Sequence[str], source: str, images: str | None) -> LabelledSet:
    """Every row of the lists. images: the folder that the paths in them start from, if not found by its usual name."""
    annotations: list[Annotation] = []
    for url in urls:
        split = LISTS[url.rsplit("/", 1)[-1].lower()]
        table = rows(url, LIST_COLUMNS)
        first = list(itertools.islice(table, 20))
        folder = images or _image_folder(source, [row["subdirectory_filepath"] for row in first])
        found = enumerate(itertools.chain(first, table))
        annotations += [_from_row(url, number, row, folder, split) for number, row in found]
    if not annotations:
        raise SourceError(f"the lists in {storage.redact(source)} have no rows")
    return LabelledSet(AFFECTNET_8, without_repeats(annotations))


def _image_folder(source: str, paths: Sequence[str]) -> str:
    for folder in (storage.join(source, name) if name else source for name in _IMAGE_FOLDERS):
        refs = [ref for path in paths if (ref := file_ref(folder, path))]
        if any(storage.exists(ref.container) for ref in refs):
            return folder
    raise SourceError(
        f"the photos that the lists name are not in {storage.redact(source)}/{_IMAGE_FOLDERS[0]}: "
        "say where with --images"
    )


def _from_row(url: str, row: int, values: dict[str, str], folder: str, split: str) -> Annotation:
    ref = file_ref(folder, values["subdirectory_filepath"])
    if ref is None:
        return outside(url, row, values["subdirectory_filepath"])
    x, y, width, height = (number(values.get(f"face_{name}")) for name in ("x", "y", "width", "height"))
    box = None if None in (x, y, width, height) else box_of(x, y, (x or 0) + (width or 0), (y or 0) + (height or 0))
    if box is None and values["expression"].strip() != "10":
        return bad(ref, "the row gives no box of the face")
    points = [number(value) for value in values.get("facial_landmarks", "").split(";") if value.strip()]
    landmarks = five_points(np.array(points, float)) if None not in points else None
    valence, arousal = values.get("valence"), values.get("arousal")
    return _annotation(ref, values["expression"], split, valence, arousal, box, landmarks)


def _annotation(
    ref: ImageRef,
    expression: object,
    split: str | None,
    valence: object,
    arousal: object,
    box: tuple[float, float, float, float] | None,
    landmarks: Landmarks | None,
) -> Annotation:
    label = number(expression, 0, 10)
    if label is None or label != int(label):
        return bad(ref, f"expression {ascii(expression)[:40]} is not from 0 to 10")
    # -2 stands for "not given", and so does whatever else lies outside of the scale.
    known = int(label) if label < len(AFFECTNET_8.names) else None
    return Annotation(
        ref,
        known,
        split,
        box,
        landmarks,
        number(valence, -1, 1),
        number(arousal, -1, 1),
        dropped=_UNWANTED.get(int(label)),
    )


def five_points(points: NDArray[np.float64]) -> Landmarks | None:
    """68 points, as (68, 2) or flat, → the five in MTCNN's order; None for any other number of points.

    In the scheme of 68, 36–41 outline the eye that is left in the image and 42–47 the other, 30 is the nose's tip, 48
    and 54 are the corners of the mouth.
    """
    if points.size != 136 or not np.isfinite(points).all():
        return None
    points = points.reshape(68, 2)
    five = [points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]]
    return tuple((float(x), float(y)) for x, y in five)


# --- The later release ------------------------------------------------------------------------------------------------


def find_sets(source: str) -> dict[str, str | None]:
    """The folders of a later release that have images/ and annotations/, and the split of each."""
    named = {storage.join(source, name) if name else source: SPLIT_NAMES.get(name) for name in _SETS}
    return {
        url: split
        for url, split in named.items()
        if storage.is_folder(storage.join(url, "images")) and storage.is_folder(storage.join(url, "annotations"))
    }


def read_sets(found: dict[str, str | None], limits: Limits) -> LabelledSet:
    """Every image of the folders, with what its arrays say."""
    annotations: list[Annotation] = []
    ignored: Counter[str] = Counter()
    for folder, split in found.items():
        listing = sources.list_images(storage.join(folder, "images"), limits)
        ignored.update(listing.ignored)
        annotations += [_from_arrays(ref, storage.join(folder, "annotations"), split) for ref in listing.refs()]
    return LabelledSet(AFFECTNET_8, annotations, dict(ignored))


def _from_arrays(ref: ImageRef, folder: str, split: str | None) -> Annotation:
    stem = ref.container.rsplit("/", 1)[-1].rpartition(".")[0]
    try:
        values = {name: _load(storage.join(folder, f"{stem}_{name}.npy")) for name in ("exp", "val", "aro", "lnd")}
    except FileNotFoundError:
        return bad(ref, "an array of its annotation is missing")
    except (ValueError, EOFError, OSError):
        return bad(ref, "an array of its annotation cannot be read")
    one = {name: values[name].ravel()[0] if values[name].size == 1 else None for name in ("exp", "val", "aro")}
    try:
        landmarks = five_points(values["lnd"].astype(float))
    except ValueError:
        landmarks = None
    return _annotation(ref, one["exp"], split, one["val"], one["aro"], None, landmarks)


_LARGEST_ARRAY_BYTES = 1 << 16


def _load(url: str) -> NDArray:
    """A small array. Pickles are refused: they would run code."""
    array = np.load(io.BytesIO(storage.read_bytes(url, 0, _LARGEST_ARRAY_BYTES)), allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays")
    return array
