"""Files on a disk and in object stores behave the same: whole or not at all, protocol kept, errors of one line."""

import os
import pickle
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_tools import storage
from dataset_tools.storage import MissingFileError, StorageError
from tests.stores import STORES

# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/data/photos/", "/data/photos"),
        ("/data/../photos//x", "/photos/x"),
        ("file:///data/photos/", "/data/photos"),
        ("file:///data/a%20b.jpg", "/data/a b.jpg"),
        ("gs://bucket/photos/", "gs://bucket/photos"),
        ("gcs://bucket/photos", "gs://bucket/photos"),
        ("s3a://bucket/photos", "s3://bucket/photos"),
        ("S3://Bucket/Photos", "s3://Bucket/Photos"),
        ("memory:///x/y", "memory://x/y"),
        ("https://host/a?b=c", "https://host/a?b=c"),
        (Path("/data/photos"), "/data/photos"),
        ("/", "/"),
    ],
)
def test_a_name_is_an_absolute_path_or_a_url_without_a_slash_at_its_end(given, expected):
    assert storage.normalize(given) == expected
    assert storage.normalize(storage.normalize(given)) == expected


def test_relative_and_home_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/user")
    assert storage.normalize("photos") == f"{tmp_path}/photos"
    assert storage.normalize("~/photos") == "/home/user/photos"


def test_joining_keeps_the_protocol():
    assert storage.join("gs://bucket/out/", "ledger/", "0.parquet") == "gs://bucket/out/ledger/0.parquet"
    assert storage.join("/", "a") == "/a"
    assert storage.join("s3://bucket/set", "", "list.csv") == "s3://bucket/set/list.csv"
    assert [storage.is_local(name) for name in ("/a", "a", "file:///a", "gs://a", "memory://a")] == [True] * 3 + [
        False
    ] * 2


def test_an_empty_name_is_refused():
    with pytest.raises(StorageError, match="an empty path"):
        storage.normalize("")


def test_a_local_name_of_any_bytes_has_a_text_form_that_leads_back_to_it(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 100%.jpg")
    Path(path).write_bytes(b"bytes")
    text = storage.as_text(path)
    assert text == f"file://{tmp_path}/caf%E9%20100%25.jpg"
    assert storage.normalize(text) == path
    assert storage.read_bytes(text) == b"bytes"
    assert storage.as_text("/data/脸 %20.jpg") == "/data/脸 %20.jpg"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://user:secret@host/a", "ftp://...@host/a"),
        ("abfs://container@account.net/a", "abfs://container@account.net/a"),
        ("https://h/a.jpg?X-Amz-Signature=secret&size=2", "https://h/a.jpg?X-Amz-Signature=...&size=2"),
        ("https://h/a.jpg?id=7&sig=secret", "https://h/a.jpg?id=7&sig=..."),
        ("gs://bucket/a@b.jpg", "gs://bucket/a@b.jpg"),
    ],
)
def test_credentials_are_never_shown(url, shown):
    assert storage.redact(url) == shown
    assert "secret" not in storage.redact(f"cannot read {url}: no")


# --- Reading and writing ----------------------------------------------------------------------------------------------


