"""Where a run reads and writes: what the user named, as normalised paths and URLs, and an OUT that suits them."""

from collections.abc import Sequence

from dataset_tools import storage
from workflows import cli


def places(sources: Sequence[str], out: str | None, kind: str) -> tuple[tuple[str, ...], str]:
    """(sources, out); out is NAME-kind here when none was named. Raises cli.UserError for an OUT inside a source."""
    named = tuple(storage.normalize(source) for source in sources)
    place = storage.normalize(out or f"{_stem(named[0])}-{kind}")
    for source in named:
        if place == source or place.startswith(f"{source}/"):
            raise cli.UserError(f"OUT {place} lies inside SOURCE {source}: choose an --out beside it")
    return named, place


def _stem(source: str) -> str:
    """What a default OUT is named after: `bucket` for `gs://a/bucket/*.jpg`, `photos` for `photos.tar.gz`."""
    parts = [part for part in source.split("/") if part and not any(sign in part for sign in "*?[")]
    name = parts[-1] if parts else "images"
    stem = name.split(".")[0] if "." in name[1:] else name
    return stem or "images"
