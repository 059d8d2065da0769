"""RAF-DB's basic set: EmoLabel/list_patition_label.txt (spelt so), and the aligned or the original pictures.

A line is `train_00001.jpg 5`: labels count from 1, and the name's beginning is the split. The pictures are
Image/aligned/STEM_aligned.jpg, 100 px, or Image/original/STEM.jpg with the box in boundingbox/STEM_boundingbox.txt.
"""

from dataset_tools import storage
from dataset_tools.importers.annotations import Annotation, Box, LabelledSet, bad, box_of
from dataset_tools.importers.files import file_ref, outside, row_ref
from dataset_tools.listing import SourceError
from schemas.labels import RAF_DB

LIST = "EmoLabel/list_patition_label.txt"
_ROOTS = ("", "basic")
_BOXES = ("Annotation/boundingbox", "boundingbox")


def find_list(source: str) -> str | None:
    """The list of a RAF-DB folder; also where only its `basic` folder is named."""
    found = (storage.join(source, root, LIST) if root else storage.join(source, LIST) for root in _ROOTS)
    return next((url for url in found if storage.exists(url)), None)


def read(list_url: str, *, images: str | None, original: bool) -> LabelledSet:
    """Every line of the list. images: another folder of pictures. original: the photos, although there are crops."""
    root = list_url.removesuffix(f"/{LIST}")
    aligned_folder, original_folder = storage.join(root, "Image/aligned"), storage.join(root, "Image/original")
    lines = storage.read_bytes(list_url).decode("utf-8-sig", "replace").splitlines()
    named = [(number, line.split()) for number, line in enumerate(lines) if line.strip()]
    stems = [values[0].removesuffix(".jpg") for _, values in named]
    if images is not None:
        folder, aligned = images, any(_there(images, f"{stem}_aligned.jpg") for stem in stems[:20])
    elif storage.is_folder(aligned_folder) and not original:
        folder, aligned = aligned_folder, True
    elif storage.is_folder(original_folder):
        folder, aligned = original_folder, False
    else:
        raise SourceError(
            f"{storage.redact(root)} has neither Image/aligned nor Image/original: unpack one, or name it with --images"
        )
    boxes = next((url for name in _BOXES if storage.is_folder(url := storage.join(root, name))), None)
    if not aligned and boxes is None and not original:
        raise SourceError(
            f"{storage.redact(root)} has original photos but no {_BOXES[0]}: unpack it, or find the faces with --detect"
        )
    annotations = []
    for (number, values), stem in zip(named, stems, strict=True):
        name = f"{stem}_aligned.jpg" if aligned else f"{stem}.jpg"
        annotations.append(_annotation(list_url, number, values, folder, name, None if aligned else boxes))
    return LabelledSet(RAF_DB, annotations)


def _annotation(list_url: str, number: int, values: list[str], folder: str, name: str, boxes: str | None) -> Annotation:
    ref = file_ref(folder, name)
    if ref is None:
        return outside(list_url, number, name)
    if len(values) != 2:
        return bad(row_ref(list_url, number), f"the line has {len(values)} values, not a name and a label")
    split = values[0].partition("_")[0]
    if split not in ("train", "test"):
        return bad(ref, f"{ascii(values[0])[:40]} begins with neither train_ nor test_")
    if values[1] not in ("1", "2", "3", "4", "5", "6", "7"):
        return bad(ref, f"label {ascii(values[1])[:40]} is not from 1 to 7")
    box: Box | None = None
    if boxes is not None:
        box = _read_box(storage.join(boxes, f"{values[0].removesuffix('.jpg')}_boundingbox.txt"))
        if box is None:
            return bad(ref, "its box is missing, or is no x1 y1 x2 y2")
    return Annotation(ref, int(values[1]) - 1, split, box)


def _read_box(url: str) -> Box | None:
    try:
        numbers = storage.read_bytes(url, 0, 1024).decode("ascii", "replace").split()
    except FileNotFoundError:
        return None
    return box_of(*numbers) if len(numbers) == 4 else None


def _there(folder: str, name: str) -> bool:
    ref = file_ref(folder, name)
    return ref is not None and storage.exists(ref.container)
