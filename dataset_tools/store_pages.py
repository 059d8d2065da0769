"""What lies below a folder of an object store, a page at a time, sorted by name.

fsspec's `find` returns one dictionary of all that the store tells about every object: gigabytes for a million of them.
Here a page of names and sizes is held. S3 and Google's store are asked themselves, any other through `find`.
"""

from collections.abc import Iterator
from typing import Any

_PAGE_OBJECTS = 1000
"""The most that either store gives."""


def pages(fs: Any, path: str, protocol: str) -> Iterator[list[tuple[str, int]]]:
    """Lists of (name below `path`, bytes); fs, path: as fsspec knows them. Raises what the file system raises."""
    if protocol not in ("gs", "s3"):
        found = fs.find(path, detail=True)
        below = path.rstrip("/")
        named = ((name.removeprefix(below).lstrip("/"), info) for name, info in found.items() if info["type"] == "file")
        yield sorted((name, int(info.get("size") or 0)) for name, info in named)
        return
    bucket, folder = fs.split_path(path)[:2]
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    page = _google_page if protocol == "gs" else _s3_page
    token: str | None = ""
    while token is not None:
        found, token = page(fs, bucket, prefix, token, _PAGE_OBJECTS)
        yield [(key.removeprefix(prefix), size) for key, size in found]


def holds_something(fs: Any, path: str) -> bool:
    """Whether an S3 prefix, or a bucket, is there; s3fs would fetch its whole listing to say so."""
    bucket, folder = fs.split_path(path)[:2]
    try:
        found, _ = _s3_page(fs, bucket, f"{folder.rstrip('/')}/" if folder else "", "", 1)
    except FileNotFoundError:
        return False
    return bool(found) or not folder


def _google_page(fs: Any, bucket: str, prefix: str, token: str, most: int) -> tuple[list[tuple[str, int]], str | None]:
    wanted = {"prefix": prefix, "maxResults": most, "fields": "items(name,size),nextPageToken"}
    if token:
        wanted["pageToken"] = token
    answer = fs.call("GET", "b/{}/o", bucket, json_out=True, **wanted)
    found = [(item["name"], int(item.get("size") or 0)) for item in answer.get("items", [])]
    return found, answer.get("nextPageToken") or None


def _s3_page(fs: Any, bucket: str, prefix: str, token: str, most: int) -> tuple[list[tuple[str, int]], str | None]:
    wanted = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": most}
    if token:
        wanted["ContinuationToken"] = token
    answer = fs.call_s3("list_objects_v2", **wanted)
    found = [(item["Key"], int(item["Size"])) for item in answer.get("Contents", [])]
    return found, answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
