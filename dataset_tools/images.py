"""Encoded bytes in, an upright sRGB array out, or the reason why not.

The web is full of broken, huge and odd files, so every bound is checked on the header before anything is decoded, a
damaged file gives a Failure instead of half a picture, and what is shown is what a viewer shows: turned as EXIF says,
in sRGB, 16 bits scaled to 8. Pillow decodes, since unlike OpenCV it tells a truncated file; the plain JPEGs, which
most photos are, go straight through libjpeg-turbo, the same library that Pillow has inside.
"""

import functools
import io
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image, UnidentifiedImageError

from dataset_tools.colour import srgb_converter
from dataset_tools.detection import RgbImage
from dataset_tools.limits import Limits
from schemas.outcomes import Failure, Reason


@dataclass(frozen=True)
class DecodedImage:
    """pixels: (height, width, 3) uint8 RGB, upright, C-contiguous. format: Pillow's name of it, "JPEG" and so on.

    stored_upright: the file's own pixels are upright (orientation 1 or none). stored_rgb: they have these colours, a
    plain RGB or grey decode with no profile, alpha or 16 bits converted. Where both hold, a copy may reuse the bytes.
    """

    pixels: RgbImage
    format: str
    stored_upright: bool
    stored_rgb: bool


def decode(data: bytes, limits: Limits) -> DecodedImage | Failure:
    """Decode one encoded image; of an animation the first frame. Whatever is wrong with it comes back as a Failure.

    Transparency is laid on white, as a viewer shows it; when everything is transparent only the colours are left to
    show, so they are kept.
    """
    kind = _sniff(data)
    if isinstance(kind, Failure):
        return kind
    try:
        # Pillow warns of odd metadata and of sizes above its own bound; ours is checked below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, kind, limits)
    except UnidentifiedImageError:
        return _failure(_header_error(data, kind), data, limits)
    except Exception as error:  # a decoder fed with hostile bytes raises anything: SyntaxError, struct.error, …
        return _failure(error, data, limits)


def _decode(data: bytes, kind: str, limits: Limits) -> DecodedImage | Failure:
    if kind == "HEIF":
        _register_heif()
    with Image.open(io.BytesIO(data), formats=_PLUGINS.get(kind, (kind,))) as image:
        refused = _refused(*image.size, limits)
        if refused is not None:
            return refused
        plain = _plain_jpeg(data, image)
        if plain is not None:
            return plain
        image.load()
        orientation = _orientation(image)
        convert, stored_rgb = srgb_converter(image)
        pixels = _plain_array(image, orientation) if stored_rgb else _converted_array(image, convert, orientation)
        return DecodedImage(pixels, image.format or kind, orientation == 1, stored_rgb)


def _plain_jpeg(data: bytes, image: Image.Image) -> DecodedImage | None:
    """A JPEG in RGB or grey without a profile that matters, at three quarters of the time that Pillow takes, whose four
    bytes a pixel are never there. None for any other picture, and for one that libjpeg has the least doubt about: there
    Pillow has the word, and what it says of damage."""
    if image.format not in _PLUGINS["JPEG"] or image.mode not in ("RGB", "L") or not srgb_converter(image)[1]:
        return None
    # Room for what the header says and not more: a second header in a hostile file may say something else.
    stored = np.empty((image.height, image.width, 3), np.uint8)
    try:
        if simplejpeg.decode_jpeg(data, "RGB", buffer=stored).shape != stored.shape:
            return None
    except ValueError:
        return None
    orientation = _orientation(image)
    return DecodedImage(_turned(stored, orientation), image.format, orientation == 1, True)


# --- What the bytes are -----------------------------------------------------------------------------------------------

