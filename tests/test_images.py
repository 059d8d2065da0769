"""Bytes to upright sRGB pixels within limits, or a reason; and out again as files that trainers accept."""

import io
import struct
import tracemalloc
import warnings
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms, ImageOps

from dataset_tools.encoding import encode, upright_jpeg
from dataset_tools.images import DecodedImage, decode, hamming, perceptual_hash
from dataset_tools.limits import Limits
from schemas.outcomes import Failure, Reason
from tests.test_odd_images import data_file

LIMITS = Limits()

# Four fields of one colour each, so that every turn and mirror image differs: red green / blue white.
FIELDS = np.zeros((32, 48, 3), np.uint8)
FIELDS[:16, :24], FIELDS[:16, 24:], FIELDS[16:, :24], FIELDS[16:, 24:] = (250, 0, 0), (0, 250, 0), (0, 0, 250), 250


def saved(image, format, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels_of(data, limits=LIMITS):
    outcome = decode(data, limits)
    assert isinstance(outcome, DecodedImage), outcome
    return outcome.pixels


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def noise(height, width, seed=0):
    """A picture that compresses like a photo: smooth, with some grain."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 255, (8, 8, 3), np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + random.normal(0, 4, (height, width, 1)), 0, 255).astype(np.uint8)


# --- Formats and turns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "PPM", "WEBP"])
def test_lossless_formats_come_out_exactly(format):
    options = {"lossless": True} if format == "WEBP" else {}
    outcome = decode(saved(FIELDS, format, **options), LIMITS)
    assert (outcome.format, outcome.stored_upright, outcome.stored_rgb) == (format, True, format != "GIF")
    assert (outcome.pixels == FIELDS).all()


@pytest.mark.parametrize("format", ["JPEG", "AVIF", "HEIF"])
def test_lossy_formats_come_out_nearly(format):
    decode(saved(FIELDS, "PNG"), LIMITS)
    if format == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    outcome = decode(saved(FIELDS, format, quality=95), LIMITS)
    assert outcome.format == format
    assert outcome.pixels.shape == FIELDS.shape
    # Away from the edges between fields, which chroma subsampling blurs.
    for y, x in ((5, 5), (5, 40), (27, 5), (27, 40)):
        assert np.abs(outcome.pixels[y, x].astype(int) - FIELDS[y, x]).max() <= 8


TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_each_exif_orientation_is_undone(orientation):
    outcome = decode(saved(FIELDS, "PNG", exif=with_orientation(orientation)), LIMITS)
    assert (outcome.pixels == TURNS[orientation](FIELDS)).all()
    assert outcome.pixels.flags.c_contiguous
    assert outcome.stored_upright == (orientation == 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_illegal_orientation_says_nothing(orientation):
    outcome = decode(saved(FIELDS, "PNG", exif=with_orientation(orientation)), LIMITS)
    assert outcome.stored_upright
    assert (outcome.pixels == FIELDS).all()


@pytest.mark.parametrize("format", ["JPEG", "HEIF", "AVIF"])
def test_a_phone_photo_is_turned_exactly_once(format):
    if format == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    upright = pixels_of(saved(FIELDS, format, quality=95, exif=with_orientation(6).tobytes()))
    expected = TURNS[6](FIELDS)
    assert upright.shape == expected.shape
    for y, x in ((5, 5), (5, 27), (40, 5), (40, 27)):
        assert np.abs(upright[y, x].astype(int) - expected[y, x]).max() <= 8


def test_a_picture_of_several_strips_is_whole():
    large = noise(1500, 1003)
    assert (pixels_of(saved(large, "BMP")) == large).all()
    assert (pixels_of(saved(large, "TIFF", exif=with_orientation(6))) == np.rot90(large, -1)).all()


def test_of_an_animation_the_first_frame_counts():
    other = Image.fromarray(255 - FIELDS)
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = saved(FIELDS, format, save_all=True, append_images=[other], **options)
        assert (pixels_of(data) == FIELDS).all()


# --- Colours ----------------------------------------------------------------------------------------------------------


def test_transparency_is_laid_on_white():
    rgba = np.dstack([FIELDS, np.full(FIELDS.shape[:2], 255, np.uint8)])
    rgba[:, :24, 3] = 0
    rgba[:16, 24:, 3] = 128
    pixels = pixels_of(saved(rgba, "PNG"))
    assert (pixels[:, :24] == 255).all()
    assert (pixels[0, 30] == (127, 252, 127)).all()
    assert (pixels[20, 30] == 250).all()


def test_a_picture_that_is_all_transparent_keeps_its_colours():
    rgba = np.dstack([FIELDS, np.zeros(FIELDS.shape[:2], np.uint8)])
    assert (pixels_of(saved(rgba, "PNG")) == FIELDS).all()


def test_palette_grey_and_one_bit_pictures_keep_their_values():
    palette = Image.fromarray(FIELDS).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (pixels_of(saved(palette, "PNG")) == FIELDS).all()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (pixels_of(saved(grey, "PNG")) == grey[..., None]).all()
    one_bit = Image.fromarray(FIELDS[..., 0] > 100)
    assert (pixels_of(saved(one_bit, "PNG")) == np.where(FIELDS[..., :1] > 100, 255, 0)).all()
    transparent = pixels_of(saved(palette, "PNG", transparency=palette.getpixel((0, 0))))
    assert (transparent[0, 0] == 255).all()
    assert (transparent[0, 30] == (0, 250, 0)).all()


@pytest.mark.parametrize("format", ["PNG", "PPM"])
def test_sixteen_bit_grey_is_scaled_by_its_whole_range(format):
    values = np.array([0, 257, 32768, 65535], np.uint16).repeat(64).reshape(16, 16)
    image = Image.frombytes("I;16", (16, 16), values.tobytes())
    expected = np.array([0, 1, 128, 255]).repeat(64).reshape(16, 16)
    assert (pixels_of(saved(image, format))[..., 0] == expected).all()


@pytest.mark.parametrize(("brightest", "expected"), [(255, 255), (1023, 255), (4095, 255), (2048, 128), (65535, 255)])
def test_a_tiff_of_ten_to_sixteen_bits_is_scaled_by_the_depth_it_uses(brightest, expected):
    values = np.zeros((16, 16), np.uint16)
    values[8:] = brightest
    image = Image.frombytes("I;16", (16, 16), values.tobytes())
    pixels = pixels_of(saved(image, "TIFF"))
    assert (pixels[0] == 0).all()
    assert (pixels[15] == expected).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 255.0], [0, 100, 255]), ([-1.0, 0.0, 3.0], [0, 64, 255])],
)
def test_floats_are_scaled_by_the_range_they_use(values, expected):
    array = np.array(values, np.float32).repeat(96).reshape(3 * 6, 16)
    assert (pixels_of(saved(array, "TIFF"))[..., 1] == np.array(expected).repeat(96).reshape(18, 16)).all()


def test_floats_that_are_no_numbers_are_black():
    array = np.full((16, 16), np.nan, np.float32)
    array[8:] = 1.0
    array[0, 0] = np.inf
    pixels = pixels_of(saved(array, "TIFF"))
    assert (pixels[1, 1] == 0).all()
    assert (pixels[15] == 255).all()


def profile(name):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def wide_gamut_profile():
    """A matrix profile of Display P3's primaries with the curve of sRGB, put together by hand."""
    srgb = bytearray(profile("sRGB"))
    count = struct.unpack_from(">L", srgb, 128)[0]
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2920, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    for at in range(132, 132 + 12 * count, 12):
        tag, offset, _ = struct.unpack_from(">4sLL", srgb, at)
        if tag in primaries:
            struct.pack_into(">3l", srgb, offset + 8, *(round(value * 65536) for value in primaries[tag]))
    return bytes(srgb)


def test_a_wide_gamut_profile_is_converted_and_srgb_is_left_alone():
    pale = np.full((16, 16, 3), (200, 100, 100), np.uint8)
    wide = decode(saved(pale, "PNG", icc_profile=wide_gamut_profile()), LIMITS)
    assert not wide.stored_rgb
    assert np.abs(wide.pixels[0, 0].astype(int) - (215, 95, 97)).max() <= 3
    plain = decode(saved(pale, "PNG", icc_profile=profile("sRGB")), LIMITS)
    assert plain.stored_rgb
    assert (plain.pixels == pale).all()


@pytest.mark.parametrize("broken", [b"", b"x", b"x" * 1000, profile("sRGB")[:200], profile("LAB")])
def test_a_broken_profile_or_one_of_another_space_says_nothing(broken):
    outcome = decode(saved(FIELDS, "PNG", icc_profile=broken), LIMITS)
    assert (outcome.pixels == FIELDS).all()


def test_cmyk_becomes_rgb():
    cmyk = Image.fromarray(FIELDS).convert("CMYK")
    for format, limit in (("TIFF", 0), ("JPEG", 8)):
        outcome = decode(saved(cmyk, format, **({"quality": 95} if limit else {})), LIMITS)
        assert not outcome.stored_rgb
        assert np.abs(outcome.pixels[5, 5].astype(int) - FIELDS[5, 5]).max() <= limit


# --- Limits and failures ----------------------------------------------------------------------------------------------


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 10) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"", Failure(Reason.NOT_AN_IMAGE, "empty: 0 bytes")),
        (b"hello", Failure(Reason.NOT_AN_IMAGE, "text")),
        (b"\n<!DOCTYPE HTML><html>404", Failure(Reason.NOT_AN_IMAGE, "an HTML page")),
        (b"<?xml version='1.0'?><Error/>", Failure(Reason.NOT_AN_IMAGE, "text")),
        (b"\0\1\2\3", Failure(Reason.NOT_AN_IMAGE, "no known image format")),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", Failure(Reason.NOT_AN_IMAGE, "a video or other media file (mp42)")),
        (b"8BPS\0\1", Failure(Reason.UNSUPPORTED, "Photoshop files are not read")),
        (b"<svg xmlns='x'/>", Failure(Reason.UNSUPPORTED, "SVG files are not read")),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg>", Failure(Reason.UNSUPPORTED, "SVG files are not read")),
        (b"%PDF-1.4", Failure(Reason.UNSUPPORTED, "PDF files are not read")),
        (b"\0\0\1\0\1\0", Failure(Reason.UNSUPPORTED, "icon files are not read")),
        (png_header(50_000, 50_000), Failure(Reason.TOO_LARGE, "2500000000 pixels declared")),
        (png_header(12_000, 12_000), Failure(Reason.TOO_LARGE, "12000x12000 is over 128000000 pixels")),
        (png_header(11, 500), Failure(Reason.TOO_SMALL, "11x500: a side is under 12 px")),
        (png_header(12, 1201), Failure(Reason.TOO_LARGE, "12x1201: one side is over 100 times the other")),
    ],
    ids=lambda value: value.detail if isinstance(value, Failure) else "",
)
def test_what_cannot_be_decoded_says_why(data, outcome):
    assert decode(data, LIMITS) == outcome


