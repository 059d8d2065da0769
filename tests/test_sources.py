"""From SOURCE to a listing to bytes: each image once, whatever it lies in, however hostile that is."""

import contextlib
import functools
import gzip
import http.server
import io
import itertools
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_tools import sources, storage
from dataset_tools.archives import STREAMED
from dataset_tools.ignored_names import passed_over
from dataset_tools.limits import Limits
from dataset_tools.sources import Listing, SourceError, list_images, read_images
from schemas.outcomes import Failure, Reason

LIMITS = Limits()


def bytes_of(source, limits=LIMITS):
    """{key: bytes or reason} of everything a source holds."""
    listing = list_images(source, limits)
    read = list(read_images(listing.refs(), limits))
    assert [ref for ref, _ in read] == listing.refs()
    return {ref.key: data if isinstance(data, bytes) else data.reason for ref, data in read}


def make_tar(path, members, mode="w"):
    """members: (name, bytes) or a TarInfo of its own."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return str(path)


def make_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return str(path)


PHOTOS = [("b/2.jpg", b"two" * 500), ("b/1.jpg", b"one" * 700), ("c", b"no suffix"), ("d.png", b"")]


# --- Folders, globs, lists --------------------------------------------------------------------------------------------


def test_a_folder_gives_its_images_sorted_at_any_depth(any_store):
    for name, data in PHOTOS:
        storage.write_bytes(storage.join(any_store, name), data)
    listing = list_images(any_store, LIMITS)
    assert [ref.key for ref in listing.refs()] == [
        storage.join(any_store, name) for name in ("b/1.jpg", "b/2.jpg", "c", "d.png")
    ]
    assert [ref.size for ref in listing.refs()] == [2100, 1500, 9, 0]
    assert all(ref.container == ref.key for ref in listing.refs())
    assert bytes_of(any_store) == {storage.join(any_store, name): data for name, data in PHOTOS}


def test_what_is_no_image_by_its_name_is_counted_and_not_failed(tmp_path):
    for name in [
        "1.jpg",
        "1.json",
        "2.JSON",
        "Thumbs.db",
        ".DS_Store",
        "._1.jpg",
        "__MACOSX/1.jpg",
        ".git/objects/ab",
        "notes.txt",
        "clip.mp4",
        "README",
        "odd.suffix",
    ]:
        storage.write_bytes(f"{tmp_path}/{name}", b"x")
    listing = list_images(str(tmp_path), LIMITS)
    assert [Path(ref.key).name for ref in listing.refs()] == ["1.jpg", "odd.suffix"]
    assert listing.ignored == {
        ".DS_Store": 1,
        "._*": 1,
        ".json": 2,
        ".mp4": 1,
        ".txt": 1,
        "README": 1,
        "Thumbs.db": 1,
        "__MACOSX/": 1,
        "hidden": 1,
    }


@pytest.mark.parametrize(
    "name", ["x.jpg", "x.HEIC", "x.psd", "x.svg", "x.cr2", "x", "x.2", "../x.jpg", "./x.jpg", "a.json/x"]
)
def test_every_image_suffix_an_unknown_one_or_none_may_be_an_image(name):
    assert passed_over(name) is None


def test_a_folder_above_that_is_hidden_hides_nothing(tmp_path):
    folder = tmp_path / ".cache" / "photos"
    storage.write_bytes(f"{folder}/1.jpg", b"1")
    assert len(list_images(str(folder), LIMITS)) == 1
    assert len(list_images(f"{folder}/*.jpg", LIMITS)) == 1


def test_a_glob_takes_files_and_folders_that_match(any_store):
    for name in ["a1/x.jpg", "a2/deep/y.jpg", "b/z.jpg", "a3.jpg", "a4.txt"]:
        storage.write_bytes(storage.join(any_store, name), b"1")
    listing = list_images(storage.join(any_store, "a*"), LIMITS)
    expected = [storage.join(any_store, name) for name in ("a1/x.jpg", "a2/deep/y.jpg", "a3.jpg")]
    assert [ref.key for ref in listing.refs()] == expected
    assert listing.ignored == {".txt": 1}


def test_a_file_named_like_a_glob_is_a_file(tmp_path):
    storage.write_bytes(f"{tmp_path}/x[1].jpg", b"1")
    assert [ref.key for ref in list_images(f"{tmp_path}/x[1].jpg", LIMITS).refs()] == [f"{tmp_path}/x[1].jpg"]


def test_a_list_names_paths_beside_it_elsewhere_and_in_stores(tmp_path, s3_store):
    storage.write_bytes(f"{tmp_path}/near/1.jpg", b"one")
    storage.write_bytes(f"{tmp_path}/far/2.jpg", b"two")
    storage.write_bytes(f"{s3_store}/3.jpg", b"three")
    lines = f"1.jpg\n\n  {tmp_path}/far/2.jpg\r\n{s3_store}/3.jpg\n1.jpg\nmissing.jpg\n../far/notes.txt"
    storage.write_bytes(f"{tmp_path}/near/list.txt", b"\xef\xbb\xbf" + lines.encode())
    assert bytes_of(f"{tmp_path}/near/list.txt") == {
        f"{tmp_path}/far/2.jpg": b"two",
        f"{tmp_path}/far/notes.txt": Reason.UNREADABLE,
        f"{tmp_path}/near/1.jpg": b"one",
        f"{tmp_path}/near/missing.jpg": Reason.UNREADABLE,
        f"{s3_store}/3.jpg": b"three",
    }


def test_a_web_address_is_one_image_and_never_a_folder(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"<a href='2.jpg'>")
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/1.jpg"
        assert bytes_of(url) == {url: b"<a href='2.jpg'>"}
        with pytest.raises(SourceError, match=r"none\.jpg does not exist"):
            list_images(url.replace("1.jpg", "none.jpg"), LIMITS)
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_overlapping_sources_give_each_image_once(tmp_path):
    storage.write_bytes(f"{tmp_path}/a/1.jpg", b"1")
    storage.write_bytes(f"{tmp_path}/a/2.jpg", b"2")
    archive = make_tar(tmp_path / "a" / "3.tar", [("x.jpg", b"x")])
    listing = list_images([f"{tmp_path}/a", f"{tmp_path}/a/1.jpg", f"{tmp_path}/a", archive], LIMITS)
    assert [Path(ref.key).name for ref in listing.refs()] == ["1.jpg", "2.jpg", "3.tar#x.jpg"]
    assert listing.ignored == {"named twice": 1}
    assert [ref.container for ref in listing.refs()] == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/a/2.jpg", archive]


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"1")
    make_tar(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar"), [("x.jpg", b"x")])
    assert bytes_of(str(tmp_path)) == {f"file://{tmp_path}/caf%E9.jpg": b"1", f"file://{tmp_path}/%FF.tar#x.jpg": b"x"}


def test_a_secret_in_a_url_stays_out_of_the_key():
    rows = sources._Rows(LIMITS)
    rows.add_file("https://host/1.jpg?X-Amz-Signature=secret", None)
    (ref,) = rows.finish().refs()
    assert ref.key == "https://host/1.jpg?X-Amz-Signature=..."
    assert ref.container == "https://host/1.jpg?X-Amz-Signature=secret"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{tmp}/none", "none does not exist"),
        ("{tmp}/none*.jpg", r"nothing matches .*/none\*\.jpg"),
        ("{tmp}/empty", r"no images in .*/empty$"),
        ("{tmp}/texts", r"no images in .*/texts \(passed over: 1 \.txt\)"),
        ("{tmp}/table.csv", r"table\.csv is no image and no archive that is read here \(\.csv\)"),
        ("{tmp}/empty.txt", r"no images in .*/empty\.txt$"),
        ("{tmp}/fake.zip", r"fake\.zip is no archive"),
        ("{tmp}/empty.zip", r"no images in .*/empty\.zip$"),
        ("{tmp}/empty.tar", r"no images in .*/empty\.tar$"),
        ("{tmp}/text.tar", r"text\.tar is damaged"),
        ("{tmp}/zero.tar.gz", r"zero\.tar\.gz is no archive"),
        ("memory://nothing/here", r"memory://nothing/here does not exist"),
    ],
)
def test_a_source_of_nothing_is_told_in_one_line(tmp_path, source, said):
    (tmp_path / "empty").mkdir()
    storage.write_bytes(f"{tmp_path}/texts/1.txt", b"x")
    for name in ("table.csv", "empty.txt", "zero.tar.gz"):
        storage.write_bytes(f"{tmp_path}/{name}", b"")
    storage.write_bytes(f"{tmp_path}/fake.zip", b"<html>" * 100)
    storage.write_bytes(f"{tmp_path}/text.tar", b"<html>" * 1000)
    make_zip(tmp_path / "empty.zip", [])
    make_tar(tmp_path / "empty.tar", [])
    with pytest.raises(SourceError, match=said) as caught:
        list_images(source.format(tmp=tmp_path), LIMITS)
    assert "\n" not in str(caught.value)


def test_no_source_at_all_is_told():
    with pytest.raises(SourceError, match="no source was named"):
        list_images([], LIMITS)


# --- Archives ---------------------------------------------------------------------------------------------------------

MAKERS = {
    "x.tar": lambda path, members: make_tar(path, members),
    "x.tar.gz": lambda path, members: make_tar(path, members, "w:gz"),
    "x.tgz": lambda path, members: make_tar(path, members, "w:gz"),
    "x.tar.bz2": lambda path, members: make_tar(path, members, "w:bz2"),
    "x.tar.xz": lambda path, members: make_tar(path, members, "w:xz"),
    "x.zip": lambda path, members: make_zip(path, members),
    "stored.zip": lambda path, members: make_zip(path, members, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_gives_its_members_in_their_order(tmp_path, any_store, name):
    MAKERS[name](tmp_path / name, [*PHOTOS, ("d.json", b"{}"), ("inner.zip", b"PK")])
    url = storage.join(any_store, name)
    storage.write_bytes(url, (tmp_path / name).read_bytes())
    listing = list_images(url, LIMITS)
    assert listing.ignored == {".json": 1, "nested archive": 1}
    assert [ref.size for ref in listing.refs()] == [1500, 2100, 9, 0]
    assert {ref.kind in STREAMED for ref in listing.refs()} == {name not in ("x.tar", "x.zip", "stored.zip")}
    assert bytes_of(url) == {f"{url}#{member}": data for member, data in PHOTOS}
    back = [data for _, data in read_images(listing.refs()[::-1], LIMITS)]
    assert back == [data for _, data in PHOTOS][::-1]
    assert [data for _, data in read_images(listing.refs(1, 3), LIMITS)] == [data for _, data in PHOTOS[1:3]]


def test_a_folder_of_shards_is_gone_through_with_the_photos_beside_them(tmp_path):
    """WebDataset: <key>.<suffix> members, the sidecars counted."""
    for shard in range(2):
        make_tar(
            tmp_path / f"{shard:03d}.tar",
            [(f"{shard}{key}.{suffix}", b"x") for key in "ab" for suffix in ("jpg", "json", "cls")],
        )
    storage.write_bytes(f"{tmp_path}/000.jpg", b"y")
    listing = list_images(str(tmp_path), LIMITS)
    assert [ref.key.removeprefix(f"{tmp_path}/") for ref in listing.refs()] == [
        "000.jpg",
        "000.tar#0a.jpg",
        "000.tar#0b.jpg",
        "001.tar#1a.jpg",
        "001.tar#1b.jpg",
    ]
    assert listing.ignored == {".cls": 4, ".json": 4}
    assert listing.archives == {f"{tmp_path}/{n}.tar": (tmp_path / f"{n}.tar").stat().st_size for n in ("000", "001")}


def test_an_archive_is_known_by_its_bytes_and_not_by_its_name(tmp_path):
    make_tar(tmp_path / "x.tar", [("1.jpg", b"1")], "w:gz")
    make_zip(tmp_path / "y.tar", [("2.jpg", b"2")])
    assert list(bytes_of(str(tmp_path)).values()) == [b"1", b"2"]


def test_members_of_one_name_get_a_number(tmp_path):
    names = ["a.jpg", "a.jpg~2", "a.jpg", "b.jpg", "a.jpg"]
    members = [(name, str(at).encode()) for at, name in enumerate(names)]
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = make_zip(tmp_path / "x.zip", members)
    expected = ["a.jpg", "a.jpg~2", "a.jpg~3", "b.jpg", "a.jpg~4"]
    for url in (archive, make_tar(tmp_path / "x.tar", members)):
        assert bytes_of(url) == {f"{url}#{name}": str(at).encode() for at, name in enumerate(expected)}


def test_absolute_and_climbing_member_names_are_only_names(tmp_path):
    members = [("/etc/passwd.jpg", b"1"), ("../../up.jpg", b"2"), ("./here.jpg", b"3"), ("C:\\x\\y.jpg", b"4")]
    for url in (make_tar(tmp_path / "x.tar", members), make_zip(tmp_path / "x.zip", members)):
        assert bytes_of(url) == {f"{url}#{name}": data for name, data in members}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar", "x.zip"]


def test_long_and_foreign_names_are_kept(tmp_path):
    members = [("d/" * 120 + "long.jpg", b"1"), ("имя с пробелом/脸.jpg", b"2"), ("a#b~2.jpg", b"3")]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        assert bytes_of(f"{tmp_path}/x.tar") == {f"{tmp_path}/x.tar#{name}": data for name, data in members}
    url = make_zip(tmp_path / "x.zip", members)
    assert bytes_of(url) == {f"{url}#{name}": data for name, data in members}


def test_links_and_devices_in_a_tar_are_counted(tmp_path):
    def special(name, kind):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "1.jpg"
        return info

    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    specials = [special(f"{at}.jpg", kind) for at, kind in enumerate(kinds)]
    url = make_tar(tmp_path / "x.tar", [("1.jpg", b"1"), *specials])
    assert bytes_of(url) == {f"{url}#1.jpg": b"1"}
    assert list_images(url, LIMITS).ignored == {"device": 2, "link": 2}


def test_a_sparse_member_is_one_that_fails(tmp_path):
    with (tmp_path / "hole.jpg").open("wb") as file:
        file.truncate(10 * 2**20)
        file.seek(5 * 2**20)
        file.write(b"x")
    subprocess.run(["tar", "--sparse", "-cf", "x.tar", "hole.jpg"], cwd=tmp_path, check=True)
    assert bytes_of(f"{tmp_path}/x.tar") == {f"{tmp_path}/x.tar#hole.jpg": Reason.UNREADABLE}


# --- Hostile and damaged archives -------------------------------------------------------------------------------------


def test_a_tar_cut_short_gives_what_it_has_and_one_failure_for_the_rest(tmp_path):
    url = make_tar(tmp_path / "x.tar", [(f"{n}.jpg", bytes([n]) * 3000) for n in range(4)])
    whole = (tmp_path / "x.tar").read_bytes()
    lost = Failure(Reason.UNREADABLE, "the archive is damaged: what follows its last member is lost")
    within = Failure(Reason.UNREADABLE, "the archive ends within this member: 1000 of 3000 bytes")
    entry = 512 + 3072
    for cut, expected in [
        (2 * entry + 512 + 1000, [b"\0" * 3000, b"\1" * 3000, within, lost]),
        (2 * entry + 100, [b"\0" * 3000, b"\1" * 3000, lost]),
    ]:
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        read = [data for _, data in read_images(list_images(url, LIMITS).refs(), LIMITS)]
        assert read == expected
        assert list_images(url, LIMITS).refs()[-1].key == url


def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path):
    url = make_tar(tmp_path / "x.tar", [(f"{n}.jpg", b"x") for n in range(4)])
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[2 * 1024 : 2 * 1024 + 512] = b"\x55" * 512
    (tmp_path / "x.tar").write_bytes(data)
    assert list(bytes_of(url).values()) == [b"x", b"x", Reason.UNREADABLE]


@pytest.mark.parametrize(("suffix", "mode"), [("tar.gz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")])
def test_a_compressed_tar_cut_short_or_damaged_gives_what_it_has(tmp_path, suffix, mode):
    noise = [os.urandom(200_000) for _ in range(10)]
    url = make_tar(tmp_path / f"x.{suffix}", [(f"{n}.jpg", data) for n, data in enumerate(noise)], mode)
    whole = Path(url).read_bytes()
    listing = list_images(url, LIMITS)
    Path(url).write_bytes(whole[: len(whole) // 2])
    cut = list_images(url, LIMITS)
    assert 1 < len(cut) < 10
    values = list(bytes_of(url).values())
    assert values[: len(cut) - 2] == noise[: len(cut) - 2]
    assert values[-1] is Reason.UNREADABLE
    for damaged in (whole[: len(whole) // 2], whole[: len(whole) // 2] + bytes(100_000)):
        Path(url).write_bytes(damaged)
        started = time.monotonic()
        read = [data for _, data in read_images(listing.refs(), LIMITS)]  # listed before it broke
        assert time.monotonic() - started < 5
        good = next(at for at, data in enumerate(read) if isinstance(data, Failure))
        assert good >= 1
        assert read[: good - 1] == noise[: good - 1]  # gzip tells damage only at the end of its stream
        assert all(isinstance(data, Failure) and data.reason is Reason.UNREADABLE for data in read[good:])


def test_a_tar_header_that_claims_a_gigabyte_of_names_is_damage(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    header = info.tobuf(tarfile.GNU_FORMAT)
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as file:
        file.write(make_member("1.jpg", b"1") + header)
        for _ in range(32):
            file.write(bytes(2**20))
    with at_most(40 * 2**20):
        assert list(bytes_of(f"{tmp_path}/x.tar.gz").values()) == [b"1", Reason.UNREADABLE]


@contextlib.contextmanager
def at_most(peak_bytes):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < peak_bytes
    finally:
        tracemalloc.stop()


def make_member(name, data, size=None):
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def test_a_member_that_claims_more_than_the_limit_is_not_read(tmp_path):
    (tmp_path / "x.tar").write_bytes(make_member("1.jpg", b"1") + make_member("huge.jpg", b"x" * 512, size=2**40))
    read = [data for _, data in read_images(list_images(f"{tmp_path}/x.tar", LIMITS).refs(), LIMITS)]
    assert [data.reason for data in read[1:]] == [Reason.TOO_LARGE, Reason.UNREADABLE]
    assert read[1].detail == f"{2**40} bytes declared, over {2**28}"


def test_a_member_of_negative_or_absurd_size_stops_the_walk(tmp_path):
    header = bytearray(make_member("x.jpg", b""))
    header[124:136] = b"\xff" * 12  # base 256: -1
    checksum = sum(header[:148]) + 8 * 32 + sum(header[156:512])
    header[148:156] = b"%06o\0 " % checksum
    (tmp_path / "x.tar").write_bytes(make_member("1.jpg", b"1") + bytes(header) + bytes(1024))
    assert list(bytes_of(f"{tmp_path}/x.tar").values()) == [b"1", Reason.UNREADABLE]


def patch_directory(path, **fields):
    """Change the directory entry of a zip's first member, and its local header where that has the field too."""
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"PK\1\2")
    places = {"flags": ("<H", 8, 6), "method": ("<H", 10, 8), "crc": ("<L", 16, 14), "packed": ("<L", 20, 18)}
    places["size"] = ("<L", 24, 22)
    for name, value in fields.items():
        form, central, local = places[name]
        struct.pack_into(form, data, at + central, value)
        struct.pack_into(form, data, local, value)
    Path(path).write_bytes(data)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"flags": 1}, "the zip member is encrypted"),
        ({"method": 14}, "zip compression method 14 is not read (stored and deflate are)"),
        ({"crc": 1}, "the zip member fails its checksum"),
        ({"size": 999}, "the zip member is not of the 999 bytes it declares"),
        ({"size": 1001}, "the zip member is not of the 1001 bytes it declares"),
        ({"packed": 2**20}, "the archive ends within this member"),
        ({"method": 0}, "the zip member is not of the 1000 bytes it declares"),
    ],
)
def test_a_zip_that_lies_about_a_member_costs_that_member_only(tmp_path, fields, said):
    url = make_zip(tmp_path / "x.zip", [("1.jpg", b"x" * 1000), ("2.jpg", b"two")])
    patch_directory(url, **fields)
    read = [data for _, data in read_images(list_images(url, LIMITS).refs(), LIMITS)]
    assert read == [Failure(Reason.UNREADABLE, said), b"two"]


