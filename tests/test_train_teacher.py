"""A model as the teacher of another: its chances in the targets, and the models that cannot be one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dataset_tools.metrics import softmax
from tests import train_toy
from train.data import describe, load
from train.recipes_io import Recipe

keras = pytest.importorskip("keras")
import tensorflow as tf  # noqa: E402

from train import job, loop, models  # noqa: E402
from workflows import train_expressions  # noqa: E402

# Keras asks a TensorFlow variable for an array in the way of numpy 1 (keras/src/backend/tensorflow/core.py).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RECIPE = Recipe(model="linear", input_px=16, batch_size=16, epochs=1, rate=0.01, dropout=0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return train_toy.build(str(tmp_path_factory.mktemp("data") / "set"))


def saved(folder, **changes):
    """A model folder's two files that a teacher is made of."""
    spec = replace(train_toy.SPEC, architecture="linear", **changes)
    folder.mkdir()
    keras.utils.set_random_seed(3)
    models.build("linear", spec).save(folder / "model.keras")
    (folder / "model.json").write_bytes(spec.to_json())
    return str(folder)


def task(dataset, teacher, **changes):
    recipe = replace(RECIPE, teacher=teacher, **changes)
    return job.Job(dataset, recipe, job.make_spec(describe(dataset), recipe))


@pytest.mark.parametrize("part", [0.25, 1.0])
def test_the_teachers_chances_are_that_part_of_a_target(dataset, tmp_path, part):
    own = task(dataset, saved(tmp_path / "teacher"), teacher_part=part)
    model, teacher = job.make_model(own), job.make_teacher(own)
    random = np.random.default_rng(0)
    faces = random.integers(0, 256, (16, 16, 16, 1), np.uint8)
    targets = np.eye(3, dtype=np.float32)[random.integers(0, 3, 16)]
    weights = random.uniform(0, 1, 16).astype(np.float32)
    taught = part * softmax(teacher(faces).numpy().astype(np.float64)) + (1 - part) * targets
    expected = -(taught * np.log(softmax(model(faces).numpy().astype(np.float64)))).sum(1) @ weights

    optimizer = loop.make_optimizer(own.recipe, own.recipe.rate)
    optimizer.build(model.trainable_variables)
    before = teacher.get_weights()
    step = loop._make_step(own.recipe, model, optimizer, [], lambda vector: vector, teacher)
    loss, _ = step(*map(tf.constant, (faces, targets, weights, np.float32(0.01))))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))


def test_the_teacher_is_the_network_inside_a_mirrored_model(dataset, tmp_path):
    folder = saved(tmp_path / "teacher")
    network = keras.models.load_model(f"{folder}/model.keras", compile=False)
    models.mirrored(network).save(f"{folder}/model.keras")
    faces = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
    np.testing.assert_array_equal(job.make_teacher(task(dataset, folder))(faces), network(faces))


def test_the_teacher_answers_in_the_precision_of_the_run(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "has_bfloat16", lambda: True)
    own = task(dataset, saved(tmp_path / "teacher"), precision="mixed")
    faces = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), np.uint8)
    network = keras.models.load_model(f"{own.recipe.teacher}/model.keras", compile=False)
    teacher = job.make_teacher(own)
    assert {layer.compute_dtype for layer in teacher.layers if layer.weights} == {"bfloat16"}
    assert {one.dtype for one in teacher.weights} == {"float32"}
    np.testing.assert_allclose(softmax(np.asarray(teacher(faces), float)), softmax(network(faces).numpy()), atol=0.02)


def test_a_worker_brings_the_teacher_of_its_job(dataset, tmp_path):
    """At a rate of next to nothing the weights stay, so the epoch's loss can be computed here."""
    own = task(dataset, saved(tmp_path / "teacher"), teacher_part=1.0, rate=1e-9)
    state = job.run_worker(own, loop.Worker())
    rows = job.split_rows(own, "train")
    faces, _ = load(rows, own.spec)
    taught = softmax(job.make_teacher(own)(faces).numpy().astype(np.float64))
    losses = -(taught * np.log(softmax(job.make_model(own)(faces).numpy().astype(np.float64)))).sum(1)
    assert state.history[0]["loss"] == pytest.approx(losses.mean(), rel=1e-4)


def test_no_teacher_is_no_teacher(dataset):
    assert job.make_teacher(task(dataset, "")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_px": 24}, "has input_px 24, this run 16: they must be equal"),
        ({"colour": "rgb"}, "has colour rgb, this run grey: they must be equal"),
        ({"label_set": "toy-2", "label_names": ("left", "right")}, "has label_names ('left', 'right'), this run"),
    ],
)
def test_a_model_of_other_faces_or_classes_is_refused_before_ray_starts(dataset, tmp_path, capsys, changes, message):
    folder = saved(tmp_path / "teacher", **changes)
    told = refused([dataset, "--teacher", folder, "--out", str(tmp_path / "out")], capsys)
    assert message in told
    assert "\n" not in told
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_is_refused(dataset, tmp_path, capsys):
    told = refused([dataset, "--teacher", str(tmp_path / "none"), "--out", str(tmp_path / "out")], capsys)
    missing = f"{tmp_path}/none/model.json"
    assert told.endswith(f"teacher: cannot read {missing}: it does not exist: name the folder that just train wrote")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "model.json").write_text(json.dumps([]))
    assert f"teacher: {tmp_path}/none: " in refused(
        [dataset, "--teacher", str(tmp_path / "none"), "--out", str(tmp_path / "out")], capsys
    )


def test_a_damaged_model_is_refused(dataset, tmp_path, capsys):
    folder = saved(tmp_path / "teacher")
    (tmp_path / "teacher" / "model.keras").write_bytes(b"no archive")
    told = refused([dataset, "--teacher", folder, "--out", str(tmp_path / "out")], capsys)
    assert f"teacher: {folder}/model.keras cannot be loaded: " in told
    assert "\n" not in told


def refused(arguments, capsys):
    """The one line of a run that ends with exit code 2."""
    settings = [f"--set={name}={getattr(RECIPE, name)}" for name in ("model", "input_px", "batch_size", "epochs")]
    with pytest.raises(SystemExit) as ended:
        train_expressions.main([*arguments, *settings, "--set=soft_labels=0"])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip()
