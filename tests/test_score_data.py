"""`just score` on real data: the faces are those of `just crop-faces`, the figures those of `just evaluate`."""

import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dataset_tools import parquet
from schemas.labels import FER_2013
from tests import collection, score_toy, toy_model
from tests.collection import ROOT
from workflows import beam_job, evaluate, import_labels, score_archive

SHIPPED = ROOT / "models" / "compact48_fer2013"


def data(name: str) -> Path:
    place = Path(os.environ.get("FACEMILL_DATA", ROOT.parent / "shared" / "data"))
    if not (place / name).exists():
        pytest.skip(f"{name} is not in {place}: name its folder in FACEMILL_DATA")
    return place / name


def run(module, *arguments):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            module.main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_faces_of_real_photos_are_those_of_crop_faces(tmp_path):
    archives = data("photos.tar"), data("dev_detection.tar")
    model = toy_model.folder(tmp_path / "toy")
    cropped = collection.summary(
        collection.crop_faces(*archives, "--out", tmp_path / "crops", "--yolo", "off", "--json", "--workers", 2)
    )
    told = score_toy.summary(
        score_toy.score(*archives, "--model", model, "--out", tmp_path / "scores", "--json", "--workers", 2)
    )
    assert told["faces"] == cropped["faces"] == 516
    assert (told["images"], told["scored"], told["no_face"], told["failed"]) == tuple(
        cropped[name] for name in ("images", "ok", "no_face", "failed")
    )
    assert told["ignored"] == json.loads((tmp_path / "crops" / "manifest.json").read_text())["ignored"]
    names = ("key", "source_sha256", "face_index", "bbox", "landmarks", "score")
    expected = (
        collection.faces(tmp_path / "crops").select(names).sort_by([("key", "ascending"), ("face_index", "ascending")])
    )
    found = [
        {name: row[name] if name != "landmarks" else eval(row[name]) for name in names}
        for row in score_toy.predictions(tmp_path / "scores")
    ]
    assert found == expected.to_pylist()


def toy_fer_model(folder: Path) -> Path:
    """Seven classes whose scores hang on the pixels."""
    gain = np.random.default_rng(0).normal(0, 3, (3, 7))
    values = {"label_set": "fer2013", "label_names": FER_2013.names, "temperature": 1.3}
    return toy_model.folder(folder, toy_model.network(gain=gain), **values)


@pytest.mark.parametrize("shipped", [False, True])
def test_labelled_faces_get_exactly_the_probabilities_of_evaluate(tmp_path, monkeypatch, shipped):
    if shipped and not SHIPPED.is_dir():
        pytest.skip("no model ships yet")
    with tarfile.open(data("emotion_small.tar")) as tar:
        tar.extract("emotion_small/fer2013/fer2013_sample.csv", tmp_path, filter="data")
    faces = tmp_path / "faces"
    run(import_labels, tmp_path / "emotion_small" / "fer2013" / "fer2013_sample.csv", "--out", faces)
    model = SHIPPED if shipped else toy_fer_model(tmp_path / "toy")
    run(evaluate, model, faces, "--split", "test", "--out", tmp_path / "figures")
    monkeypatch.setattr(beam_job, "run", score_toy.run_here)
    images = faces / "data" / "test-*.parquet"
    run(score_archive, images, "--faces", "given", "--model", model, "--out", tmp_path / "scores", "--workers", 3)

    expected = parquet.read_part(str(tmp_path / "figures" / "predictions.parquet"))
    found = pa.Table.from_pylist(
        sorted(score_toy.predictions(tmp_path / "scores"), key=lambda row: (row["key"].split("#")[0], _row(row)))
    )
    assert found.num_rows == expected.num_rows == 175
    assert found["expression"].to_pylist() == expected["predicted"].to_pylist()
    assert len(set(found["confidence"].to_pylist())) > 100
    probabilities = np.stack([found[f"p_{name}"].to_numpy() for name in FER_2013.names], axis=1).astype(np.float32)
    assert (probabilities == np.stack(expected["probabilities"].to_numpy())).all()
    assert found["not_sure"].to_pylist() == expected["not_sure"].to_pylist()


def _row(row: dict) -> int:
    return int(row["key"].rpartition("#")[2])