def test_damaged_deflate_data_is_unreadable(tmp_path):
    url = make_zip(tmp_path / "x.zip", [("1.jpg", os.urandom(1000) * 2)])
    data = bytearray(Path(url).read_bytes())
    data[40:60] = b"\xff" * 20
    Path(url).write_bytes(data)
    assert list(bytes_of(url).values()) == [Reason.UNREADABLE]


def test_a_deflate_bomb_is_inflated_no_further_than_it_declares(tmp_path):
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(bomb.compress(bytes(2**20)) for _ in range(256)) + bomb.flush()
    url = make_zip(tmp_path / "x.zip", [("honest.jpg", b"1")], zipfile.ZIP_STORED)
    honest = list_images(url, LIMITS).refs()[0]
    Path(url).write_bytes(Path(url).read_bytes()[: 30 + len("honest.jpg")] + packed)
    data = bytearray(Path(url).read_bytes())
    struct.pack_into("<H", data, 8, 8)  # deflate
    Path(url).write_bytes(data)
    small = replace(honest, size=1000, packed=len(packed))
    large = replace(honest, size=2**30, packed=len(packed))
    with at_most(10 * 2**20):
        read = [data for _, data in read_images([small, large], LIMITS)]
    assert [data.reason for data in read] == [Reason.UNREADABLE, Reason.TOO_LARGE]


