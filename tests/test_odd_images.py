"""What becomes of each of 161 awkward files: its upright size and format, or the reason why not.

`turned`: the file's own pixels lie otherwise. `converted`: its colours are not those of a plain decode. Both matter to
a copy that would reuse the file's bytes.
"""

import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_tools.images import DecodedImage, decode
from dataset_tools.limits import Limits

EXPECTED = """
avif/avif-orientation-6.avif                       3024x4032 AVIF converted
avif/hopper.avif                                   128x128 AVIF
avif/rot0mir0.avif                                 640x427 AVIF turned
avif/rot0mir1.avif                                 640x427 AVIF turned
avif/rot1mir0.avif                                 640x427 AVIF turned
avif/rot1mir1.avif                                 640x427 AVIF turned
avif/rot2mir0.avif                                 640x427 AVIF turned
avif/rot2mir1.avif                                 640x427 AVIF turned
avif/rot3mir0.avif                                 640x427 AVIF turned
avif/rot3mir1.avif                                 640x427 AVIF turned
avif/star.avifs                                    159x159 AVIF converted
avif/transparency.avif                             64x64 AVIF converted
bomb/17000x17000.avif                              too_large
bomb/big-height.webp                               13x169 WEBP
bomb/decompression_bomb.gif                        too_large
bomb/decompression_bomb.ico                        unsupported
bomb/decompression_bomb_extents.gif                100x100 GIF converted
bomb/jpeg_65500x65500_header.jpg                   too_large
bomb/png_20000x20000_1bit_real.png                 too_large
bomb/png_60000x60000_header_only.png               too_large
cmyk/face_cmyk.jpg                                 256x256 JPEG converted
cmyk/face_cmyk.tif                                 256x256 TIFF converted
cmyk/pil_sample_cmyk.jpg                           100x100 JPEG converted
empty_or_fake/UPPER.JPG                            128x128 JPEG
empty_or_fake/html_error_page.jpg                  not_an_image
empty_or_fake/jpeg_magic_then_garbage.jpg          truncated
empty_or_fake/jpeg_named.png                       128x128 JPEG
empty_or_fake/jpeg_without_extension               128x128 JPEG
empty_or_fake/lfs_pointer.jpg                      not_an_image
empty_or_fake/one_byte.jpg                         not_an_image
empty_or_fake/png_named.jpg                        128x128 PNG
empty_or_fake/random_bytes.jpg                     not_an_image
empty_or_fake/text.jpg                             not_an_image
empty_or_fake/zero_bytes.jpg                       not_an_image
empty_or_fake/zero_bytes.png                       not_an_image
empty_or_fake/имя с пробелом и ünïcode 脸.jpg       128x128 JPEG
exif_orientation/Landscape_0.jpg                   1800x1200 JPEG
exif_orientation/Landscape_1.jpg                   1800x1200 JPEG
exif_orientation/Landscape_2.jpg                   1800x1200 JPEG turned
exif_orientation/Landscape_3.jpg                   1800x1200 JPEG turned
exif_orientation/Landscape_4.jpg                   1800x1200 JPEG turned
exif_orientation/Landscape_5.jpg                   1800x1200 JPEG turned
exif_orientation/Landscape_6.jpg                   1800x1200 JPEG turned
exif_orientation/Landscape_7.jpg                   1800x1200 JPEG turned
exif_orientation/Landscape_8.jpg                   1800x1200 JPEG turned
exif_orientation/Portrait_0.jpg                    1200x1800 JPEG
exif_orientation/Portrait_1.jpg                    1200x1800 JPEG
exif_orientation/Portrait_2.jpg                    1200x1800 JPEG turned
exif_orientation/Portrait_3.jpg                    1200x1800 JPEG turned
exif_orientation/Portrait_4.jpg                    1200x1800 JPEG turned
exif_orientation/Portrait_5.jpg                    1200x1800 JPEG turned
exif_orientation/Portrait_6.jpg                    1200x1800 JPEG turned
exif_orientation/Portrait_7.jpg                    1200x1800 JPEG turned
exif_orientation/Portrait_8.jpg                    1200x1800 JPEG turned
exif_orientation/exif_imagemagick_orientation.png  512x512 PNG turned
exif_orientation/hopper_orientation_2.jpg          128x128 JPEG turned
exif_orientation/hopper_orientation_2.webp         128x128 WEBP turned
exif_orientation/hopper_orientation_3.jpg          128x128 JPEG turned
exif_orientation/hopper_orientation_3.webp         128x128 WEBP turned
exif_orientation/hopper_orientation_4.jpg          128x128 JPEG turned
exif_orientation/hopper_orientation_4.webp         128x128 WEBP turned
exif_orientation/hopper_orientation_5.jpg          128x128 JPEG turned
exif_orientation/hopper_orientation_5.webp         128x128 WEBP turned
exif_orientation/hopper_orientation_6.jpg          128x128 JPEG turned
exif_orientation/hopper_orientation_6.webp         128x128 WEBP turned
exif_orientation/hopper_orientation_7.jpg          128x128 JPEG turned
exif_orientation/hopper_orientation_7.webp         128x128 WEBP turned
exif_orientation/hopper_orientation_8.jpg          128x128 JPEG turned
exif_orientation/hopper_orientation_8.webp         128x128 WEBP turned
exif_orientation/libvips_rotation_1.jpg            308x410 JPEG
exif_orientation/libvips_rotation_2.jpg            308x410 JPEG turned
exif_orientation/libvips_rotation_3.jpg            308x410 JPEG turned
exif_orientation/libvips_rotation_4.jpg            308x410 JPEG turned
exif_orientation/libvips_rotation_5.jpg            231x308 JPEG turned
exif_orientation/libvips_rotation_6.jpg            231x308 JPEG turned
exif_orientation/libvips_rotation_7.jpg            231x308 JPEG turned
exif_orientation/libvips_rotation_8.jpg            231x308 JPEG turned
exif_orientation/xmp_tags_orientation.png          326x268 PNG turned converted
gif/chi.gif                                        320x240 GIF converted
gif/cogs.gif                                       85x77 GIF converted
gif/comment_after_last_frame.gif                   too_small
gif/dispose_prev.gif                               100x100 GIF converted
gif/hopper.gif                                     128x128 GIF converted
gif/iss634.gif                                     245x245 GIF converted
gif/missing_background.gif                         32x32 GIF converted
gif/no_palette.gif                                 too_small
heic/hopper.heif                                   128x128 HEIF
jpeg_odd/broken_exif_dpi.jpg                       100x100 JPEG
jpeg_odd/exif-ifd-offset.jpg                       200x200 JPEG
jpeg_odd/exif_gps_typeerror.jpg                    800x531 JPEG
jpeg_odd/exif_typeerror.jpg                        800x531 JPEG
jpeg_odd/frozenpond.mpo                            640x480 MPO
jpeg_odd/hopper.jpg                                128x128 JPEG
jpeg_odd/hopper_16bit_qtables.jpg                  128x128 JPEG
jpeg_odd/hopper_bad_exif.jpg                       500x500 JPEG
jpeg_odd/hopper_gray.jpg                           128x128 JPEG
jpeg_odd/icc-after-SOF.jpg                         too_small
jpeg_odd/icc_profile_big.jpg                       425x250 JPEG converted
jpeg_odd/invalid-exif.jpg                          200x200 JPEG
jpeg_odd/junk_jpeg_header.jpg                      1024x768 JPEG
jpeg_odd/multiple_exif.jpg                         too_small
jpeg_odd/photoshop-200dpi-broken.jpg               200x200 JPEG
jpeg_odd/rgb.jpg                                   100x100 JPEG
jpeg_odd/sample-xyb.jpg                            290x442 JPEG converted
jpeg_odd/sugarshack.mpo                            640x480 MPO
jpeg_odd/sugarshack_bad_mpo_header.jpg             640x480 JPEG
jpeg_odd/truncated_jpeg.jpg                        truncated
jpeg_odd/ultra-hdr.jpg                             3840x2160 JPEG
png_16bit/face_I16.png                             256x256 PNG converted
png_16bit/mode_16bit.png                           128x64 PNG converted
png_palette_alpha/1_trns.png                       64x64 PNG converted
png_palette_alpha/exif.png                         512x512 PNG
png_palette_alpha/face_fully_transparent.png       256x256 PNG converted
png_palette_alpha/face_palette.png                 256x256 PNG converted
png_palette_alpha/indexed.png                      290x442 PNG converted
png_palette_alpha/mode_palette_alpha.png           128x64 PNG converted
png_palette_alpha/palette_sepia.png                128x128 PNG
png_palette_alpha/pil123rgba.png                   162x150 PNG converted
png_palette_alpha/rgba.png                         128x128 PNG converted
progressive/progressive_face.jpg                   512x512 JPEG
tiff/12in16bit.tif                                 100x100 TIFF converted
tiff/16bit.cropped.tif                             64x64 TIFF converted
tiff/g4_orientation_1.tif                          590x88 TIFF converted
tiff/g4_orientation_2.tif                          590x88 TIFF converted
tiff/g4_orientation_3.tif                          590x88 TIFF converted
tiff/g4_orientation_4.tif                          590x88 TIFF converted
tiff/g4_orientation_5.tif                          590x88 TIFF converted
tiff/g4_orientation_6.tif                          590x88 TIFF converted
tiff/g4_orientation_7.tif                          590x88 TIFF converted
tiff/g4_orientation_8.tif                          590x88 TIFF converted
tiff/hopper.Lab.tif                                128x128 TIFF converted
tiff/hopper_bigtiff.tif                            128x128 TIFF
tiff/hopper_float_dpi_2.tif                        128x128 TIFF
tiff/multipage.tiff                                too_small
tiff/tiff_16bit_RGB.tiff                           100x40 TIFF
tiny_or_thin/black_640x480.jpg                     640x480 JPEG
tiny_or_thin/face_11x11.png                        too_small
tiny_or_thin/face_12x12.png                        12x12 PNG
tiny_or_thin/face_19x19.png                        19x19 PNG
tiny_or_thin/face_1x1.png                          too_small
tiny_or_thin/face_1x4000.png                       too_small
tiny_or_thin/face_20x20.png                        20x20 PNG
tiny_or_thin/face_4000x1.png                       too_small
tiny_or_thin/panorama_8000x300.jpg                 8000x300 JPEG
truncated/bitflips.jpg                             truncated
truncated/broken.png                               truncated
truncated/broken_data_stream.png                   truncated
truncated/portrait_25pct.jpg                       truncated
truncated/portrait_50pct.jpg                       truncated
truncated/portrait_90pct.jpg                       truncated
truncated/portrait_99pct.jpg                       truncated
truncated/progressive_40pct.jpg                    truncated
truncated/truncated.gif                            truncated
truncated/truncated.jpg                            truncated
truncated/truncated_end_chunk.png                  truncated
truncated/truncated_image.png                      truncated
webp/anim_frame1.webp                              82x82 WEBP
webp/flower.webp                                   480x360 WEBP
webp/hopper.webp                                   128x128 WEBP
webp/iss634.webp                                   245x245 WEBP converted
webp/looks-like-svg.webp                           256x256 WEBP converted
"""