def test_what_is_written_is_read_whole_and_by_ranges(any_store):
    url = storage.join(any_store, "a", "b.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, b"0123456789")
    assert storage.exists(url)
    assert storage.file_size(url) == 10
    assert storage.read_bytes(url) == b"0123456789"
    assert storage.read_bytes(url, 2, 5) == b"234"
    assert storage.read_bytes(url, 8, 50) == b"89"
    assert storage.read_bytes(url, 7) == b"789"
    assert storage.read_bytes(url, 10, 12) == b""
    with storage.open_read(url) as file:
        assert file.seek(-3, os.SEEK_END) == 7
        assert file.read() == b"789"
        file.seek(1)
        assert file.read(2) == b"12"


def test_a_file_written_again_is_replaced(any_store):
    url = storage.join(any_store, "done.json")
    storage.write_bytes(url, b"first and longer")
    storage.write_bytes(url, b"second")
    assert storage.read_bytes(url) == b"second"


def test_a_reader_of_the_old_file_keeps_the_old_file(tmp_path):
    url = str(tmp_path / "part")
    storage.write_bytes(url, b"old")
    with storage.open_read(url) as reader:
        storage.write_bytes(url, b"new")
        assert reader.read() == b"old"
    assert storage.read_bytes(url) == b"new"


def test_an_empty_file_is_a_file(any_store):
    url = storage.join(any_store, "empty")
    storage.write_bytes(url, b"")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b""
    assert storage.read_bytes(url, 0, 100) == b""
    assert list(storage.list_files(any_store)) == [(url, 0)]


def test_a_streaming_writer_publishes_at_the_end(any_store):
    url = storage.join(any_store, "data", "part.parquet")
    with storage.open_write(url) as file:
        pq.write_table(pa.table({"x": [1, 2, 3]}), file)
        assert not storage.exists(url)
    with storage.open_read(url) as file:
        assert pq.read_table(file)["x"].to_pylist() == [1, 2, 3]
    assert [name for name, _ in storage.list_files(any_store)] == [url]


def test_an_exception_while_writing_publishes_nothing_and_leaves_nothing(any_store):
    url = storage.join(any_store, "part.parquet")
    storage.write_bytes(url, b"old")
    with pytest.raises(ZeroDivisionError), storage.open_write(url) as file:
        file.write(b"new" + bytes(1 // 0))
    assert storage.read_bytes(url) == b"old"
    assert [name for name, _ in storage.list_files(any_store)] == [url]


def test_files_are_listed_at_any_depth_sorted_and_with_their_protocol(any_store):
    names = ["b.jpg", "a/2.jpg", "a/1.jpg", "a/b/c/deep.jpg", "a.jpg", "ü/脸.jpg", "a b#c?.jpg"]
    for number, name in enumerate(names):
        storage.write_bytes(storage.join(any_store, name), b"x" * number)
    listed = list(storage.list_files(any_store))
    assert listed == sorted((storage.join(any_store, name), number) for number, name in enumerate(names))
    assert all(storage.read_bytes(url) == b"x" * size for url, size in listed)
    assert list(storage.list_files(storage.join(any_store, "a/b"))) == [(storage.join(any_store, "a/b/c/deep.jpg"), 3)]


def test_a_glob_keeps_the_protocol_and_tells_folders(any_store):
    for name in ["x/1.jpg", "x/2.png", "x/sub/3.jpg", "y/4.jpg"]:
        storage.write_bytes(storage.join(any_store, name), b"1234")
    assert storage.glob(storage.join(any_store, "x/*.jpg")) == [(storage.join(any_store, "x/1.jpg"), 4)]
    assert storage.glob(storage.join(any_store, "x/s*")) == [(storage.join(any_store, "x/sub"), None)]
    deep = [url for url, _ in storage.glob(storage.join(any_store, "**/*.jpg"))]
    assert deep == [storage.join(any_store, name) for name in ("x/1.jpg", "x/sub/3.jpg", "y/4.jpg")]
    assert storage.glob(storage.join(any_store, "z*")) == []


def test_removing_is_content_with_what_is_not_there(any_store):
    for name in ["a/1", "a/2", "b"]:
        storage.write_bytes(storage.join(any_store, name), b"1")
    storage.remove(storage.join(any_store, "b"))
    storage.remove(storage.join(any_store, "b"))
    storage.remove_tree(storage.join(any_store, "a"))
    storage.remove_tree(storage.join(any_store, "a"))
    assert not storage.exists(storage.join(any_store, "a"))
    storage.write_bytes(storage.join(any_store, "c"), b"1")
    assert [name for name, _ in storage.list_files(any_store)] == [storage.join(any_store, "c")]


def test_a_missing_file_is_told_in_one_line(any_store):
    url = storage.join(any_store, "none.jpg")
    with pytest.raises(MissingFileError) as caught:
        storage.read_bytes(url)
    assert str(caught.value) == f"cannot read {url}: it does not exist"
    with pytest.raises(FileNotFoundError), storage.open_read(url) as file:
        file.read()
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args  # noqa: S301 (our own)


# --- Disks ------------------------------------------------------------------------------------------------------------


def test_a_link_that_leads_back_is_followed_once(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.jpg").write_bytes(b"1")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "z").symlink_to(tmp_path / "a" / "b")
    assert list(storage.list_files(str(tmp_path))) == [(f"{tmp_path}/a/x.jpg", 1)]


def test_linked_files_are_listed_and_dangling_ones_too(tmp_path):
    (tmp_path / "real.bin").write_bytes(b"1234")
    (tmp_path / "link.jpg").symlink_to("real.bin")
    (tmp_path / "gone.jpg").symlink_to("nothing")
    listed = {Path(name).name: size for name, size in storage.list_files(str(tmp_path))}
    assert listed == {"real.bin": 4, "link.jpg": 4, "gone.jpg": 0}


def test_a_pipe_is_neither_listed_nor_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list(storage.list_files(str(tmp_path))) == []
    with pytest.raises(StorageError, match="it is a device, pipe or socket"):
        storage.read_bytes(str(tmp_path / "pipe.jpg"))
    with pytest.raises(StorageError, match="it is a folder"):
        storage.read_bytes(str(tmp_path))


def test_a_name_of_full_length_can_be_written(tmp_path):
    url = str(tmp_path / ("x" * 255))
    storage.write_bytes(url, b"1")
    assert storage.read_bytes(url) == b"1"


def test_what_a_killed_writer_left_can_be_swept(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".part-0.parquet.99-ab12.part").write_bytes(b"half")
    (tmp_path / "data" / "mine.part").write_bytes(b"keep")
    assert storage.remove_partials(str(tmp_path)) == 1
    assert [Path(name).name for name, _ in storage.list_files(str(tmp_path))] == ["mine.part"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed_stops_the_listing(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(StorageError, match=r"cannot list .*closed: Permission denied"):
        list(storage.list_files(str(tmp_path)))


def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write .*/out/part: (Not a directory|File exists)"):
        storage.write_bytes(str(tmp_path / "out" / "part"), b"")


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_whole_disks_and_buckets_are_not_removed():
    for name in ("/", "~", "gs://bucket", "s3://bucket/"):
        with pytest.raises(StorageError, match="will not remove all of"):
            storage.remove_tree(name)


def test_an_unknown_protocol_names_those_known():
    with pytest.raises(StorageError, match=r"^unknown protocol foo://: use a local path, gs://, s3://"):
        storage.read_bytes("foo://bucket/a")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StorageError, match=r"^s3:// needs the extra s3: uv pip install 'facemill\[s3\]'$"):
        storage.exists("s3://bucket/a")


def test_a_missing_bucket_is_told_in_one_line(s3_store, gcs_store):
    for url in ("s3://no-such-bucket/a", "gs://no-such-bucket/a"):
        with pytest.raises(StorageError) as caught:
            storage.write_bytes(url, b"1")
        assert "\n" not in str(caught.value)
        assert url in str(caught.value)
        with pytest.raises(StorageError):
            storage.read_bytes(url)


def test_missing_credentials_are_told_with_the_next_step(s3_store, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"^cannot read s3://.*log in: aws configure"):
        storage.read_bytes(storage.join(s3_store, "x"))
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_right_is_told_with_the_next_step_and_without_secrets(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def forbidden(*_, **__):
        raise PermissionError("Forbidden: https://store/x?X-Goog-Signature=secret\nand more")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", forbidden)
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("memory://bucket/a")
    assert str(caught.value) == (
        "cannot read memory://bucket/a: Forbidden: https://store/x?X-Goog-Signature=... and more; "
        "check your rights there"
    )


@pytest.mark.parametrize("kind", STORES)
def test_listings_see_what_others_write_meanwhile(request, kind):
    folder = request.getfixturevalue(f"{kind}_store")
    storage.write_bytes(f"{folder}/1", b"1")
    assert len(list(storage.list_files(folder))) == 1
    fsspec.filesystem(folder.split("://")[0], skip_instance_cache=True).pipe_file(f"{folder}/2", b"1")
    assert len(list(storage.list_files(folder))) == 2
    assert storage.exists(f"{folder}/2")


def test_a_listing_of_many_pages_is_whole_and_sorted(any_store, monkeypatch):
    monkeypatch.setattr(storage.store_pages, "_PAGE_OBJECTS", 2)
    names = ["a/b/1.jpg", "a/b2.jpg", "a/2.jpg", "a.jpg", "ab/3.jpg", "c.jpg", "ä.jpg"]
    for number, name in enumerate(names):
        storage.write_bytes(f"{any_store}/x/{name}", b"." * number)
    storage.write_bytes(f"{any_store}/xy.jpg", b"a neighbour whose name begins alike")
    found = list(storage.list_files(f"{any_store}/x"))
    assert found == sorted((f"{any_store}/x/{name}", number) for number, name in enumerate(names))


def test_a_folder_of_s3_is_known_by_one_object_and_not_by_its_listing(s3_store):
    for number in range(3):
        storage.write_bytes(f"{s3_store}/x/{number}.jpg", b"x")
    bucket = s3_store.rpartition("/")[0]
    there = [s3_store, f"{s3_store}/x", bucket]
    assert [storage.is_folder(url) for url in there] == [True, True, True]
    not_there = [
        f"{s3_store}/x/0.jpg",
        f"{s3_store}/y",
        f"{s3_store}/x/0",
        "s3://no-such-bucket-here",
        f"{s3_store}9/x",
    ]
    assert [storage.is_folder(url) for url in not_there] == [False] * 5


def test_small_files_are_read_in_order(any_store):
    urls = [f"{any_store}/{number}.json" for number in range(40)]
    for number, url in enumerate(urls):
        storage.write_bytes(url, str(number).encode())
    assert list(storage.read_each(urls)) == [str(number).encode() for number in range(40)]
    with pytest.raises(storage.MissingFileError):
        list(storage.read_each([*urls, f"{any_store}/none.json"]))