def test_a_zip_of_many_members_and_one_with_bytes_before_it_are_read(tmp_path, monkeypatch):
    """Zip64, which more than 65,535 members need, and a self-extracting zip, whose offsets are all off."""
    members = [(f"{n}.jpg", b"%d" % n) for n in range(66_000)]
    url = make_zip(tmp_path / "many.zip", members, zipfile.ZIP_STORED)
    listing = list_images(url, LIMITS)
    assert len(listing) == 66_000
    assert [data for _, data in read_images(listing.refs(65_990), LIMITS)] == [data for _, data in members[65_990:]]
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    wide = make_zip(tmp_path / "wide.zip", members[:3])
    assert list(bytes_of(wide).values()) == [b"0", b"1", b"2"]
    (tmp_path / "exe.zip").write_bytes(b"PK\3\4 a program" + Path(wide).read_bytes())
    assert list(bytes_of(f"{tmp_path}/exe.zip").values()) == [b"0", b"1", b"2"]


def test_a_zip_cut_short_is_told_or_fails_once_in_a_folder(tmp_path):
    url = make_zip(tmp_path / "x.zip", [("1.jpg", b"x" * 1000)])
    Path(url).write_bytes(Path(url).read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"x\.zip is damaged: it has no directory at its end"):
        list_images(url, LIMITS)
    storage.write_bytes(f"{tmp_path}/1.jpg", b"1")
    assert bytes_of(str(tmp_path)) == {f"{tmp_path}/1.jpg": b"1", url: Reason.UNREADABLE}


