"""Class folders: CLASS/picture, with or without train/, val/ and test/ above, in a folder or an archive."""

from dataset_tools.importers.annotations import Annotation, LabelledSet, named_labels
from dataset_tools.importers.files import SPLIT_NAMES, relative_name
from dataset_tools.listing import Listing, SourceError
from schemas.labels import LabelSet

_NO_CLASS = "it lies in no class folder"
_MOST_CLASSES = 1000


def read(listing: Listing, source: str, target: LabelSet | None) -> LabelledSet:
    """Every image with the class that its folder names. target: the set whose names and aliases are meant, if any."""
    refs = listing.refs()
    parts = _below_common([relative_name(ref, source).split("/") for ref in refs])
    places = [_place(names) for names in parts]
    labels, ids = named_labels({name for _, name in places if name is not None}, target)
    if not ids:
        raise SourceError(f"{source} has no class folders: pictures lie in CLASS/ or in train/CLASS/")
    if len(ids) > _MOST_CLASSES:
        raise SourceError(f"{source} has {len(ids):,} folders with pictures: these are no classes")
    annotations = [
        Annotation(ref, split=split, dropped=_NO_CLASS) if name is None else Annotation(ref, ids[name], split)
        for ref, (split, name) in zip(refs, places, strict=True)
    ]
    return LabelledSet(labels, annotations, listing.ignored, listing.archives)


def _place(parts: list[str]) -> tuple[str | None, str | None]:
    """(split, class) of a picture by the folders that it lies in."""
    split = SPLIT_NAMES.get(parts[0].lower()) if len(parts) > 1 else None
    folders = parts[1:-1] if split else parts[:-1]
    return split, folders[0] if folders else None


def _below_common(parts: list[list[str]]) -> list[list[str]]:
    """Without a folder that everything lies in, as archives have one: but a split and a single class are kept."""
    while parts and all(len(names) > 2 and names[0] == parts[0][0] for names in parts):
        if parts[0][0].lower() in SPLIT_NAMES:
            break
        parts = [names[1:] for names in parts]
    return parts