def test_limits_are_inclusive():
    image = saved(np.zeros((12, 1200, 3), np.uint8), "PNG")
    assert pixels_of(image, Limits(max_pixels=14400)).shape == (12, 1200, 3)
    for limits, reason in [
        (Limits(max_pixels=14399), Reason.TOO_LARGE),
        (Limits(max_side_ratio=99.9), Reason.TOO_LARGE),
        (Limits(min_side_px=13), Reason.TOO_SMALL),
    ]:
        assert decode(image, limits).reason is reason


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_file_cut_short_is_truncated_in_every_format(format, part):
    if format == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    whole = saved(noise(256, 256), format)
    outcome = decode(whole[: int(len(whole) * part)], LIMITS)
    assert isinstance(outcome, Failure)
    assert outcome.reason is Reason.TRUNCATED, outcome


def test_a_progressive_jpeg_cut_short_is_not_shown_blurred():
    whole = saved(noise(256, 256), "JPEG", progressive=True)
    assert decode(whole[: len(whole) * 2 // 3], LIMITS).reason is Reason.TRUNCATED


def test_bytes_after_the_end_do_no_harm():
    data = saved(FIELDS, "JPEG", quality=95)
    assert (pixels_of(data + b"junk" * 100) == pixels_of(data)).all()


def test_random_damage_never_raises_nor_warns():
    random = np.random.default_rng(0)
    from pillow_heif import register_heif_opener

    register_heif_opener()
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"):
        whole = np.frombuffer(saved(noise(64, 64), format, exif=with_orientation(6)), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            places = random.integers(0, len(whole) if random.random() < 0.5 else min(200, len(whole)), 8)
            damaged[places] = random.integers(0, 256, 8)
            outcome = decode(damaged.tobytes(), LIMITS)
            assert isinstance(outcome, DecodedImage | Failure)


def test_metadata_that_warns_is_silent():
    data = saved(FIELDS, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(decode(data, LIMITS), DecodedImage)


@pytest.mark.parametrize(("format", "orientation", "arrays"), [("JPEG", 1, 1.0), ("JPEG", 6, 2.0), ("PNG", 6, 1.2)])
def test_a_large_photo_costs_its_array_and_little_else(format, orientation, arrays):
    """Python's own arrays, beside which Pillow keeps 4 bytes a pixel of all but plain JPEGs: so those may be turned in
    a second array of 3."""
    data = saved(noise(2000, 3000), format, exif=with_orientation(orientation))
    tracemalloc.start()
    pixels = pixels_of(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.nbytes == 18_000_000
    assert peak < (arrays + 0.05) * pixels.nbytes


# --- JPEGs past Pillow ------------------------------------------------------------------------------------------------


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_plain_jpeg_is_what_pillow_makes_of_it(mode, orientation):
    picture = Image.fromarray(noise(61, 97)).convert(mode)
    data = io.BytesIO()
    picture.save(data, "JPEG", exif=with_orientation(orientation), progressive=orientation % 2 == 0)
    outcome = decode(data.getvalue(), LIMITS)
    np.testing.assert_array_equal(outcome.pixels, by_pillow(data.getvalue()))
    assert outcome.pixels.flags.c_contiguous
    assert (outcome.format, outcome.stored_upright, outcome.stored_rgb) == ("JPEG", orientation == 1, True)


def test_pillow_has_the_word_where_libjpeg_only_warns():
    """Damage in the middle costs some blocks, which Pillow shows as they are; a file that ends early it refuses."""
    data = bytearray(saved(noise(64, 64), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\xd5"  # a restart marker where none belongs
    with pytest.raises(ValueError, match=r"(?i)corrupt"):
        simplejpeg.decode_jpeg(bytes(data), "RGB")
    np.testing.assert_array_equal(pixels_of(bytes(data)), by_pillow(bytes(data)))
    assert decode(saved(noise(64, 64), "JPEG")[:-40], LIMITS).reason == Reason.TRUNCATED


def test_a_second_header_that_says_larger_gets_no_more_room():
    """Pillow reads sizes up to the first scan's header by its own rules; memory is given by what it read."""
    data = saved(noise(64, 64), "JPEG")
    at = data.index(b"\xff\xc0")
    frame = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    larger = frame[:5] + (9000).to_bytes(2, "big") * 2 + frame[9:]
    for hostile in (data[:at] + larger + data[at:], data[:at] + frame + larger + data[at + len(frame) :]):
        tracemalloc.start()
        outcome = decode(hostile, LIMITS)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(outcome, Failure)
        assert peak < 300_000_000


# --- Likeness ---------------------------------------------------------------------------------------------------------


def test_the_hash_is_these_sixteen_digits():
    """Written down: hashes are kept in data sets, so they must not drift."""
    waves = np.sin(np.add.outer(np.arange(96) ** 1.5 / 20, np.arange(128) / 9)) * 120 + 128
    assert perceptual_hash(waves.astype(np.uint8)[..., None].repeat(3, axis=2)) == "aca8aca8a8f8f8f8"
    assert perceptual_hash(np.zeros((64, 64, 3), np.uint8)) == "0000000000000000"
    assert len(perceptual_hash(np.full((12, 500, 3), 128, np.uint8))) == 16


def test_hashes_of_a_picture_scaled_or_compressed_are_near_and_of_others_far():
    pictures = [noise(600, 800, seed) for seed in range(6)]
    hashes = [perceptual_hash(picture) for picture in pictures]
    for picture, expected in zip(pictures, hashes, strict=True):
        small = cv2.resize(picture, (320, 240), interpolation=cv2.INTER_AREA)
        large = cv2.resize(picture, (2400, 1800), interpolation=cv2.INTER_CUBIC)
        again = pixels_of(encode(picture, "jpeg", 40))
        assert max(hamming(perceptual_hash(other), expected) for other in (small, large, again)) <= 6
    assert min(hamming(a, b) for at, a in enumerate(hashes) for b in hashes[at + 1 :]) >= 14


def test_hamming_counts_bits():
    assert hamming("0000000000000000", "ffffffffffffffff") == 64
    assert hamming("000000000000000f", "0000000000000000") == 4
    assert hamming("8000000000000001", "8000000000000000") == 1


# --- Out again --------------------------------------------------------------------------------------------------------


def test_encoding_keeps_the_order_of_colours():
    assert (pixels_of(encode(FIELDS, "png")) == FIELDS).all()
    for format in ("jpeg", "webp"):
        back = pixels_of(encode(FIELDS, format, 95))
        assert np.abs(back[5, 5].astype(int) - (250, 0, 0)).max() <= 8
    assert len(encode(noise(200, 200), "jpeg", 50)) < len(encode(noise(200, 200), "jpeg", 95))


def test_a_format_or_picture_that_cannot_be_written_is_told():
    with pytest.raises(ValueError, match="unknown format 'bmp': choose jpeg, webp, png"):
        encode(FIELDS, "bmp")
    with pytest.raises(ValueError, match="cannot encode pixels of shape"):
        encode(np.zeros((70_000, 12, 3), np.uint8), "jpeg")


def segments(data):
    """Markers of a JPEG up to its scan."""
    markers, at = [], 2
    while data[at + 1] != 0xDA:
        markers.append(data[at + 1])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return markers


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_blocks": 4}])
def test_an_upright_jpeg_is_copied_without_loss_and_without_metadata(options):
    data = saved(
        noise(200, 304), "JPEG", exif=with_orientation(1), comment=b"secret", icc_profile=profile("sRGB"), **options
    )
    image = decode(data, LIMITS)
    for tail in (b"", b"\0" * 100, b"junk", data):
        copy = upright_jpeg(data + tail, image)
        assert copy.endswith(b"\xff\xd9")
        assert (pixels_of(copy) == image.pixels).all()
        assert set(segments(copy)) & {0xE1, 0xE2, 0xED, 0xFE} == set()
        assert b"Exif" not in copy
        assert b"secret" not in copy
        assert len(copy) < len(data)


def test_a_copy_of_a_grey_jpeg_stays_grey():
    data = saved(Image.fromarray(noise(64, 64)).convert("L"), "JPEG")
    assert Image.open(io.BytesIO(upright_jpeg(data, decode(data, LIMITS)))).mode == "L"


@pytest.mark.parametrize(
    "data",
    [
        saved(FIELDS, "JPEG", exif=with_orientation(6), quality=95),
        saved(FIELDS, "JPEG", icc_profile=wide_gamut_profile(), quality=95),
        saved(Image.fromarray(FIELDS).convert("CMYK"), "JPEG", quality=95),
        saved(FIELDS, "PNG"),
    ],
    ids=["turned", "wide gamut", "cmyk", "png"],
)
def test_what_was_turned_or_converted_is_encoded_as_it_was_shown(data):
    image = decode(data, LIMITS)
    copy = upright_jpeg(data, image)
    assert copy.startswith(b"\xff\xd8")
    assert copy.endswith(b"\xff\xd9")
    again = decode(copy, LIMITS)
    assert again.stored_upright
    assert again.stored_rgb
    assert again.pixels.shape == image.pixels.shape
    assert np.abs(again.pixels[5, 5].astype(int) - image.pixels[5, 5]).max() <= 8


def test_every_jpeg_of_the_awkward_files_makes_an_upright_copy():
    import tarfile

    with tarfile.open(data_file("odd_images.tar")) as tar:
        for info in tar:
            data = tar.extractfile(info).read() if info.isfile() else b""
            image = decode(data, LIMITS)
            if isinstance(image, Failure) or image.pixels.size > 5_000_000:
                continue
            copy = upright_jpeg(data, image)
            assert copy.endswith(b"\xff\xd9")
            again = decode(copy, LIMITS)
            assert again.format == "JPEG"
            assert again.stored_upright
            assert again.pixels.shape == image.pixels.shape
            if image.format in ("JPEG", "MPO") and image.stored_upright and image.stored_rgb:
                assert (again.pixels == image.pixels).all(), info.name
