"""A store that fails every tenth request, in every way, changes nothing; one that is down is one line and no result."""

import pytest

from dataset_tools import storage
from dataset_tools.limits import Limits
from dataset_tools.sources import list_images, read_images
from tests import collection, labelled, toy_model
from tests.collection import crop_faces, summary
from tests.faulty_proxy import FAULTS, FaultyProxy
from tests.labelled import import_labels
from tests.stores import STORES, gcs_server, point_at_gcs, point_at_s3, s3_server
from tests.test_evaluate import data_set, ten_faces
from tests.test_stores import evaluation_of, upload


def behind(request, monkeypatch, kind, kinds=FAULTS, every=10):
    """(proxy, URL of an empty folder in the bucket): the store as it is, until `point` is called."""
    folder = request.getfixturevalue(f"{kind}_store")
    server = s3_server() if kind == "s3" else gcs_server()
    point = point_at_s3 if kind == "s3" else point_at_gcs
    return FaultyProxy(server, kinds, every), lambda url: point(monkeypatch, url), folder


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", STORES)
def test_every_way_to_touch_a_file_gets_over_a_fault(request, monkeypatch, kind, fault):
    proxy, point, folder = behind(request, monkeypatch, kind, (fault,), every=5)
    data = bytes(range(256)) * 1000
    with proxy:
        point(proxy.url)
        for number in range(2):
            url = storage.join(folder, f"{number}.bin")
            storage.write_bytes(url, data)
            with storage.open_write(f"{url}.2") as file:
                file.write(data)
            assert storage.read_bytes(url) == data
            assert storage.read_bytes(url, 1000, 1010) == data[1000:1010]
            with storage.open_read(f"{url}.2", 4096) as file:
                file.seek(200_000)
                assert file.read(10) == data[200_000:200_010]
            assert (storage.exists(url), storage.exists(f"{url}.3"), storage.file_size(url)) == (True, False, len(data))
        assert len(list(storage.list_files(folder))) == 4
        assert len(storage.glob(f"{folder}/*.bin")) == 2
        storage.remove(storage.join(folder, "0.bin"))
        storage.remove_tree(folder)
        assert not storage.exists(folder)
        assert proxy.faults[fault] >= 4


@pytest.mark.parametrize("kind", STORES)
def test_import_and_evaluation_end_with_the_same_result(request, monkeypatch, tmp_path, capsys, kind):
    source, model = labelled.fer_folders(tmp_path / "fer"), toy_model.folder(tmp_path / "m")
    imported = import_labels(capsys, source, "--out", tmp_path / "out", "--json").summary
    evaluated = evaluation_of(monkeypatch, model, data_set(tmp_path / "faces", ten_faces()), tmp_path / "evaluation")
    proxy, point, folder = behind(request, monkeypatch, kind)
    upload(source, f"{folder}/fer")
    upload(model, f"{folder}/m")
    data_set(f"{folder}/faces", ten_faces())
    with proxy:
        point(proxy.url)
        told = import_labels(capsys, f"{folder}/fer", "--out", f"{folder}/out", "--json").summary
        assert (told["fingerprint"], told["failed"]) == (imported["fingerprint"], 0)
        assert evaluation_of(monkeypatch, f"{folder}/m", f"{folder}/faces", f"{folder}/evaluation") == evaluated
        assert sum(proxy.faults.values()) >= len(FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_a_crop_run_ends_with_the_same_faces(request, monkeypatch, tmp_path, kind):
    photos = collection.make(tmp_path / "photos", faces=4)
    told = summary(crop_faces(photos, "--out", tmp_path / "out", "--json", "--workers", 1))
    proxy, point, folder = behind(request, monkeypatch, kind)
    upload(photos, f"{folder}/photos")
    with proxy:
        point(proxy.url)
        options = (f"{folder}/photos", "--out", f"{folder}/out", "--json", "--workers", 2, "--shard-size", 2)
        faulty = summary(crop_faces(*options))
        assert sum(proxy.faults.values()) >= len(FAULTS)
    assert (faulty["fingerprint"], faulty["reasons"]) == (told["fingerprint"], told["reasons"])


def quick_to_give_up(monkeypatch):
    """Clients that try once: how often they do is theirs, and takes minutes."""
    import gcsfs.retry
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(gcsfs.retry, "is_retriable", lambda error: False)


@pytest.mark.parametrize("fault", ["unavailable", "dropped"])
@pytest.mark.parametrize("kind", STORES)
def test_a_store_that_is_down_stops_the_run_and_fails_no_image(request, monkeypatch, caplog, kind, fault):
    proxy, point, folder = behind(request, monkeypatch, kind, (fault,), every=1)
    storage.write_bytes(f"{folder}/1.jpg", b"1")
    refs = list_images(folder, Limits()).refs()
    quick_to_give_up(monkeypatch)
    with proxy:
        point(proxy.url)
        with pytest.raises(storage.OutageError) as raised:
            list(read_images(refs, Limits()))
    assert str(raised.value).startswith(f"cannot read {folder}/1.jpg: ")
    assert "\n" not in str(raised.value)
    assert "Traceback" not in caplog.text  # gcsfs logs one of what it also raises
