"""Whole runs with source and output in an object store: the same faces as on a disk, whole parts only."""

import json
import os

import pytest

from dataset_tools import storage
from tests import collection
from tests.collection import crop_faces, summary
from tests.stores import SECRET, STORES
from workflows.crop_faces import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return collection.make(tmp_path_factory.mktemp("source") / "photos", faces=4)


@pytest.fixture(scope="module")
def on_disk(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return summary(crop_faces(photos, "--out", out, "--json", "--workers", 1))


def upload(photos, store):
    for path in sorted(photos.rglob("*")):
        if path.is_file():
            storage.write_bytes(storage.join(store, "photos", path.relative_to(photos).as_posix()), path.read_bytes())


def names(url):
    return sorted(name.removeprefix(url) for name, _ in storage.list_files(url))


@pytest.mark.parametrize("kind", STORES)
def test_a_run_from_store_to_store_gives_the_same_faces(request, photos, on_disk, kind):
    store = request.getfixturevalue(f"{kind}_store")
    upload(photos, store)
    options = (f"{store}/photos", "--out", f"{store}/faces", "--json", "--workers", 2, "--shard-size", 4)
    told = summary(crop_faces(*options, env={**os.environ}))
    assert told["fingerprint"] == on_disk["fingerprint"]
    assert (told["images"], told["failed"]) == (9, 2)
    found = names(f"{store}/faces")
    assert {"/README.md", "/manifest.json", "/report.html", "/summary.json", "/yolo/data.yaml"} < set(found)
    assert [name for name in found if name.startswith("/done/")] == [
        "/done/00000.json",
        "/done/00001.json",
        "/done/00002.json",
    ]
    assert not [name for name in found if name.startswith("/yolo/images")]  # `none` is the default of a store
    manifest = storage.read_bytes(f"{store}/faces/manifest.json")
    assert json.loads(manifest)["sources"] == [f"{store}/photos"]
    assert SECRET.encode() not in manifest
    again = summary(crop_faces(*options, env={**os.environ}))
    assert again["images_processed"] == 0


def test_a_run_in_memory_stays_in_this_process(photos, on_disk, capsys):
    upload(photos, "memory://bucket")
    with pytest.raises(SystemExit) as ended:
        main(["memory://bucket/photos", "--out", "memory://bucket/faces", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == on_disk["fingerprint"]


def test_a_bucket_that_is_not_there_is_one_line(s3_store, tmp_path):
    done = crop_faces("s3://nowhere-at-all/photos", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert "s3://nowhere-at-all/photos" in done.stderr.splitlines()[-1]
    assert SECRET not in done.stderr
