"""One shard, without an engine: what is written, in which order, and what a retry or a careful run changes."""

import json

import pytest

from dataset_tools import parquet, shards, storage
from dataset_tools.detection import Face
from dataset_tools.encoding import encode
from dataset_tools.faces import Recipe
from dataset_tools.limits import Limits
from dataset_tools.quality import Screen
from dataset_tools.shards import ShardTask, YoloOptions, run_shard
from dataset_tools.sources import list_images
from tests.collection import portrait
from tests.test_faces import POINTS


def one_face(pixels):
    return [Face((30.0, 30.0, 75.0, 80.0), POINTS, 0.9)]


@pytest.fixture
def task(tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.png").write_bytes(encode(portrait(number, 96), "png", 95))
    (source / "4.png").write_bytes(b"broken")
    refs = tuple(list_images(str(source), Limits()).refs())
    out = str(tmp_path / "out")
    return ShardTask(out, 2, 7, refs, Recipe(split=(0.5, 0.5, 0)), YoloOptions(), "affectnet-8")


def test_a_shard_writes_its_parts_and_the_marker_last(task, monkeypatch):
    written = []
    for name in ("write_bytes", "open_write"):
        real = getattr(storage, name)
        monkeypatch.setattr(
            storage, name, lambda url, *rest, real=real, **more: (written.append(url), real(url, *rest, **more))[1]
        )
    counts = run_shard(task, one_face)
    assert (counts.images, counts.ok, counts.failed, counts.faces) == (5, 4, 1, 4)
    written = list(dict.fromkeys(written))
    assert written[-2:] == [f"{task.out}/ledger/shard-00002.parquet", f"{task.out}/done/00002.json"]
    parts = dict(parquet.data_parts(task.out))
    assert parts["train"].endswith("/data/train-00002-of-00007.parquet")
    marker = json.loads(storage.read_bytes(f"{task.out}/done/00002.json"))
    assert marker["shard"] == 2
    assert marker["fingerprint"] == f"{counts.fingerprint:064x}"


def test_a_shard_that_fails_half_way_leaves_no_part(task):
    def fails_late(pixels):
        if fails_late.calls == 2:
            raise KeyboardInterrupt
        fails_late.calls += 1
        return one_face(pixels)

    fails_late.calls = 0
    with pytest.raises(KeyboardInterrupt):
        run_shard(task, fails_late)
    assert list(parquet.data_parts(task.out)) == []
    assert not storage.exists(shards.done_marker(task.out, 2))


def test_an_image_that_killed_its_process_twice_is_recorded_and_the_rest_is_done(task):
    killer = task.refs[1].key
    careful = ShardTask(**{**vars(task), "careful": True})

    def dies(pixels):
        noted = json.loads(storage.read_bytes(f"{task.out}/attempts/00002.json"))
        if list(noted)[-1] == killer:
            raise SystemExit  # stands for a process that is gone: nothing after this runs
        return one_face(pixels)

    for _ in range(2):
        with pytest.raises(SystemExit):
            run_shard(careful, dies)
    counts = run_shard(careful, dies)
    assert (counts.images, counts.faces, dict(counts.reasons)) == (5, 3, {"detector_crash": 1, "not_an_image": 1})
    assert not storage.exists(f"{task.out}/attempts/00002.json")


def test_a_retry_takes_over_what_is_there(task):
    before = run_shard(task, one_face)
    looked_at = []

    def notes(pixels):
        looked_at.append(pixels.shape)
        return one_face(pixels)

    again = ShardTask(**{**vars(task), "retry": frozenset({task.refs[3].key})})
    after = run_shard(again, notes)
    assert len(looked_at) == 1
    assert (after.fingerprint, after.splits) == (before.fingerprint, before.splits)
    rows = parquet.read_part(parquet.ledger_part(task.out, 2)).to_pylist()
    assert [row["key"] for row in rows] == [ref.key for ref in task.refs]


def test_labels_only_leave_no_pictures(task, tmp_path):
    run_shard(ShardTask(**{**vars(task), "yolo": YoloOptions("boxes", images=False)}), one_face)
    assert not (tmp_path / "out" / "yolo" / "images").exists()
    assert len(list((tmp_path / "out" / "yolo" / "labels").rglob("*.txt"))) == 4


def test_a_face_held_back_is_labelled_all_the_same(task, tmp_path):
    strict = Recipe(screen=Screen(min_inter_eye_px=1000))
    counts = run_shard(ShardTask(**{**vars(task), "recipe": strict}), one_face)
    assert (counts.faces, counts.faces_screened) == (0, 4)
    labels = [path.read_text() for path in (tmp_path / "out" / "yolo" / "labels").rglob("*.txt")]
    assert [len(text.splitlines()) for text in labels] == [1, 1, 1, 1]