_PLUGINS = {"JPEG": ("JPEG", "MPO")}
"""Pillow opens a JPEG first and turns it into an MPO when it holds several pictures."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_UNREAD: tuple[tuple[bytes, str], ...] = (
    (b"8BPS", "Photoshop"),
    (b"\0\0\1\0", "icon"),
    (b"\0\0\2\0", "cursor"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"DDS ", "DDS"),
    (b"icns", "icns"),
    (b"qoif", "QOI"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"gimp xcf", "GIMP"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIU\0", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"MMOR", "camera raw"),
    (b"II\x1a\0\0\0HEAPCCDR", "camera raw"),
)
_SVG = re.compile(rb"^(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", re.S)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}


def _sniff(data: bytes) -> str | Failure:
    """The name of the decoder, by the first bytes alone: a name's ending says nothing."""
    if not data:
        return Failure(Reason.NOT_AN_IMAGE, "empty: 0 bytes")
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF"
        return Failure(Reason.NOT_AN_IMAGE, f"a video or other media file ({ascii(data[8:12])[2:-1]})")
    if re.match(rb"P[1-6]\s", data):
        return "PPM"
    for magic, name in _UNREAD:
        if data.startswith(magic):
            return Failure(Reason.UNSUPPORTED, f"{name} files are not read")
    if _SVG.match(data[:2048]):
        return Failure(Reason.UNSUPPORTED, "SVG files are not read")
    return Failure(Reason.NOT_AN_IMAGE, _what_else(data))


