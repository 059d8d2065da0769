"""A decoded Pillow picture of any mode and profile in, what turns its strips into 8-bit sRGB out.

Naive conversions lose faces: Pillow's own convert("RGB") saturates 16 bits to white, CMYK without its profile shifts
skin, and Display P3 of a phone looks pale. Converters work on strips of rows, so that memory stays small; what belongs
to the whole picture (its range, whether anything is opaque) is found out once.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from dataset_tools.icc import matrix_converter

Converter = Callable[[Image.Image], Image.Image]
"""From a strip of a picture to the same strip in mode RGB."""


def srgb_converter(image: Image.Image) -> tuple[Converter, bool]:
    """What makes sRGB of a strip of this loaded picture, and whether that is just a plain decode.

    Transparency is laid on white, as viewers do; when all is transparent, only the colours are there to see: kept.
    """
    mode, profile = image.mode, image.info.get("icc_profile")
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _to_eight_bits(image), False
    if image.has_transparency_data:
        to_srgb = _to_srgb(profile, "RGB")
        if mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
            return lambda strip: to_srgb(strip.convert("RGB")), False
        return lambda strip: _on_white(strip, to_srgb), False
    if mode in _SPACES:
        to_srgb = _to_srgb(profile, mode)
        return to_srgb, to_srgb is _plain and mode in ("RGB", "L")
    to_srgb = _to_srgb(profile, "RGB")
    return lambda strip: to_srgb(strip.convert("RGB")), False


def _plain(strip: Image.Image) -> Image.Image:
    return strip if strip.mode == "RGB" else strip.convert("RGB")


def _on_white(strip: Image.Image, to_srgb: Converter) -> Image.Image:
    with_alpha = strip.convert("RGBA")
    white = Image.new("RGB", strip.size, (255, 255, 255))
    white.paste(to_srgb(with_alpha.convert("RGB")), mask=with_alpha.getchannel("A"))
    return white


def _to_srgb(profile: bytes | None, mode: str) -> Converter:
    """The converter of a profile, or `_plain` when that changes nothing to speak of or the profile says nothing."""
    return _converter_of(profile or b"", mode)


@functools.lru_cache(maxsize=32)
def _converter_of(profile: bytes, mode: str) -> Converter:
    """That a profile is sRGB is seen by what it does to colours: names and versions of sRGB are many."""
    source = _open_profile(profile, mode)
    if source is None:
        return _plain
    try:
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImageCms.PyCMSError:
        return _plain

    def exact(strip: Image.Image) -> Image.Image:
        return ImageCms.applyTransform(strip, transform)  # type: ignore[return-value]

    if mode not in ("RGB", "L"):
        return exact
    probe = _probe(mode)
    if _largest_change(exact(probe), probe.convert("RGB")) <= _NO_CHANGE:
        return _plain
    fast = matrix_converter(profile) if mode == "RGB" else None
    if fast is not None and _largest_change(fast(probe), exact(probe)) <= _AS_GOOD:
        return fast
    return exact


def _largest_change(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}


def _open_profile(profile: bytes, mode: str) -> ImageCms.ImageCmsProfile | None:
    if profile:
        try:
            opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if opened.profile.xcolor_space == _SPACES[mode]:
                return opened
        except (OSError, ValueError, TypeError):
            pass  # a broken profile says nothing
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")) if mode == "LAB" else None


_NO_CHANGE = 3
"""Levels of 255 by which versions of sRGB differ among each other."""
_AS_GOOD = 2
"""Levels of 255 that are not worth four times the time."""


def _probe(mode: str) -> Image.Image:
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    return Image.fromarray(np.ascontiguousarray(cube.reshape(18 * 18, 18, 3)))


def _to_eight_bits(image: Image.Image) -> Converter:
    """Grey of more than 8 bits, which Pillow's own convert("RGB") cuts off at 255, that is to white.

    A PNG or PGM uses its whole range by definition. A TIFF may hold 10, 12 or 14 bits in 16 and seldom says so: the
    smallest such depth that holds its brightest pixel is taken. Floats are 0 to 1, else 0 to 255, else of any range.
    """
    low, high = (float(value) for value in _extrema(image))
    if image.mode == "F":
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (0.0, 255.0) if low >= 0 and high <= 255 else (low, high)
    elif image.format in ("PNG", "PPM"):
        low, high = 0.0, 65535.0
    else:
        low = min(low, 0.0)
        high = next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits), high)
    scale = 255.0 / ((high - low) or 1.0)

    def convert(strip: Image.Image) -> Image.Image:
        values = (np.asarray(strip).astype(np.float32) - np.float32(low)) * np.float32(scale)
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8)).convert("RGB")

    return convert


def _extrema(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (values.min(), values.max()) if values.size else (0.0, 0.0)
