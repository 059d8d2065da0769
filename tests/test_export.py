"""`just export`: each format does what the master does, on faces of which the outputs differ, and the card says so."""

import json
import tempfile
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest

from dataset_tools import parquet, storage
from dataset_tools.images import decode
from dataset_tools.limits import Limits
from dataset_tools.prepare import prepare
from tests import train_toy
from train import models
from train.card import with_export
from train.export import FORMATS, Agreement, ExportError, export, load_master, logits_of, save_keras
from train.some_faces import some_faces
from workflows import export_model as command

# Keras asks a TensorFlow variable for an array in the way of numpy 1 (keras/src/backend/tensorflow/core.py).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FILES = {"onnx": "model.onnx", "savedmodel": "savedmodel/saved_model.pb", "litert": "model.tflite"}


def toy(gain=1.0):
    """BatchNorm with statistics of its own, and logits that differ by `gain` or so from face to face around 0."""
    model = train_toy.tiny_model(dropout=0.3)
    (norm,) = models.batchnorms(model)
    norm.moving_mean.assign([0.1, -0.2, 0.05, 0.0])
    norm.moving_variance.assign([0.5, 0.2, 1.5, 0.1])
    pictures = np.stack([train_toy.picture(number % 3, number)[:, :, :1] for number in range(64)])
    logits = logits_of(model, pictures)
    head = model.get_layer("logits")
    scale = gain / logits.std(axis=0)
    head.set_weights([head.get_weights()[0] * scale, -logits.mean(axis=0) * scale])
    return model


def folder(out, gain=1.0, dataset=None):
    """A model folder as training leaves it, in brief."""
    with tempfile.TemporaryDirectory() as local:
        spec = save_keras(toy(gain), train_toy.SPEC, Path(local) / "model.keras")
        storage.write_bytes(f"{out}/model.keras", (Path(local) / "model.keras").read_bytes())
    storage.write_bytes(f"{out}/model.json", spec.to_json())
    storage.write_bytes(f"{out}/README.md", b"# toy\n")
    storage.write_bytes(f"{out}/metrics.json", b'{"accuracy": 0.9}\n')
    if dataset:
        storage.write_bytes(f"{out}/run.json", json.dumps({"dataset": dataset}).encode())
    return out


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return train_toy.build(str(tmp_path_factory.mktemp("export") / "set"), train=30, validation=90)