def _what_else(data: bytes) -> str:
    head = data[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a git LFS pointer: fetch the file itself with git lfs pull"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head.startswith((b"{", b"[", b"<?xml")) or not re.search(rb"[^\t\n\r\x20-\x7e]", data[:512]):
        return "text"
    return "no known image format"


# --- What it may be ---------------------------------------------------------------------------------------------------


def _refused(width: int, height: int, limits: Limits) -> Failure | None:
    if width * height > limits.max_pixels:
        return Failure(Reason.TOO_LARGE, f"{width}x{height} is over {limits.max_pixels} pixels")
    if min(width, height) < limits.min_side_px:
        return Failure(Reason.TOO_SMALL, f"{width}x{height}: a side is under {limits.min_side_px} px")
    if max(width, height) > limits.max_side_ratio * min(width, height):
        return Failure(
            Reason.TOO_LARGE, f"{width}x{height}: one side is over {limits.max_side_ratio:g} times the other"
        )
    return None


def _header_error(data: bytes, kind: str) -> Exception:
    """What the plugin of this format raised: Image.open only says that no plugin took the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.OPEN[kind][0](io.BytesIO(data), "").close()
    except Exception as error:
        return error
    return SyntaxError("damaged header")


_UNREAD_VARIANT = re.compile(r"(?i)unknown|unsupported|not supported|cannot handle|can't handle|not implemented")
_ENDS_EARLY = re.compile(
    r"(?i)truncat|broken data stream|unrecognized data stream|end.of.(file|image|data)|incomplete|not enough|broken png"
    r"|unexpected eof|bad checksum|buffer is not large|failed to read next frame"
)


def _failure(error: Exception, data: bytes, limits: Limits) -> Failure:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    # Pillow quotes the address of the buffer, which differs from run to run.
    text = re.sub(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", text)[:160]
    if isinstance(error, Image.DecompressionBombError):
        size = re.search(r"\((\d+) pixels\)", text)
        return Failure(Reason.TOO_LARGE, f"{size[1] if size else 'too many'} pixels declared")
    declared = _declared_size(data)
    if declared is not None and isinstance(refused := _refused(*declared, limits), Failure):
        return refused
    if isinstance(error, MemoryError):
        return Failure(Reason.TOO_LARGE, "not enough memory to decode it")
    if isinstance(error, EOFError | IndexError | struct.error) or _is_cut_short(data) or _ENDS_EARLY.search(text):
        return Failure(Reason.TRUNCATED, text)
    if isinstance(error, NotImplementedError) or _UNREAD_VARIANT.search(text):
        return Failure(Reason.UNSUPPORTED, text)
    return Failure(Reason.DECODER_ERROR, text)


def _is_cut_short(data: bytes) -> bool:
    """Whether a WebP, AVIF or HEIF is shorter than its outermost boxes say: its decoder tells only that it failed."""
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    at = 0
    while data[4:8] == b"ftyp" and at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: to the end of the file
            return False
        at += size
    return data[4:8] == b"ftyp" and at != len(data)


def _declared_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the first `ispe` box of an AVIF or HEIF, whose decoders refuse a huge one without a word."""
    at = data.find(b"ispe", 0, 65536) if data[4:8] == b"ftyp" else -1
    if at < 0 or len(data) < at + 16:
        return None
    width, height = struct.unpack_from(">II", data, at + 8)
    return width, height


@functools.cache
def _register_heif() -> None:
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1  # one process per core, one thread each
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.AUX_IMAGES = False
    pillow_heif.register_heif_opener()


# --- Upright ----------------------------------------------------------------------------------------------------------

_ORIENTATION_TAG = 0x0112
_FLIP = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
"""How a stored picture is mirrored to stand upright, after the transposition of 5 to 8, in OpenCV's codes: 0 top to
bottom, 1 left to right, -1 both."""


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, or XMP's; malformed metadata says nothing, and never costs the picture."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:
        return 1
    return int(orientation) if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _as_stored(upright: RgbImage, orientation: int) -> RgbImage:
    """A view of the upright array in the order in which the file stores its rows."""
    flip = _FLIP.get(orientation)
    view = upright[:: -1 if flip in (0, -1) else 1, :: -1 if flip in (1, -1) else 1]
    return view.transpose(1, 0, 2) if orientation >= 5 else view


def _turned(stored: RgbImage, orientation: int) -> RgbImage:
    """The rows as the file stores them, turned upright: in place where no side changes, in a quarter of the time that
    an assignment to the view of `_as_stored` takes."""
    turned = cv2.transpose(stored) if orientation >= 5 else stored
    if orientation in _FLIP:
        cv2.flip(turned, _FLIP[orientation], dst=turned)
    return turned.astype(np.uint8, copy=False)


# Pillow then keeps a picture in one block, which Arrow and numpy can look at without a copy.
Image.core.set_use_block_allocator(1)  # type: ignore[attr-defined]


def _plain_array(image: Image.Image, orientation: int) -> RgbImage:
    """A loaded picture of mode RGB or L, turned. Pillow holds four bytes a pixel of RGB; dropping the fourth straight
    from its memory takes a quarter of the time of `tobytes`, and an eighth of np.asarray."""
    width, height = image.size
    upright = _upright_array(width, height, orientation)
    channels = 4 if image.mode == "RGB" else 1
    memory = np.asarray(pa.array(image) if channels == 1 else pa.array(image).flatten())
    memory = memory.reshape(height, width, channels)
    stored = _as_stored(upright, orientation)
    rows = max(1, _STRIP_PIXELS // width)
    code = cv2.COLOR_RGBA2RGB if channels == 4 else cv2.COLOR_GRAY2RGB
    for top in range(0, height, rows):
        stored[top : top + rows] = cv2.cvtColor(memory[top : top + rows], code)
    return upright


def _upright_array(width: int, height: int, orientation: int) -> RgbImage:
    return np.empty((height, width, 3) if orientation < 5 else (width, height, 3), np.uint8)


def _converted_array(image: Image.Image, convert: Callable[[Image.Image], Image.Image], orientation: int) -> RgbImage:
    """The whole picture, converted and turned, one strip of rows at a time: what stays in the cache needs no memory."""
    width, height = image.size
    upright = _upright_array(width, height, orientation)
    stored = _as_stored(upright, orientation)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        strip = convert(image if rows >= height else image.crop((0, top, width, bottom)))
        stored[top:bottom] = np.frombuffer(strip.tobytes(), np.uint8).reshape(bottom - top, width, 3)
    return upright


_STRIP_PIXELS = 128 * 1024


# --- Likeness ---------------------------------------------------------------------------------------------------------


_THINNED_PX = 256


def perceptual_hash(pixels: RgbImage) -> str:
    """64 bits as 16 hex digits that change little when a picture is scaled or compressed again: a DCT pHash.

    The signs of the 8x8 lowest frequencies of a 32x32 grey miniature against their median. A large photo is thinned
    first, which leaves 64 pixels to each of the miniature's: the mean hardly moves, and time stays bounded.
    """
    if min(pixels.shape[:2]) > _THINNED_PX:
        pixels = cv2.resize(pixels, (_THINNED_PX, _THINNED_PX), interpolation=cv2.INTER_NEAREST).astype(
            np.uint8, copy=False
        )
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    # Rounded, so that the noise of the last float digit decides nothing on a flat picture.
    low = np.round(cv2.dct(grey)[:8, :8], 1)
    bits = (low > np.median(low)).ravel()
    return np.packbits(bits).tobytes().hex()


def hamming(a: str, b: str) -> int:
    """Number of bits in which two hashes differ: 0 is alike, up to about 8 near duplicates, around 32 unrelated."""
    return (int(a, 16) ^ int(b, 16)).bit_count()
