"""Archives that are made to break a reader meet bounds, with a result that says so: bombs, lies, a million members."""

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import cv2
import numpy as np
import pytest

from dataset_tools.archives import archive_suffix_kinds
from dataset_tools.limits import Limits
from dataset_tools.sources import SourceError, list_images, read_images
from dataset_tools.streaming import stream_archive
from schemas.outcomes import Failure
from tests.collection import ROOT

PICTURE = cv2.imencode(".png", np.full((16, 16, 3), 90, np.uint8))[1].tobytes()
SMALL = Limits(max_image_bytes=100_000)


def both_ways(archive, limits):
    """(what reading by an index gives, what streaming gives): bytes or the reason, by the key's last part."""
    indexed = read_images(list_images(str(archive), limits).refs(), limits)
    (whole,) = list_images(str(archive), limits, whole=archive_suffix_kinds()).refs()
    streamed = [item for item in stream_archive(whole, limits) if not isinstance(item, str)]
    return tuple(
        {
            ref.key.removeprefix(str(archive)): found if isinstance(found, bytes) else found.reason
            for ref, found in items
        }
        for items in (indexed, streamed)
    )


def zip_of(path, *members):
    """members: (name, deflated bytes, size as declared, crc32 as declared), written by hand, since zipfile tells the
    truth."""
    body, directory = io.BytesIO(), io.BytesIO()
    for name, packed, size, crc32 in members:
        at, raw = body.tell(), name.encode()
        sizes = struct.pack("<3L", crc32, len(packed), size)
        body.write(b"PK\3\4" + struct.pack("<5H", 20, 0, 8, 0, 0) + sizes + struct.pack("<2H", len(raw), 0) + raw)
        body.write(packed)
        directory.write(b"PK\1\2" + struct.pack("<6H", 20, 20, 0, 8, 0, 0) + sizes)
        directory.write(struct.pack("<5H2L", len(raw), 0, 0, 0, 0, 0, at) + raw)
    entries = directory.getvalue()
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(members), len(members), len(entries), body.tell(), 0)
    path.write_bytes(body.getvalue() + entries + end)
    return path


def deflated(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def test_zip_bombs_fail_and_their_neighbours_do_not(tmp_path):
    zeros = deflated(bytes(2_000_000))
    good = ("good.png", deflated(PICTURE), len(PICTURE), zlib.crc32(PICTURE))
    archive = zip_of(
        tmp_path / "bomb.zip",
        ("declared.png", zeros, 2_000_000, zlib.crc32(bytes(2_000_000))),
        ("lies.png", zeros, 500, 0),
        ("huge.png", zeros, 4_000_000_000, 0),
        good,
    )
    expected = {
        "#declared.png": "too_large",
        "#lies.png": "unreadable",
        "#huge.png": "too_large",
        "#good.png": PICTURE,
    }
    assert both_ways(archive, SMALL) == (expected, expected)


def test_a_tar_that_claims_eight_gigabytes_ends_there(tmp_path):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, size in (("good.png", len(PICTURE)), ("huge.png", 2**33 - 1)):
            info = tarfile.TarInfo(name)
            info.size = size
            if size == len(PICTURE):
                tar.addfile(info, io.BytesIO(PICTURE))
            else:
                whole.write(info.tobuf() + PICTURE)
    archive = tmp_path / "claims.tar"
    archive.write_bytes(whole.getvalue()[: 512 * 3 + len(PICTURE)])
    expected = {"#good.png": PICTURE, "#huge.png": "too_large", "": "unreadable"}
    assert both_ways(archive, SMALL) == (expected, expected)


def test_a_gzip_bomb_is_read_past(tmp_path):
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as tar:
        for name, data in (("bomb.png", bytes(50_000_000)), ("good.png", PICTURE)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    expected = {"#bomb.png": "too_large", "#good.png": PICTURE}
    assert both_ways(tmp_path / "bomb.tar.gz", SMALL) == (expected, expected)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(max_members=7), "has over 7 members (max_members)"),
        (Limits(max_archive_bytes=7 * len(PICTURE)), f"declares over {7 * len(PICTURE)} bytes (max_archive_bytes)"),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_over_its_bounds_is_refused_by_an_index_and_a_row_of_a_stream(tmp_path, kind, limits, said):
    archive = tmp_path / f"many.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for number in range(9):
                file.writestr(f"{number}.png", PICTURE)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as tar:
            for number in range(9):
                info = tarfile.TarInfo(f"{number}.png")
                info.size = len(PICTURE)
                tar.addfile(info, io.BytesIO(PICTURE))
    with pytest.raises(SourceError) as refused:
        list_images(str(archive), limits)
    assert str(refused.value) == f"{archive} {said}"
    (whole,) = list_images(str(archive), limits, whole=archive_suffix_kinds()).refs()
    *before, (last, failure) = list(stream_archive(whole, limits))
    assert (last.key, failure) == (str(archive), Failure("too_large", said))
    assert {data for _, data in before} <= {PICTURE}
    assert len(before) <= 7


_MANY = """
import json, resource, sys, time
from dataset_tools.limits import Limits
from dataset_tools.sources import list_images
from dataset_tools.streaming import stream_archive
from dataset_tools.archives import archive_suffix_kinds
started = time.process_time()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
if sys.argv[2] == "list":
    count = len(list_images(sys.argv[1], Limits()))
else:
    (whole,) = list_images(sys.argv[1], Limits(), whole=archive_suffix_kinds()).refs()
    count = sum(1 for _ in stream_archive(whole, Limits()))
print(json.dumps([count, round(time.process_time() - started, 1), peak() - before]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["list", "stream"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_million_members_are_listed_and_streamed_in_bounded_memory(tmp_path, kind, way):
    archive = tmp_path / f"many.{kind}"
    if kind == "zip":  # all of them are the same bytes of it
        local = b"PK\3\4" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 1, 1, 5, 0) + b"a.png" + b"x"
        crc32 = zlib.crc32(b"x")
        sizes = struct.pack("<3L", crc32, 1, 1)
        head = b"PK\1\2" + struct.pack("<6H", 20, 20, 0, 0, 0, 0) + sizes + struct.pack("<5H2L", 11, 0, 0, 0, 0, 0, 0)
        entries = b"".join(b"%s%07d.png" % (head, number) for number in range(1_000_000))
        end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, len(entries), len(local))
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(local) + len(entries), 1)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
        archive.write_bytes(local + entries + end64 + locator + end)
    else:  # one member, a million times
        one = tarfile.TarInfo("a.png").tobuf()
        with gzip.open(archive, "wb", compresslevel=1) as file:
            for _ in range(1000):
                file.write(one * 1000)
            file.write(bytes(1024))
    done = subprocess.run([sys.executable, "-c", _MANY, archive, way], cwd=ROOT, capture_output=True, text=True)
    count, cpu_s, more_mb = json.loads(done.stdout)
    print(kind, way, cpu_s, more_mb)
    assert count == 1_000_000
    assert cpu_s < 120
    assert more_mb < 400
