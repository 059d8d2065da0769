"""What names a file: an absolute POSIX path or a URL. Names as the user wrote them in, normalised ones out.

The protocol is kept (fsspec drops it from what it lists), and secrets that stand in URLs never leave in a message.
"""

import os
import re
from urllib.parse import quote, unquote

_PROTOCOL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_ALIASES = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}
_SECRET_PARAMETER = re.compile(
    r"(?i)([?&;](?:x-amz-[a-z-]+|x-goog-[a-z-]+|signature|sig|token|access_?token|api_?key|key|secret|password|credential"
    r"|awsaccesskeyid|googleaccessid|expires|policy)=)[^&;#\s]*"
)


class StorageError(OSError):
    """A store or a disk refused; the message is one line for the user, without credentials."""


class MissingFileError(StorageError, FileNotFoundError):
    """Nothing has this name: the file, or the bucket, does not exist."""


class DeniedError(StorageError, PermissionError):
    """The store or the disk knows who asks, or has no way to know, and says no."""


class OutageError(StorageError):
    """The store gave no answer about this file, however often its client asked: the others would fare no better."""


def normalize(url: str | os.PathLike[str]) -> str:
    """An absolute local path, or a URL with its protocol; neither ends in a slash.

    `file://` URLs become paths (percent signs decoded, as in RFC 8089), `~` the home folder, `gcs://` `gs://`.
    """
    text = os.fspath(url)
    if not text:
        raise StorageError("an empty path was given: name a file, a folder or a URL")
    if "::" in text:  # a chained fsspec URL is passed on as it is
        return text.rstrip("/")
    found = _PROTOCOL.match(text)
    if not found:
        return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111 (Path would be slower, and lose nothing)
    protocol, rest = found[1].lower(), text[found.end() :]
    if protocol in ("file", "local"):
        return os.path.abspath("/" + unquote(rest, errors="surrogateescape").lstrip("/"))  # noqa: PTH100
    protocol = _ALIASES.get(protocol, protocol)
    return f"{protocol}://{rest.lstrip('/') if protocol == 'memory' else rest}".rstrip("/")


def is_local(url: str | os.PathLike[str]) -> bool:
    """True for a path on this machine's disks."""
    text = os.fspath(url)
    found = _PROTOCOL.match(text)
    return "::" not in text and (found is None or found[1].lower() in ("file", "local"))


def join(base: str | os.PathLike[str], *parts: str) -> str:
    """`base`, normalised, with the parts below it; an empty part adds no slash, which a store would take for a name."""
    return "/".join([normalize(base).rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def as_text(path: str) -> str:
    """`path` as valid UTF-8: a local name of other bytes becomes a percent-encoded file:// URL, which normalize undoes.

    Tables hold UTF-8 only, and a disk holds any bytes.
    """
    if not path.isascii():
        try:
            path.encode()
        except UnicodeEncodeError:
            return "file://" + quote(os.fsencode(path))
    return path


def redact(text: str) -> str:
    """`text`, a URL or a message with URLs in it, without passwords and signatures."""
    if "://" not in text:
        return text
    text = re.sub(r"(://)[^/@\s]+@", _without_user, text)
    return _SECRET_PARAMETER.sub(r"\1...", text)


def _without_user(found: re.Match[str]) -> str:
    # abfs://container@account/… names no secret; user:password@ does.
    return found[0] if ":" not in found[0][3:] else "://...@"


def protocol_of(url: str) -> str:
    """`gs`, `s3` and so on; of a chained URL that of its last link."""
    return normalize(url).split("::")[-1].split("://", 1)[0]
