import numpy as np
import pytest

from dataset_tools.counts import Counts
from dataset_tools.run_folder import FolderError, RunFolder, refuse_difference, shard_starts
from schemas.manifest import Manifest

MANIFEST = Manifest("crop-faces", ("/photos",), 3, 99, {}, "ff", 2, 2, {"margin": 0.2}, "2026-01-01T00:00:00+00:00")


def folder(tmp_path):
    return RunFolder(str(tmp_path / "out"))


def write(tmp_path, name, data=b"x"):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_new_or_empty_folder_holds_no_run(tmp_path):
    assert folder(tmp_path).manifest() is None
    (tmp_path / "out").mkdir()
    assert folder(tmp_path).manifest() is None
    assert folder(tmp_path).done() == {}


def test_a_listing_alone_is_left_from_a_killed_start(tmp_path):
    write(tmp_path, "listing.parquet")
    assert folder(tmp_path).manifest() is None


def test_a_folder_with_other_things_is_refused(tmp_path):
    write(tmp_path, "thesis.tex")
    with pytest.raises(FolderError, match="is not empty and holds no run of facemill: choose another --out"):
        folder(tmp_path).manifest()


def test_clearing_takes_what_a_run_wrote_and_nothing_else(tmp_path):
    write(tmp_path, "manifest.json", MANIFEST.to_json())
    for name in ("data/train-00000-of-00001.parquet", "yolo/images/train/a.jpg", "done/00000.json", "notes.txt"):
        write(tmp_path, name)
    folder(tmp_path).clear()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_other_parameters_are_refused_with_the_difference_named():
    refuse_difference(MANIFEST, {"margin": 0.2}, ("/photos",), "/out")
    with pytest.raises(FolderError, match=r"other parameters \(margin: was 0\.2, now 0\.3\): choose another --out"):
        refuse_difference(MANIFEST, {"margin": 0.3}, ("/photos",), "/out")
    with pytest.raises(FolderError, match=r"source: was \['/photos'\], now \['/pictures'\]"):
        refuse_difference(MANIFEST, {"margin": 0.2}, ("/pictures",), "/out")


def test_shards_are_runs_of_neighbours_across_files():
    def starts(containers):
        return shard_starts(np.array(containers, np.int32), np.zeros(len(containers), bool), 3)

    assert starts([0] * 7) == [0, 3, 6, 7]
    assert starts([0, 1, 2, 3]) == [0, 3, 4]
    assert starts([]) == [0]


def test_a_streamed_archive_has_shards_of_its_own_and_few_of_them():
    containers = np.array([0] * 3 + [1] * 20 + [2] * 3, np.int32)
    assert shard_starts(containers, containers == 1, 2) == [0, 2, 3, 6, 9, 12, 15, 18, 21, 23, 25, 26]


def test_counts_survive_their_json():
    counts = Counts(images=2, ok=1, failed=1, faces=1, fingerprint=2**255 + 1)
    counts.reasons["truncated"] += 1
    counts.splits["train"] += 1
    values = counts.to_dict()
    assert values["fingerprint"] == "8" + "0" * 62 + "1"
    assert Counts.from_dict(values) == counts


def test_counts_add_up_whatever_the_order():
    one, other = Counts(images=1, fingerprint=2**256 - 1), Counts(images=2, fingerprint=5)
    left, right = Counts(), Counts()
    for counts in (one, other):
        left.add(counts)
    for counts in (other, one):
        right.add(counts)
    assert left == right
    assert (left.images, left.fingerprint) == (3, 4)