def test_old_names_of_a_zip_are_read_as_the_standard_says(tmp_path):
    url = make_zip(tmp_path / "x.zip", [("aaaa.jpg", b"1"), ("bbb.jpg", b"2")])
    data = Path(url).read_bytes().replace(b"aaaa.jpg", "éü".encode() + b".jpg").replace(b"bbb.jpg", b"\x82bb.jpg")
    Path(url).write_bytes(data)
    assert list(bytes_of(url)) == [f"{url}#éü.jpg", f"{url}#ébb.jpg"]


def test_an_archive_over_its_limits_is_refused(tmp_path):
    members = [(f"{n}.jpg", b"x" * 100) for n in range(10)]
    for url in (make_tar(tmp_path / "x.tar", members), make_zip(tmp_path / "x.zip", members)):
        with pytest.raises(SourceError, match=r"has over 9 members \(max_members\)"):
            list_images(url, Limits(max_members=9))
        with pytest.raises(SourceError, match=r"declares over 999 bytes \(max_archive_bytes\)"):
            list_images(url, Limits(max_archive_bytes=999))
        assert len(list_images(url, Limits(max_members=10, max_archive_bytes=1000))) == 10


@pytest.mark.parametrize("store", ["file", "tar", "tar.gz", "zip", "parquet"])
def test_an_image_over_the_limit_of_bytes_fails_alone(tmp_path, store):
    members = [("1.jpg", b"x" * 10), ("2.jpg", b"x" * 11), ("3.jpg", b"x" * 9)]
    if store == "file":
        for name, data in members:
            storage.write_bytes(f"{tmp_path}/{name}", data)
    elif store == "parquet":
        pq.write_table(pa.table({"image": [data for _, data in members]}), tmp_path / "x.parquet")
    else:
        MAKERS[f"x.{store}"](tmp_path / f"x.{store}", members)
    read = bytes_of(str(tmp_path), Limits(max_image_bytes=10))
    assert list(read.values()) == [b"x" * 10, Reason.TOO_LARGE, b"x" * 9]