def data_file(name):
    folder = os.environ.get("FACEMILL_DATA") or Path(__file__).parent.parent.parent / "shared" / "data"
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{name} is not there: name its folder in FACEMILL_DATA")
    return path


@pytest.fixture(scope="module")
def outcomes():
    """{file: what `decode` gave}, read straight from the tar."""
    with tarfile.open(data_file("odd_images.tar")) as tar:
        members = {info.name.partition("/")[2]: tar.extractfile(info).read() for info in tar if info.isfile()}
    del members["index.csv"]
    return {name: decode(data, Limits()) for name, data in members.items()}


def told(outcome):
    if not isinstance(outcome, DecodedImage):
        return str(outcome.reason)
    height, width, _ = outcome.pixels.shape
    turned, converted = " turned" * (not outcome.stored_upright), " converted" * (not outcome.stored_rgb)
    return f"{width}x{height} {outcome.format}{turned}{converted}"


def test_each_awkward_file_gives_its_picture_or_its_reason(outcomes):
    lines = EXPECTED.strip().splitlines()
    assert len(lines) == 161
    expected = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert {name: told(outcome) for name, outcome in outcomes.items()} == expected


def test_every_picture_is_a_contiguous_rgb_array(outcomes):
    for outcome in outcomes.values():
        if isinstance(outcome, DecodedImage):
            assert outcome.pixels.dtype == np.uint8
            assert outcome.pixels.shape[2] == 3
            assert outcome.pixels.flags.c_contiguous


