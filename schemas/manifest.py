"""The run manifest: written before any part, so that the same command again knows what it continues.

A run is its listing, its shards and its parameters. Versions are recorded, but do not stop a resume; parameters do, and
the difference is named.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.versions import installed_versions

FORMAT = 1
Bytes = bytes  # a field of Manifest has that name


class ManifestError(ValueError):
    """A manifest that is not ours, or parameters that differ from those of the run to be resumed."""


@dataclass(frozen=True)
class Manifest:
    """sources: as the user named them, without secrets. listing_fingerprint: sha256 over keys and sizes. ignored: files
    beside photos, by suffix. parameters: everything that decides what comes out. shard_images: the
    most images of one shard. created: ISO 8601, UTC."""

    command: str
    sources: tuple[str, ...]
    images: int
    bytes: int
    ignored: dict[str, int]
    listing_fingerprint: str
    shards: int
    shard_images: int
    parameters: dict[str, Any]
    created: str
    versions: dict[str, str] = field(default_factory=installed_versions)
    format: int = FORMAT

    def to_json(self) -> Bytes:
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: Bytes) -> "Manifest":
        """Raises ManifestError for anything that `to_json` did not write."""
        try:
            values = json.loads(data)
            if values["format"] != FORMAT:
                raise ManifestError(f"manifest.json has format {values['format']}; this version reads {FORMAT}")
            return cls(**{**values, "sources": tuple(values["sources"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError("manifest.json is not a manifest of facemill") from None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One `name: was X, now Y` for each parameter that differs, nested names joined by dots."""
    flat_before, flat_now = dict(_flatten(before)), dict(_flatten(now))
    names = sorted(flat_before.keys() | flat_now.keys())
    return [
        f"{name}: was {flat_before.get(name)!r}, now {flat_now.get(name)!r}"
        for name in names
        if flat_before.get(name) != flat_now.get(name)
    ]


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", list(value) if isinstance(value, tuple) else value))
    return pairs
