"""The model that ships: its files belong together, do the same, and reach what the card says."""

import hashlib
import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dataset_tools.crop import CropRecipe, crop_face
from dataset_tools.detection import DetectorSettings, load_detector
from dataset_tools.images import decode
from dataset_tools.limits import Limits
from infer.predictor import load_predictor
from schemas.labels import FER_2013
from schemas.model import ModelSpec

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "compact48_fer2013"
CHECKED = 350


@pytest.fixture(scope="module")
def spec():
    return ModelSpec.from_json((MODEL / "model.json").read_bytes())


def test_the_master_is_the_one_that_model_json_names(spec):
    master = (MODEL / "model.keras").read_bytes()
    assert hashlib.sha256(master).hexdigest() == spec.fingerprint
    assert len(master) + (MODEL / "model.onnx").stat().st_size <= 12_000_000


def test_it_names_no_folder_of_the_machine_it_was_trained_on():
    for name in ("README.md", "model.json", "metrics.json", "history.csv"):
        assert not re.search(r"(?<![\w.:/])/\w+/\w", (MODEL / name).read_text()), name


def test_a_photo_cut_as_it_says_gives_the_same_by_both_files(spec):
    keras = pytest.importorskip("keras")
    data = pytest.importorskip("skimage.data")
    photo = data.astronaut()
    (face,) = load_detector(DetectorSettings())(photo)
    crop, aligned = crop_face(photo, face, CropRecipe(**spec.crop))
    assert (crop.shape, aligned) == ((48, 48, 3), False)
    crops = [crop, crop[::-1], 255 - crop, np.roll(crop, 16, axis=1), crop // 4, np.roll(crop, 12, axis=0)]
    onnx, master = (load_predictor(str(MODEL), runtime).predict(crops) for runtime in ("onnx", "keras"))
    assert keras.config.floatx() == "float32"
    assert np.ptp(onnx.probabilities, axis=0).max() > 0.2
    assert onnx.probabilities == pytest.approx(master.probabilities, abs=1e-4)
    assert onnx.top(1)[0][0][0] == "happiness"


def test_it_is_right_for_as_many_faces_of_the_private_test_as_the_card_says():
    place = Path(os.environ.get("FACEMILL_DATA", ROOT.parent / "shared" / "data")) / "emotion_small.tar"
    if not place.exists():
        pytest.skip(
            f"FER-2013 is not here: put emotion_small.tar into {place.parent}, or name its folder in FACEMILL_DATA"
        )
    faces, labels = _private_test(place)
    found = load_predictor(str(MODEL)).predict(faces).probabilities.argmax(1)
    said = re.search(rf"(\d+) of\s+the {CHECKED} faces", (MODEL / "README.md").read_text())
    assert (found == labels).sum() == int(said[1])


def _private_test(place):
    """The faces of the private test whose files have the lowest numbers, with their labels."""
    found = {}
    with tarfile.open(place) as outer:
        inner = outer.extractfile("emotion_small/fer2013/fer2013_images.tar.xz").read()
    with tarfile.open(fileobj=io.BytesIO(inner), mode="r:xz") as archive:
        for member in archive:
            if named := re.search(r"(\w+)/PrivateTest_(\d+)", member.name):
                face = decode(archive.extractfile(member).read(), Limits()).pixels
                found[int(named[2])] = (face, FER_2013.id_of(named[1]))
    faces, labels = zip(*(found[number] for number in sorted(found)[:CHECKED]), strict=True)
    return faces, np.array(labels)