def run(capsys, *arguments, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert left.value.code == code, said.err
    return json.loads(said.out) if code == 0 else said.err.strip()


@pytest.mark.parametrize("kind", FILES)
def test_each_format_agrees_with_the_master_and_the_numbers_are_told(kind, dataset, tmp_path, capsys):
    out = folder(str(tmp_path / "m"), dataset=dataset)
    told = run(capsys, out, "--to", kind, "--json")
    assert (tmp_path / "m" / FILES[kind]).exists()
    assert (told["faces"], told["split"], told["same_best"]) == (64, "validation", True)
    assert told["largest_difference"] < 1e-5
    assert told["spread"] > 0.2
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith("# toy\n\n## Exports\n")
    assert f"| `{FORMATS[kind].file}` | {told['bytes'] / 1e6:.1f} MB | {told['largest_difference']:.1e} | 64 |" in card
    figures = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert figures["accuracy"] == 0.9
    assert figures[kind]["largest_difference"] == told["largest_difference"]
    assert not list((tmp_path / "m").rglob("*.part"))
    # And the file alone, one face at a time, as others load it.
    model, spec = load_master(out)
    faces, _ = some_faces(dataset, spec)
    network = FORMATS[kind].load(tmp_path / "m" / FORMATS[kind].file)
    one_by_one = np.concatenate([network(face[None]) for face in faces[:3]])
    np.testing.assert_allclose(one_by_one, logits_of(model, faces[:3]), atol=1e-5)


def test_an_export_that_is_there_is_replaced_only_when_asked(dataset, tmp_path, capsys):
    out = folder(str(tmp_path / "m"), dataset=dataset)
    run(capsys, out, "--to", "savedmodel", "--json")
    (tmp_path / "m" / "savedmodel" / "stale").touch()
    refused = run(capsys, out, "--to", "savedmodel", code=2)
    assert refused == f"error: {out} has savedmodel already: replace it with --overwrite"
    run(capsys, out, "--to", "savedmodel", "--overwrite", "--json")
    assert not (tmp_path / "m" / "savedmodel" / "stale").exists()
    assert (tmp_path / "m" / "README.md").read_text().count("| `savedmodel` |") == 1


def test_a_network_whose_outputs_are_all_alike_is_refused_since_comparing_says_nothing(dataset, tmp_path, capsys):
    out = folder(str(tmp_path / "m"), gain=0.0)
    said = run(capsys, out, "--to", "onnx", "--faces", dataset, code=2).splitlines()[-1]
    assert said.startswith(f"error: the probabilities of 64 validation faces of {dataset} lie at most 0.0e+00 apart, ")
    assert not (tmp_path / "m" / "model.onnx").exists()
    assert "Exports" not in (tmp_path / "m" / "README.md").read_text()


def test_a_file_that_does_something_else_is_an_error_with_the_figure(dataset, tmp_path, monkeypatch, capsys):
    onnx = FORMATS["onnx"]
    wrong = lambda path: lambda faces: onnx.load(path)(faces) + np.array([0.0, 0.0, 0.01], np.float32)  # noqa: E731
    monkeypatch.setitem(FORMATS, "onnx", type(onnx)(onnx.file, onnx.save, wrong))
    out = folder(str(tmp_path / "m"), dataset=dataset)
    said = run(capsys, out, "--to", "onnx", code=1).splitlines()[-1]
    assert said.startswith("error: model.onnx differs from model.keras by ")
    assert not (tmp_path / "m" / "model.onnx").exists()
    no_number = lambda path: lambda faces: np.full((len(faces), 3), np.nan, np.float32)  # noqa: E731
    monkeypatch.setitem(FORMATS, "onnx", type(onnx)(onnx.file, onnx.save, no_number))
    with pytest.raises(ExportError, match=r"differs from model\.keras by nan"):
        export(toy(), "onnx", tmp_path, some_faces(dataset, train_toy.SPEC)[0])


def test_a_model_and_faces_in_a_store(capsys):
    dataset = train_toy.build("memory://export/faces", train=20, validation=0)
    out = folder("memory://export/model")
    told = run(capsys, out, "--to", "onnx", "--faces", dataset, "--json")
    assert (told["faces"], told["split"]) == (20, "train")
    session = onnxruntime.InferenceSession(storage.read_bytes(f"{out}/model.onnx"))
    assert session.get_inputs()[0].shape[1:] == [16, 16, 1]
    run(capsys, out, "--to", "savedmodel", "--faces", dataset, "--json")
    assert storage.exists(f"{out}/savedmodel/variables/variables.index")


def test_a_dry_run_writes_nothing(dataset, tmp_path, capsys):
    out = folder(str(tmp_path / "m"), dataset=dataset)
    assert run(capsys, out, "--to", "litert", "--dry-run", "--json")["file"] == "model.tflite"
    assert not (tmp_path / "m" / "model.tflite").exists()


def test_what_is_missing_is_told_in_one_line(dataset, tmp_path, capsys):
    where = tmp_path / "nowhere"
    assert "just train" in run(capsys, where, "--to", "onnx", code=2)
    out = folder(str(tmp_path / "m"))
    step = "name a face data set with --faces"
    assert run(capsys, out, "--to", "onnx", code=2).endswith(f"is not named in its folder: {step}")
    storage.write_bytes(f"{out}/run.json", json.dumps({"dataset": str(where)}).encode())
    assert run(capsys, out, "--to", "onnx", code=2).endswith(f"is not at {where} any more: {step}")
    assert "it has no face in data/*.parquet" in run(capsys, out, "--to", "onnx", "--faces", where, code=2)
    storage.write_bytes(f"{out}/model.keras", b"no archive")
    assert "model.keras cannot be loaded: " in run(capsys, out, "--to", "onnx", "--faces", dataset, code=2)


def test_a_model_with_code_in_it_is_not_run(dataset, tmp_path, capsys):
    out = folder(str(tmp_path / "m"))
    unsafe = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Lambda(lambda x: x[:, 0, 0, :])])
    unsafe.save(tmp_path / "m" / "model.keras")
    assert "model.keras cannot be loaded: " in run(capsys, out, "--to", "onnx", "--faces", dataset, code=2)


def test_faces_are_spread_over_the_split_and_need_no_label(tmp_path):
    out = str(tmp_path / "set")
    rows = [train_toy.row("test", number, None) for number in range(150)]
    rows[0] = train_toy.row("test", 0, None, image={"bytes": b"no picture", "path": "x"})
    for part in range(3):
        train_toy.write(out, "test", part, 3, rows[50 * part : 50 * part + 50])
    faces, split = some_faces(out, train_toy.SPEC, 12)
    assert (len(faces), split) == (11, "test")
    images = parquet.read_part(parquet.data_part(out, "test", 2, 3))["image"].to_pylist()
    last = prepare(decode(images[49]["bytes"], Limits()).pixels, train_toy.SPEC)
    assert np.array_equal(faces[-1], last)


def test_the_card_keeps_one_row_for_each_file_in_its_section():
    card = "# Model\n\n| a | b | c | d | e |\n|---|---|---|---|---|\n| 1 | 2 | 3 | 4 | 5 |\n"
    first = with_export(card, "model.onnx", Agreement(64, 3e-7, True, 0.98), 5_000_000)
    assert first.startswith(card + "\n## Exports\n\nEach was held against")
    both = with_export(first + "\n## More\n\ntext\n", "model.tflite", Agreement(9, 2e-6, True, 0.004), 4_600_000)
    again = with_export(both, "model.onnx", Agreement(32, 4e-7, True, 0.98), 5_000_000)
    assert again.splitlines()[-6:] == [
        "| `model.onnx` | 5.0 MB | 4.0e-07 | 32 | 0.98 |",
        "| `model.tflite` | 4.6 MB | 2.0e-06 | 9 | 0.00: too little to tell |",
        "",
        "## More",
        "",
        "text",
    ]
    assert again.startswith(card)


def test_help_names_the_formats(capsys):
    assert tuple(FORMATS) == command.FORMATS
    with pytest.raises(SystemExit) as left:
        command.main(["--help"])
    assert left.value.code == 0
    assert "{onnx,savedmodel,litert}" in capsys.readouterr().out
