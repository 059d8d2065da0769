"""Which form a source has, and its annotations: the one door to the readers.

`auto` goes by what lies there: lists with known columns, folders with known names. Where it finds nothing, or more than
one thing, it says so and guesses nothing.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from dataset_tools import sources, storage
from dataset_tools.archives import kind_by_name, open_archive
from dataset_tools.ignored_names import passed_over
from dataset_tools.importers import affectnet, fer2013, ferplus, folders, listed, rafdb
from dataset_tools.importers.annotations import LabelledSet
from dataset_tools.importers.files import SPLIT_NAMES, header
from dataset_tools.limits import Limits
from dataset_tools.listing import SourceError
from schemas.labels import FER_2013, LabelSet, UnknownLabelError

FORMATS = ("affectnet", "fer2013", "ferplus", "raf-db", "folders", "csv")
_FER_FILES = ("training_", "publictest_", "privatetest_")
_LOOKED_AT = 200
"""Members of an archive whose names are looked at, since a compressed one is unpacked on the way."""
_LISTED = 100_000


@dataclass(frozen=True)
class Options:
    """How a source is to be read. images: where the pictures lie, if not where the form has them. votes: a FER+ file.
    detect: faces are to be found, so photos are preferred to crops of them."""

    limits: Limits
    images: str | None = None
    votes: str | None = None
    detect: bool = False
    label_set: LabelSet | None = None


def detect_format(source: str, options: Options) -> str:
    """The form of a source. Raises SourceError when it has none that is known, or more than one."""
    if not storage.is_folder(source):
        if not storage.exists(source):
            raise SourceError(f"{storage.redact(source)} does not exist")
        found = {source: form} if (form := _of_file(source)) else {}
    else:
        found = dict(_of_folder(source))
    if not found:
        raise SourceError(
            f"{storage.redact(source)} has no form that is known here: name it with --format {'|'.join(FORMATS)}"
        )
    if len(found) > 1:
        told = ", ".join(f"{form}: {where}" for where, form in found.items())
        raise SourceError(
            f"{storage.redact(source)} holds more than one labelled set ({told}): name one of them as SOURCE"
        )
    form = next(iter(found.values()))
    return "ferplus" if form == "fer2013" and options.votes else form


def _of_file(url: str) -> str:
    kind = kind_by_name(url)
    if kind == "parquet":
        return "csv" if set(listed.COLUMNS) <= set(listed.parquet_columns(url)) else ""
    if kind is not None:
        return _of_names(_names_in(url))
    return _of_columns(set(header(url))) if url.lower().endswith(".csv") else ""


def _of_columns(columns: set[str]) -> str:
    if {"emotion", "pixels", "usage"} <= columns:
        return "fer2013"
    if set(affectnet.LIST_COLUMNS) <= columns:
        return "affectnet"
    return "csv" if set(listed.COLUMNS) <= columns else ""


def _of_folder(source: str) -> Iterator[tuple[str, str]]:
    """(where, form) of every labelled set that lies in a folder."""
    if url := rafdb.find_list(source):
        yield url[len(source) + 1 :], "raf-db"
        return
    if affectnet.find_lists(source) or affectnet.find_sets(source):
        yield "its lists and folders", "affectnet"
        return
    names = [url[len(source) + 1 :] for url, _ in itertools.islice(storage.list_files(source), _LISTED)]
    for name in names:
        if "/" not in name and (form := _of_file(storage.join(source, name))):
            yield name, form
    if form := _of_names(names):
        yield "its folders", form


def _names_in(url: str) -> list[str]:
    _, members = open_archive(url, Limits())
    return [one.name for one in itertools.islice(members, _LOOKED_AT) if not isinstance(one, str)]


def _of_names(names: list[str]) -> str:
    """By the paths of pictures: train/CLASS/ with the names of FER-2013's files, other class folders, or nothing."""
    nested = [name.lower().split("/") for name in names if "/" in name and passed_over(name) is None]
    if not nested:
        return ""
    if any(parts[-1].startswith(_FER_FILES) and _is_fer_class(parts[-2]) for parts in nested):
        return "fer2013"
    below = [parts[1:] if parts[0] in SPLIT_NAMES else parts for parts in nested]
    return "folders" if len({parts[0] for parts in below if len(parts) > 1}) > 1 else ""


def _is_fer_class(name: str) -> bool:
    try:
        FER_2013.id_of(name)
    except UnknownLabelError:
        return False
    return True


def read(source: str, form: str, options: Options) -> LabelledSet:
    """The annotations of a source of this form. Raises SourceError, StorageError."""
    found = _read(source, form, options)
    if options.votes is not None and form not in ("fer2013", "ferplus"):
        raise SourceError(f"--votes goes with --format fer2013 or ferplus, and this is {form}")
    return found


def _read(source: str, form: str, options: Options) -> LabelledSet:
    if form in ("fer2013", "ferplus"):
        return _read_fer(source, form, options)
    if form == "affectnet":
        if not storage.is_folder(source):
            raise SourceError(f"AffectNet is read from its folder, with lists and photos; {source} is none")
        lists, later = affectnet.find_lists(source), affectnet.find_sets(source)
        if lists:
            return affectnet.read_lists(lists, source, options.images)
        if later:
            return affectnet.read_sets(later, options.limits)
        raise SourceError(
            f"{storage.redact(source)} is no AffectNet: neither training.csv nor images/ beside annotations/ is there"
        )
    if form == "raf-db":
        url = rafdb.find_list(source)
        if url is None:
            raise SourceError(f"{storage.redact(source)} is no RAF-DB: {rafdb.LIST} is not there")
        return rafdb.read(url, images=options.images, original=options.detect)
    if form == "csv":
        url = _list_in(source, "csv")
        if url is None:
            raise SourceError(f"{storage.redact(source)} holds no csv or Parquet with the columns path,label")
        return listed.read(url, options.images, options.label_set)
    return folders.read(sources.list_images(source, options.limits), source, options.label_set)


def _read_fer(source: str, form: str, options: Options) -> LabelledSet:
    if form == "ferplus" and options.votes is None:
        raise SourceError("--format ferplus takes its labels from --votes fer2013new.csv")
    url = _list_in(source, "fer2013")
    votes = None if options.votes is None else ferplus.read_votes(options.votes)
    if url is None:
        listing = sources.list_images(source, options.limits)
        found = fer2013.read_folders(listing, source)
        if form == "ferplus" and votes and all(one.label is None for one in found.annotations):
            return ferplus.from_images(listing, source, votes)
    else:
        found = fer2013.read_csv(url)
    return found if votes is None else ferplus.with_votes(found, votes, relabel=form == "ferplus")


def _list_in(source: str, form: str) -> str | None:
    """The file with rows of this form: the source itself, or the only one in its folder."""
    if not storage.is_folder(source):
        return None if kind_by_name(source) not in (None, "parquet") else source
    tops = (
        url for url, _ in itertools.islice(storage.list_files(source), _LISTED) if "/" not in url[len(source) + 1 :]
    )
    found = [url for url in tops if url.lower().endswith((".csv", ".parquet")) and _of_file(url) == form]
    if len(found) > 1:
        raise SourceError(f"{storage.redact(source)} holds {len(found)} lists of the form {form}: name one of them")
    return found[0] if found else None
