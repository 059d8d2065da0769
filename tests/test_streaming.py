"""A whole archive in one pass gives what its listing gives: the same keys, bytes and reasons, whatever is wrong."""

import gzip
import io
import tarfile
from collections import Counter

import pytest

from dataset_tools import sources, storage, streaming
from dataset_tools.limits import Limits
from dataset_tools.sources import ImageRef, list_images, read_images
from dataset_tools.streaming import stream_archive
from schemas.outcomes import Failure, Reason
from tests.test_sources import make_tar, make_zip

LIMITS = Limits()
MEMBERS = [
    ("a/1.jpg", b"one" * 700),
    ("a/1.jpg", b"another of that name"),
    ("notes.txt", b"passed over"),
    ("../out.jpg", b"leads out"),
    ("/etc/root.jpg", b"absolute"),
    ("inner.tar", b"nested"),
    ("empty.png", b""),
    ("a/1.jpg", b"a third"),
    ("sixteen.jpg", b"x" * 1024),  # ends on a block: the next header follows at once
    ("last.jpg", b"y" * 513),
]


def streamed(url, limits=LIMITS):
    """({key: bytes or reason}, what was passed over)."""
    found, ignored = {}, Counter()
    for item in stream_archive(ImageRef(url, url, "archive"), limits):
        if isinstance(item, str):
            ignored[item] += 1
        else:
            ref, data = item
            assert ref.key not in found
            found[ref.key] = data.reason if isinstance(data, Failure) else data
    return found, dict(ignored)


def listed(url, limits=LIMITS):
    listing = list_images(url, limits)
    found = {
        ref.key: data if isinstance(data, bytes) else data.reason for ref, data in read_images(listing.refs(), limits)
    }
    return found, listing.ignored


def archive(tmp_path, kind):
    if kind == "zip":
        with pytest.warns(UserWarning, match="Duplicate name"):
            return make_zip(tmp_path / "x.zip", MEMBERS)
    mode = kind.replace("tar", "w").replace(".", ":")
    links = [tarfile.TarInfo("link.jpg"), tarfile.TarInfo("folder")]
    links[0].type, links[0].linkname = tarfile.SYMTYPE, "/etc/passwd"
    links[1].type = tarfile.DIRTYPE
    return make_tar(tmp_path / f"x.{kind}", [*MEMBERS, *links], mode)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_stream_gives_what_the_listing_gives(tmp_path, kind):
    url = archive(tmp_path, kind)
    found, ignored = streamed(url)
    assert (found, ignored) == listed(url)
    assert list(found) == [
        f"{url}#{name}"
        for name in (
            "a/1.jpg",
            "a/1.jpg~2",
            "../out.jpg",
            "/etc/root.jpg",
            "empty.png",
            "a/1.jpg~3",
            "sixteen.jpg",
            "last.jpg",
        )
    ]
    assert found[f"{url}#a/1.jpg~3"] == b"a third"
    assert ignored == {".txt": 1, "nested archive": 1} | ({} if kind == "zip" else {"link": 1})


def test_a_compressed_tar_is_unpacked_once(tmp_path, monkeypatch):
    url = archive(tmp_path, "tar.gz")
    rewinds = []
    real = gzip._GzipReader._rewind
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda reader: (rewinds.append(1), real(reader))[1])
    found, _ = streamed(url)
    assert len(found) == 8
    assert rewinds == []


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_that_breaks_off_gives_what_it_has_and_one_failure_of_its_own(tmp_path, kind):
    url = archive(tmp_path, kind)
    data = storage.read_bytes(url)
    storage.write_bytes(url, data[: len(data) * 2 // 3])
    found, _ = streamed(url)
    assert found[url] == Reason.UNREADABLE
    assert list(found)[-1] == url
    if kind != "zip":  # whose directory is at its end
        assert found[f"{url}#a/1.jpg"] == b"one" * 700
        assert found == listed(url)[0]


def test_bounds_hold_in_the_stream_too(tmp_path):
    url = make_tar(tmp_path / "x.tar", [(f"{number}.jpg", b"x" * 100) for number in range(20)])
    found, _ = streamed(url, Limits(max_members=12))
    assert (len(found), found[url]) == (13, Reason.TOO_LARGE)
    found, _ = streamed(url, Limits(max_archive_bytes=500))
    assert (len(found), found[url]) == (6, Reason.TOO_LARGE)
    found, _ = streamed(url, Limits(max_image_bytes=99))
    assert set(found.values()) == {Reason.TOO_LARGE}
    assert len(found) == 20


def test_a_file_that_is_no_archive_is_one_failure(tmp_path):
    url = str(tmp_path / "x.tar.gz")
    storage.write_bytes(url, b"<html>404</html>" * 100)
    assert streamed(url) == ({url: Reason.UNREADABLE}, {})


def test_a_store_that_fails_in_mid_stream_is_gone_on_with_and_nothing_comes_twice(tmp_path, monkeypatch):
    url = make_tar(tmp_path / "x.tar", [(f"{number}.jpg", bytes([number]) * 3000) for number in range(9)])
    monkeypatch.setattr(sources, "PAUSES_S", (0, 0))
    monkeypatch.setattr(streaming, "sleep", lambda _: None)
    left = [5, 3]
    real = streaming._Forward._read

    def failing(self, size):
        if left and size == 3000:
            left[0] -= 1
            if left[0] == 0:
                left.pop(0)
                raise storage.StorageError("the store hung up")
        return real(self, size)

    monkeypatch.setattr(streaming._Forward, "_read", failing)
    found, _ = streamed(url)
    assert found == {f"{url}#{number}.jpg": bytes([number]) * 3000 for number in range(9)}
    assert left == []


def test_a_store_that_stays_away_is_one_failure_of_the_archive(tmp_path):
    gone = str(tmp_path / "gone.tar")
    assert streamed(gone) == ({gone: Reason.UNREADABLE}, {})


def test_a_forward_file_goes_back_by_one_byte_and_no_further():
    forward = streaming._Forward(io.BytesIO(b"0123456789"))
    assert (forward.read(4), forward.tell()) == (b"0123", 4)
    forward.seek(3)
    assert (forward.tell(), forward.read(2), forward.tell()) == (3, b"34", 5)
    forward.seek(8)
    assert forward.read(9) == b"89"
    with pytest.raises(ValueError, match="back from byte 10 to 2"):
        forward.seek(2)