def test_details_are_one_short_line_without_addresses(outcomes):
    for outcome in outcomes.values():
        if not isinstance(outcome, DecodedImage):
            assert 0 < len(outcome.detail) <= 160
            assert "\n" not in outcome.detail
            assert "BytesIO" not in outcome.detail


def difference(a, b):
    """Mean difference in levels of 255 after shrinking to 64 px: compression aside, 0 for the same picture."""
    small = [
        np.asarray(Image.fromarray(image.pixels).resize((64, 64), Image.Resampling.BOX), np.float32) for image in (a, b)
    ]
    return float(np.abs(small[0] - small[1]).mean())


@pytest.mark.parametrize(
    "names",
    [
        [f"exif_orientation/Portrait_{n}.jpg" for n in range(9)],
        [f"exif_orientation/Landscape_{n}.jpg" for n in range(9)],
        ["jpeg_odd/hopper.jpg", *(f"exif_orientation/hopper_orientation_{n}.jpg" for n in range(2, 9))],
        ["webp/hopper.webp", *(f"exif_orientation/hopper_orientation_{n}.webp" for n in range(2, 9))],
        [f"tiff/g4_orientation_{n}.tif" for n in range(1, 9)],
        [f"avif/rot{n}mir{m}.avif" for n in range(4) for m in range(2)],
    ],
    ids=["portrait", "landscape", "jpeg", "webp", "tiff", "avif"],
)
def test_all_orientations_of_a_picture_give_the_same_upright_pixels(outcomes, names):
    first, *others = (outcomes[name] for name in names)
    assert {image.pixels.shape for image in others} == {first.pixels.shape}
    limit = 12 if "avif" in names[0] else 3  # the AVIFs carry a caption of their orientation
    assert [round(difference(first, image), 1) for image in others if difference(first, image) > limit] == []
    mirrored = DecodedImage(np.ascontiguousarray(first.pixels[:, ::-1]), "", True, True)
    assert difference(first, mirrored) > limit


@pytest.mark.parametrize(
    "name",
    [
        "cmyk/face_cmyk.jpg",
        "cmyk/face_cmyk.tif",
        "png_palette_alpha/face_palette.png",
        "png_palette_alpha/face_fully_transparent.png",
        "tiff/hopper.Lab.tif",
        "gif/hopper.gif",
        "heic/hopper.heif",
        "webp/hopper.webp",
        "avif/hopper.avif",
        "empty_or_fake/png_named.jpg",
    ],
)
def test_one_face_looks_the_same_in_every_format(outcomes, name):
    assert difference(outcomes["jpeg_odd/hopper.jpg"], outcomes[name]) < 6


def test_sixteen_bits_become_the_same_grey_and_not_white(outcomes):
    colour = outcomes["jpeg_odd/hopper.jpg"]
    grey = np.asarray(Image.fromarray(colour.pixels).convert("L").convert("RGB"))
    sixteen = outcomes["png_16bit/face_I16.png"]
    assert difference(DecodedImage(grey, "", True, True), sixteen) < 6