# --- Parquet ----------------------------------------------------------------------------------------------------------


def test_a_parquet_file_gives_a_row_an_image(tmp_path, any_store):
    images = [{"bytes": b"%d" % n * 50, "path": None} for n in range(100)]
    images[7] = {"bytes": None, "path": "elsewhere.jpg"}
    images[8] = None
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"label": list(range(100)), "image": pa.array(images, kind)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=30)
    url = storage.join(any_store, "x.parquet")
    storage.write_bytes(url, (tmp_path / "x.parquet").read_bytes())
    expected = {f"{url}#{n}": b"%d" % n * 50 for n in range(100)}
    expected[f"{url}#7"] = expected[f"{url}#8"] = Reason.UNREADABLE
    assert bytes_of(url) == expected
    listing = list_images(url, LIMITS)
    assert listing.refs(0, 1)[0].size is None
    assert listing.total_bytes == (tmp_path / "x.parquet").stat().st_size
    picked = [listing.refs()[row] for row in (95, 3, 4, 29, 30, 59, 60, 2)]
    assert [data for _, data in read_images(picked, LIMITS)] == [expected[ref.key] for ref in picked]


@pytest.mark.parametrize(
    ("columns", "read"),
    [
        ({"jpg": [b"1"], "thumbnail": [b"2"]}, b"1"),
        ({"portrait": [b"1"], "name": ["x"]}, b"1"),
        ({"pic": [{"path": "x", "bytes": b"1"}]}, b"1"),
        ({"image": pa.array([b"1"], pa.large_binary())}, b"1"),
        ({"image": pa.array([b"1"]).dictionary_encode()}, b"1"),
    ],
)
def test_the_column_of_images_is_found_by_type_and_name(tmp_path, columns, read):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert list(bytes_of(f"{tmp_path}/x.parquet").values()) == [read]


