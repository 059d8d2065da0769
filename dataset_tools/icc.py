"""The common kind of RGB profile (three primaries and a curve each) to sRGB, four times faster than LittleCMS.

Every phone photo in Display P3 is of this kind, and through Pillow its conversion takes 26 ns a pixel, six times the
decoding. The caller compares with LittleCMS before it trusts this. Tags and numbers as in the specification ICC.1.
"""

import struct
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

_SRGB_PRIMARIES = np.array(  # columns: XYZ of red, green and blue, adapted to D50
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
_STEPS = 2**14


def matrix_converter(profile: bytes) -> Callable[[Image.Image], Image.Image] | None:
    """What takes an RGB strip to sRGB; None for a profile of tables, or one that breaks off."""
    try:
        tags = _tags(profile)
        if b"A2B0" in tags:
            return None
        primaries = np.array([_fixed(tags[name][8:20]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]).T
        curves = np.stack([_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")], axis=-1)
    except (KeyError, IndexError, ValueError, struct.error):
        return None
    matrix = (np.linalg.inv(_SRGB_PRIMARIES) @ primaries * (_STEPS - 1)).astype(np.float32)
    linear = np.linspace(0, 1, _STEPS)
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    encoded = (gamma * 255 + 0.5).astype(np.uint8)
    decoded = curves.astype(np.float32)[None]

    def convert(strip: Image.Image) -> Image.Image:
        mixed = cv2.transform(cv2.LUT(np.asarray(strip), decoded), matrix)
        np.clip(mixed, 0, _STEPS - 1, out=mixed)
        return Image.fromarray(encoded[mixed.astype(np.uint16)])

    return convert


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">L", profile, 128)
    entries = (struct.unpack_from(">4sLL", profile, 132 + 12 * n) for n in range(min(count, 100)))
    return {name: profile[offset : offset + size] for name, offset, size in entries}


def _fixed(data: bytes) -> list[float]:
    return [value / 65536 for value in struct.unpack(f">{len(data) // 4}l", data[: len(data) // 4 * 4])]


def _curve(tag: bytes) -> np.ndarray:
    """The 256 linear values, 0 to 1, of a tone curve."""
    values = np.linspace(0, 1, 256)
    if tag[:4] == b"para":
        return _parametric(int.from_bytes(tag[8:10], "big"), _fixed(tag[12:]), values)
    if tag[:4] != b"curv":
        raise ValueError("neither a curve nor a parametric curve")
    count = int.from_bytes(tag[8:12], "big")
    table = np.frombuffer(tag, ">u2", count, 12)
    if count == 0:
        return values
    if count == 1:
        return values ** (table[0] / 256)
    return np.interp(values, np.linspace(0, 1, count), table / 65535)


def _parametric(kind: int, numbers: list[float], x: np.ndarray) -> np.ndarray:
    g, a, b, c, d, e, f = 1.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0
    if kind == 0:
        (g,) = numbers[:1]
    elif kind == 3:
        g, a, b, c, d = numbers[:5]
    elif kind == 4:
        g, a, b, c, d, e, f = numbers[:7]
    else:
        raise ValueError("a parametric curve of a rare kind")
    return np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)
