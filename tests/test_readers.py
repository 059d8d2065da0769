"""What others load: the data set folder through the packages that people use, nothing mocked, nothing fetched."""

import socket
from pathlib import Path

import numpy as np
import pytest

from dataset_tools import cards
from schemas.labels import AFFECTNET_8
from schemas.tables import FACES, FaceRow
from tests import toy


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "faces"
    toy.build(str(folder))
    cards.write_card(str(folder))
    return folder


@pytest.fixture(scope="module")
def faces() -> list[FaceRow]:
    """In the order of their splits, which is that of the files."""
    rows = [face for shard in toy.shards() for _, faces in shard for face in faces]
    return sorted(rows, key=lambda face: ("train", "validation", "test").index(face.split))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("something asked the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)


def check_hugging_face(loaded, faces: list[FaceRow]) -> None:
    from datasets import ClassLabel, Image

    train = loaded["train"]
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 3, "validation": 2, "test": 1}
    assert train.column_names == FACES.names
    assert isinstance(train.features["image"], Image)
    assert train.features["label"] == ClassLabel(names=list(AFFECTNET_8.names))
    row = train[0]
    assert row["image"].size == (112, 112)
    assert row["image"].mode == "RGB"
    assert train.features["label"].int2str(row["label"]) == "happiness"
    assert train[1]["label"] is None
    assert row["bbox"] == list(faces[0].bbox)
    assert np.shape(row["landmarks"]) == (5, 2)
    assert (row["valence"], row["arousal"]) == (0.5, -0.25)


def test_hugging_face_datasets_loads_the_folder_by_its_card(out, faces, tmp_path, offline):
    from datasets import load_dataset

    check_hugging_face(load_dataset(str(out), cache_dir=str(tmp_path)), faces)
    ledger = load_dataset(str(out), "ledger", split="images", cache_dir=str(tmp_path))
    assert ledger.num_rows == 8
    assert sorted(filter(None, ledger["reason"])) == ["not_an_image", "truncated"]


def test_hugging_face_datasets_loads_the_files_without_a_card(out, faces, tmp_path, offline):
    from datasets import load_dataset

    files = {split: f"{out}/data/{split}-*.parquet" for split in ("train", "validation", "test")}
    check_hugging_face(load_dataset("parquet", data_files=files, cache_dir=str(tmp_path)), faces)


def test_hugging_face_datasets_streams_it(out, faces, tmp_path, offline):
    from datasets import load_dataset

    rows = load_dataset(str(out), split="train", streaming=True, cache_dir=str(tmp_path))
    assert [row["key"] for row in rows] == [face.key for face in faces if face.split == "train"]


def test_pandas_loads_it(out, faces):
    import pandas as pd

    table = pd.read_parquet(out / "data", columns=["key", "face_index", "bbox", "score", "label"])
    assert len(table) == len(faces)
    one = table[(table["key"] == "in/a.jpg") & (table["face_index"] == 1)].iloc[0]
    assert list(one["bbox"]) == [150.25, 40.5, 230.75, 140.0]
    ledger = pd.read_parquet(out / "ledger")
    assert ledger["status"].value_counts().to_dict() == {"ok": 5, "failed": 2, "no_face": 1}


def test_duckdb_queries_it(out):
    import duckdb

    with duckdb.connect() as connection:
        found = connection.sql(
            f"SELECT split, count(*), max(score), min(bbox[1]) FROM '{out}/data/*.parquet' GROUP BY split ORDER BY 1"
        ).fetchall()
        joined = connection.sql(
            f"SELECT count(*) FROM '{out}/ledger/*.parquet' l LEFT JOIN '{out}/data/*.parquet' f USING (key)"
            " WHERE l.status = 'ok' AND f.key IS NULL"
        ).fetchall()
    assert [(split, count, round(score, 2), x) for split, count, score, x in found] == [
        ("test", 1, 0.97, 20.0),
        ("train", 3, 0.98, -10.0),
        ("validation", 2, 0.99, 60.0),
    ]
    assert joined == [(0,)]


# Dask 2026.8 still resets an index in place, which pandas 3.1 deprecates.
@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
def test_dask_loads_it(out, faces):
    import dask
    import dask.dataframe as dd

    with dask.config.set(scheduler="synchronous"):
        table = dd.read_parquet(f"{out}/data/*.parquet", columns=["key", "split", "score"])
        assert len(table) == len(faces)
        assert table["score"].min().compute() == pytest.approx(0.75)


def test_supervision_reads_the_boxes_of_the_table(out, faces):
    import supervision as sv

    seen = 0
    for folder, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        dataset = sv.DetectionDataset.from_yolo(
            images_directory_path=str(out / "yolo/images" / folder),
            annotations_directory_path=str(out / "yolo/labels" / folder),
            data_yaml_path=str(out / "yolo/data.yaml"),
        )
        assert dataset.classes == ["face"]
        found = np.concatenate([detections.xyxy for _, _, detections in dataset])
        inside = [toy.WIDTH_PX, toy.HEIGHT_PX] * 2
        expected = np.clip([face.bbox for face in faces if face.split == split], 0, inside)
        order = (np.lexsort(boxes.T.round()) for boxes in (found, expected))
        assert np.abs(found[next(order)] - expected[next(order)]).max() < 0.5
        seen += len(found)
    assert seen == len(faces)


# Ray Data 2.60 sets deprecated options of its own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
@pytest.mark.slow
def test_ray_data_loads_it(out, faces):
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        rows = ray.data.read_parquet(f"{out}/data").select_columns(["key", "bbox", "score"]).take_all()
    finally:
        ray.shutdown()
    assert sorted(row["key"] for row in rows) == sorted(face.key for face in faces)
    assert sorted(list(row["bbox"]) for row in rows) == sorted(list(face.bbox) for face in faces)
