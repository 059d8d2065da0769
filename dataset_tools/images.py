"""Encoded bytes in, an upright sRGB array out, or the reason why not.

The web is full of broken, huge and odd files, so every bound is checked on the header before anything is decoded, a
damaged file gives a Failure instead of half a picture, and what is shown is what a viewer shows: turned as EXIF says,
in sRGB, 16 bits scaled to 8. Pillow decodes (libjpeg-turbo inside): unlike OpenCV it tells a truncated file.
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
        image.load()
        orientation = _orientation(image)
        convert, stored_rgb = srgb_converter(image)
        pixels = _to_array(image, convert, orientation)
        return DecodedImage(pixels, image.format or kind, orientation == 1, stored_rgb)


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


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, or XMP's; malformed metadata says nothing, and never costs the picture."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:
        return 1
    return int(orientation) if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _as_stored(upright: RgbImage, orientation: int) -> RgbImage:
    """A view of the upright array in the order in which the file stores its rows."""
    flipped = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    view = upright[:: flipped[0], :: flipped[1]]
    return view.transpose(1, 0, 2) if orientation >= 5 else view


def _to_array(image: Image.Image, convert: Callable[[Image.Image], Image.Image], orientation: int) -> RgbImage:
    """The whole picture, converted and turned, one strip of rows at a time.

    Pillow holds four bytes a pixel. By strips that stay in the cache there is one array beside it and no more, and it
    is four times faster than np.asarray(image), which copies everything twice.
    """
    width, height = image.size
    shape = (height, width) if orientation < 5 else (width, height)
    upright = np.empty((*shape, 3), np.uint8)
    stored = _as_stored(upright, orientation)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        strip = convert(image if rows >= height else image.crop((0, top, width, bottom)))
        stored[top:bottom] = np.frombuffer(strip.tobytes(), np.uint8).reshape(bottom - top, width, 3)
    return upright


_STRIP_PIXELS = 128 * 1024


# --- Likeness ---------------------------------------------------------------------------------------------------------


def perceptual_hash(pixels: RgbImage) -> str:
    """64 bits as 16 hex digits that change little when a picture is scaled or compressed again: a DCT pHash.

    The signs of the 8x8 lowest frequencies of a 32x32 grey miniature against their median. A large photo is thinned
    first, which leaves at least 64 pixels to each of the miniature's: the mean hardly moves, and time stays bounded.
    """
    step = max(1, min(pixels.shape[:2]) // 256)
    thinned = np.ascontiguousarray(pixels[::step, ::step])
    small = cv2.resize(thinned, (32, 32), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    # Rounded, so that the noise of the last float digit decides nothing on a flat picture.
    low = np.round(cv2.dct(grey)[:8, :8], 1)
    bits = (low > np.median(low)).ravel()
    return np.packbits(bits).tobytes().hex()


def hamming(a: str, b: str) -> int:
    """Number of bits in which two hashes differ: 0 is alike, up to about 8 near duplicates, around 32 unrelated."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


# --- Out again --------------------------------------------------------------------------------------------------------

_QUALITY = {"jpeg": cv2.IMWRITE_JPEG_QUALITY, "webp": cv2.IMWRITE_WEBP_QUALITY}
_SUFFIX = {"jpeg": ".jpg", "webp": ".webp", "png": ".png"}


def encode(pixels: RgbImage, format: str, quality: int = 95) -> bytes:
    """Encode (height, width, 3) RGB uint8 as "jpeg", "png" or "webp" without metadata. quality: 1 to 100, not for png.

    Raises ValueError for another format or pixels that the format cannot hold.
    """
    if format not in _SUFFIX:
        raise ValueError(f"unknown format {format!r}: choose {', '.join(_SUFFIX)}")
    parameters = [_QUALITY[format], quality] if format in _QUALITY else []
    try:
        done, encoded = cv2.imencode(_SUFFIX[format], cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), parameters)
    except cv2.error as error:
        raise ValueError(f"cannot encode pixels of shape {pixels.shape} as {format}: {error.err}") from None
    if not done:
        raise ValueError(f"cannot encode pixels of shape {pixels.shape} as {format}")
    return encoded.tobytes()


def upright_jpeg(data: bytes, image: DecodedImage, quality: int = 95) -> bytes:
    """A JPEG of what `decode` showed: upright, in sRGB, no EXIF, ending in FF D9, as YOLO trainers want it.

    data: the bytes that `image` was decoded from, kept without loss where their own pixels are just these.
    """
    if image.format in ("JPEG", "MPO") and image.stored_upright and image.stored_rgb:
        stripped = _strip_jpeg(data)
        if stripped is not None:
            return stripped
    return encode(image.pixels, "jpeg", quality)


_SOI, _EOI, _SOS, _APP0, _APP14, _APP15, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xEF, 0xFE
_ALONE = {0x01, *range(0xD0, 0xD8)}
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def _strip_jpeg(data: bytes) -> bytes | None:
    """The first picture of a JPEG file without metadata segments, cut after its end; None when it is not put together
    as the standard says. JFIF and Adobe segments stay: they tell a decoder which colour space the samples are in."""
    kept, at = [b"\xff\xd8"], 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # junk between segments, which libjpeg skips too
            found = _NEXT_MARKER.search(data, at)
            if found is None:
                return None
            at = found.end() - 2
        if data[at + 1] == 0xFF:  # padding
            at += 1
            continue
        marker = data[at + 1]
        if marker == _EOI:
            break
        if marker in _ALONE:
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SOS:
            found = _NEXT_MARKER.search(data, end)
            if found is None:
                return None
            end = found.end() - 2
            kept.append(data[at:end])
        elif _is_needed(marker, data[at + 4 : at + 10]):
            kept.append(data[at:end])
        at = end
    else:
        if data[at : at + 2] != b"\xff\xd9":
            return None
    return b"".join([*kept, b"\xff\xd9"])


def _is_needed(marker: int, body: bytes) -> bool:
    if marker == _COM or _APP0 <= marker <= _APP15:
        return (marker == _APP0 and body.startswith(b"JFIF\0")) or (marker == _APP14 and body.startswith(b"Adobe"))
    return True