def test_a_parquet_file_without_images_is_told_and_passed_over_in_a_folder(tmp_path):
    pq.write_table(pa.table({"name": ["x"], "label": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(SourceError, match=r"has no column of images: name one `image`.*its columns are name, label$"):
        list_images(f"{tmp_path}/labels.parquet", LIMITS)
    pq.write_table(pa.table({"a": [b"1"], "b": [b"1"]}), tmp_path / "two.parquet")
    with pytest.raises(SourceError, match=r"has several columns of bytes \(a, b\)"):
        list_images(f"{tmp_path}/two.parquet", LIMITS)
    storage.write_bytes(f"{tmp_path}/1.jpg", b"1")
    listing = list_images(str(tmp_path), LIMITS)
    assert len(listing) == 1
    assert listing.ignored == {".parquet without images": 2}
    assert listing.archives == {}


def test_a_parquet_file_cut_short_or_damaged_fails_by_rows(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": [os.urandom(1000) for _ in range(50)]}), path, compression="zstd", row_group_size=10
    )
    refs = list_images(str(path), LIMITS).refs()
    data = bytearray(path.read_bytes())
    data[20_000:21_000] = bytes(1000)
    path.write_bytes(data)
    read = [data for _, data in read_images(refs, LIMITS)]
    assert len(read) == 50
    assert isinstance(read[0], bytes)
    path.write_bytes(data[:20_000])
    with pytest.raises(SourceError, match=r"x\.parquet is damaged"):
        list_images(str(path), LIMITS)
    assert {data.reason for _, data in read_images(refs, LIMITS)} == {Reason.UNREADABLE}


# --- The listing ------------------------------------------------------------------------------------------------------


def test_a_listing_survives_a_file_and_a_pickle(tmp_path, any_store):
    storage.write_bytes(f"{tmp_path}/1.jpg", b"1")
    storage.write_bytes(f"{tmp_path}/notes.txt", b"1")
    make_zip(tmp_path / "x.zip", [("a.jpg", b"1"), ("b.jpg", b"1")])
    listing = list_images(str(tmp_path), LIMITS)
    url = storage.join(any_store, "listing.parquet")
    listing.to_parquet(url)
    again = Listing.from_parquet(url)
    assert again == listing
    assert again.fingerprint() == listing.fingerprint()
    assert again.refs() == listing.refs()
    assert pickle.loads(pickle.dumps(listing.refs())) == listing.refs()  # noqa: S301 (our own)
    assert pickle.loads(pickle.dumps(listing)) == listing  # noqa: S301


def test_a_table_of_something_else_is_no_listing(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="not a listing"):
        Listing.from_parquet(f"{tmp_path}/x.parquet")


def test_the_fingerprint_follows_names_sizes_and_archives(tmp_path):
    def fingerprint():
        return list_images(str(tmp_path), LIMITS).fingerprint()

    storage.write_bytes(f"{tmp_path}/1.jpg", b"1")
    seen = [fingerprint()]
    storage.write_bytes(f"{tmp_path}/1.jpg", b"2")
    assert fingerprint() == seen[0]
    storage.write_bytes(f"{tmp_path}/1.jpg", b"22")
    seen.append(fingerprint())
    storage.write_bytes(f"{tmp_path}/2.jpg", b"2")
    seen.append(fingerprint())
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "x.parquet")
    seen.append(fingerprint())
    pq.write_table(pa.table({"image": [b"12"]}), tmp_path / "x.parquet")
    seen.append(fingerprint())
    storage.write_bytes(f"{tmp_path}/ignored.txt", b"2")
    assert fingerprint() == seen[-1]
    assert len(set(seen)) == 5


def test_the_fingerprint_is_this_one(monkeypatch, tmp_path):
    """Written down, so that a change that would make old runs unresumable is seen."""
    monkeypatch.chdir(tmp_path)
    rows = sources._Rows(LIMITS)
    rows.add_file("/data/1.jpg", 10)
    rows.add_file("gs://bucket/2.jpg", None)
    assert rows.finish().fingerprint() == "d07686846a6044db362148f47e2aebc8b25e0d6be2a8ca4b2669e745152b2471"


def test_the_order_of_sources_does_not_matter(tmp_path):
    for name in "abc":
        storage.write_bytes(f"{tmp_path}/{name}/1.jpg", b"1")
    prints = {
        list_images([f"{tmp_path}/{name}" for name in order], LIMITS).fingerprint()
        for order in itertools.permutations("abc")
    }
    assert len(prints) == 1


def test_a_million_names_stay_small():
    """In a process of its own: names as a folder walk would give them. Growth under 300 MB, all of it in seconds."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    script = """
import re
from pathlib import Path
from dataset_tools import sources, storage
from dataset_tools.limits import Limits
import pyarrow as pa
pa.array([1]), pa.array(["x"])
def files(folder):
    for n in range(1_000_000):
        yield f"/data/collections/photos/part-{n // 1000:04d}/IMG_{n:09d}.jpg", 100_000 + n
storage.list_files, storage.is_folder = files, lambda name: True
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
listing = sources.list_images("/data/collections/photos", Limits())
listing.fingerprint()
assert len(listing) == 1_000_000
assert listing.refs(999_999)[0].size == 1_099_999
print(peak() - before)
"""
    grown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    print(grown)
    assert int(grown) < 300_000  # KiB


# --- Reading from a store that fails ----------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """Make reads of names that contain a word fail that many times; gives the list of what was asked for."""
    monkeypatch.setattr(sources, "PAUSES_S", (0.0, 0.0))
    asked, left = [], {}

    def fail(word, times, error=None):
        left[word] = [times, error or storage.StorageError("cannot read x: the connection was reset")]

    def guard(real):
        def call(url, *rest, **named):
            asked.append(url)
            for word, state in left.items():
                if word in url and state[0] > 0:
                    state[0] -= 1
                    raise state[1]
            return real(url, *rest, **named)

        return call

    monkeypatch.setattr(storage, "read_bytes", guard(storage.read_bytes))
    monkeypatch.setattr(storage, "open_read", guard(storage.open_read))
    fail.asked = asked
    return fail


def test_a_store_that_fails_twice_is_asked_a_third_time(tmp_path, failing):
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        storage.write_bytes(f"{tmp_path}/{name}", name.encode())
    refs = list_images(str(tmp_path), LIMITS).refs()
    failing("1.jpg", 2)
    failing("2.jpg", 3)
    read = [data for _, data in read_images(refs, LIMITS)]
    assert read == [b"1.jpg", Failure(Reason.UNREADABLE, "the connection was reset"), b"3.jpg"]
    assert [Path(url).name for url in failing.asked] == ["1.jpg"] * 3 + ["2.jpg"] * 3 + ["3.jpg"]


def test_what_is_missing_or_forbidden_is_asked_for_once(tmp_path, failing):
    for name in ("1.jpg", "2.jpg"):
        storage.write_bytes(f"{tmp_path}/{name}", b"x")
    refs = list_images(str(tmp_path), LIMITS).refs()
    Path(refs[0].key).unlink()
    failing("2.jpg", 9, PermissionError(13, "Permission denied"))
    read = [data for _, data in read_images(refs, LIMITS)]
    assert read == [
        Failure(Reason.UNREADABLE, "the file does not exist"),
        Failure(Reason.UNREADABLE, "Permission denied"),
    ]
    assert len(failing.asked) == 2


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.tar.gz"])
def test_an_archive_goes_on_where_its_store_failed(tmp_path, failing, name):
    members = [(f"{n}.jpg", b"%d" % n) for n in range(5)]
    url = str(tmp_path / name)
    MAKERS[name](url, members)
    refs = list_images(url, LIMITS).refs()
    failing(name, 2)
    assert [data for _, data in read_images(refs, LIMITS)] == [data for _, data in members]
    failing(name, 5)
    read = [data for _, data in read_images(refs, LIMITS)]
    assert [isinstance(data, Failure) for data in read] == [True, True, True, False, False]  # 3 tries, then 1 each
    Path(url).unlink()
    failing.asked.clear()
    gone = [data for _, data in read_images(refs, LIMITS)]
    assert gone == [Failure(Reason.UNREADABLE, "the file does not exist")] * 5
    assert len(failing.asked) == 1


def test_reading_only_some_of_a_remote_tar_moves_only_some_of_it(s3_store, tmp_path, monkeypatch):
    url = storage.join(s3_store, "x.tar")
    members = [(f"{n}.jpg", bytes([n]) * 2**20) for n in range(20)]
    storage.write_bytes(url, Path(make_tar(tmp_path / "x.tar", members)).read_bytes())
    import s3fs

    moved = []
    real = s3fs.core.S3File._fetch_range

    def counted(self, start, end):
        moved.append(end - start)
        return real(self, start, end)

    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", counted)
    refs = list_images(url, LIMITS).refs()
    assert sum(moved) < 10 * 2**20
    moved.clear()
    assert [data for _, data in read_images(refs[3:5], LIMITS)] == [members[3][1], members[4][1]]
    assert sum(moved) < 4 * 2**20
