"""What can become of one input image: three statuses, and for a failure a reason out of a closed list.

A bad image is a value, never an exception, so that a shard of a thousand images outlives any of them.
"""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    OK = "ok"
    NO_FACE = "no_face"
    FAILED = "failed"


class Reason(StrEnum):
    NOT_AN_IMAGE = "not_an_image"
    """The bytes are of no image format: text, HTML, an LFS pointer, noise, nothing at all."""
    TRUNCATED = "truncated"
    """The file ends early or its data stream is damaged: what is there cannot be trusted."""
    UNSUPPORTED = "unsupported"
    """An image, but of a format or variant that is not read here."""
    TOO_LARGE = "too_large"
    """Over the limit of bytes, pixels or side ratio, as declared by the header: never decoded."""
    TOO_SMALL = "too_small"
    """Too few pixels to hold a face."""
    UNREADABLE = "unreadable"
    """The bytes could not be fetched: missing, forbidden, encrypted, a damaged archive member, a failing store."""
    DECODER_ERROR = "decoder_error"
    """The decoder failed in some other way; the detail says how."""
    DETECTOR_CRASH = "detector_crash"
    """The process that worked on this image died each time, or the detector raised."""
    MODEL_ERROR = "model_error"
    """The network failed on this face, also alone, or gave something that is no number."""


@dataclass(frozen=True)
class Failure:
    """Why an image gave nothing. detail: one short line for a person, without paths or secrets."""

    reason: Reason
    detail: str
