"""What training leaves in the model folder: figures, plots and table of one mind, and the same answers in serving."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from dataset_tools import metrics, parquet, storage
from dataset_tools.images import decode
from dataset_tools.limits import Limits
from dataset_tools.metrics import softmax
from infer.predictor import load_predictor
from schemas.tables import PREDICTIONS
from tests import train_toy
from train import job, loop, plots
from train.data import Fold, describe, load, read_rows
from train.recipes_io import About, Recipe
from workflows import model_folder

# Keras asks a TensorFlow variable for an array in the way of numpy 1 (keras/src/backend/tensorflow/core.py).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RECIPE = Recipe(model="linear", input_px=16, batch_size=16, epochs=6, rate=0.01, dropout=0.0)


def trained(dataset, out, fold=None):
    """Train in this process and write the folder; returns metrics.json."""
    data = describe(dataset)
    task = job.Job(dataset, RECIPE, job.make_spec(data, RECIPE), fold)
    model = job.make_model(task)
    rows = job.split_rows(task, "train")
    feed = job.training_feed(task, rows)
    state = loop.train(
        RECIPE, model, feed, job.validation_feed(task, job.split_rows(task, "validation")), loop.Worker()
    )
    counts = dict(zip(data.label_names, map(int, rows.counts()), strict=True))
    return model_folder.write_model_folder(out, task, About("Toy"), model, state, counts, "just train DATASET")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Validation has a face that cannot be decoded, and one whose photo is in training too."""
    out = train_toy.build(str(tmp_path_factory.mktemp("data") / "set"), validation=40)
    broken = train_toy.row("validation", 100, 1, image={"bytes": b"no picture", "path": "x.png"})
    twin = train_toy.row("validation", 101, 2, source_sha256=train_toy.row("train", 7, 1).source_sha256)
    train_toy.write(out, "validation", 2, 3, [broken, twin])
    return out


@pytest.fixture(scope="module")
def model(dataset, tmp_path_factory):
    """(folder, metrics.json)."""
    out = str(tmp_path_factory.mktemp("models") / "toy")
    return out, trained(dataset, out)


def table_of(out):
    return parquet.read_part(storage.join(out, "predictions_validation.parquet"))


def test_the_folder_is_complete(model):
    out, figures = model
    files = {url.removeprefix(f"{out}/") for url, _ in storage.list_files(out)}
    assert files == {
        *("README.md", "history.csv", "metrics.json", "model.json", "model.keras", "model.onnx"),
        *("plots/confusion_matrix.svg", "plots/learning_curves.svg", "plots/reliability.svg"),
        "predictions_validation.parquet",
    }
    assert json.loads(storage.read_bytes(f"{out}/metrics.json")) == figures


def test_every_validation_face_has_a_row_and_the_figures_are_those_of_the_rows(model):
    out, figures = model
    table = table_of(out)
    assert table.schema.equals(PREDICTIONS)
    rows = table.to_pylist()
    assert [row["key"] for row in rows[:40]] == [f"validation-{number}" for number in range(40)]
    assert [row["reason"] for row in rows] == [None] * 40 + ["not_an_image", None]
    assert [row["shared"] for row in rows] == [False] * 41 + [True]
    assert {row["model"] for row in rows} == {"toy"}
    assert [rows[40][name] for name in ("predicted", "confidence", "not_sure", "probabilities", "logits")] == [None] * 5
    scored = [row for row in rows if row["reason"] is None]
    assert figures["faces"] == len(scored) == 41
    assert figures["accuracy"] == np.mean([row["label"] == row["predicted"] for row in scored]) > 0.9
    names = json.loads(table.schema.metadata[b"facemill"])["models"][0]["label_names"]
    given = [row["probabilities"][names.index(row["label"])] for row in scored]
    assert figures["log_loss"] == pytest.approx(-np.mean(np.log(given)), abs=1e-6)


def test_a_face_that_is_more_often_wrong_than_right_is_not_sure(model):
    out, _ = model
    assert load_predictor(out).spec.threshold == 0.5
    rows = [row for row in table_of(out).to_pylist() if row["reason"] is None]
    assert [row["not_sure"] for row in rows] == [row["confidence"] < 0.5 for row in rows]


@pytest.mark.parametrize("runtime", ["keras", "onnx"])
def test_serving_gives_what_training_saw(model, dataset, runtime):
    """From the crops in the data set, by the predictor's own way, to the probabilities that training computed."""
    out, _ = model
    predictor = load_predictor(out, runtime)
    rows = read_rows(describe(dataset), "validation")
    crops = []
    for number, part in enumerate(rows.parts):
        images = parquet.read_part(part)["image"].to_pylist()
        crops += [images[row]["bytes"] for row in rows.row[rows.part == number]]
    crops = [decode(data, Limits()) for data in crops]
    found = predictor.predict([crop.pixels for crop in crops if hasattr(crop, "pixels")])
    seen = [row["probabilities"] for row in table_of(out).to_pylist() if row["reason"] is None]
    np.testing.assert_allclose(found.probabilities, seen, atol=1e-5)
    assert np.ptp(found.probabilities, axis=0).min() > 0.5  # outputs that are all alike would agree with anything
    pixels, _ = load(rows, predictor.spec)
    np.testing.assert_allclose(softmax(predictor.network(pixels), predictor.spec.temperature), seen, atol=1e-5)


def test_the_card_shows_the_plots_and_what_onnx_was_held_against(model):
    out, figures = model
    card = storage.read_bytes(f"{out}/README.md").decode()
    for name in ("confusion_matrix", "reliability", "learning_curves"):
        assert f"(plots/{name}.svg)" in card
    assert f"| `model.onnx` | 0.0 MB | {figures['onnx']['largest_difference']:.1e} | 41 | 1.00 |" in card
    assert figures["onnx"]["same_best"]


def test_plots_are_svg_files_without_anything_from_elsewhere(model):
    out, _ = model
    for url, _ in storage.list_files(f"{out}/plots"):
        text = storage.read_bytes(url).decode()
        ElementTree.fromstring(text)
        assert text.count("http") == 1  # the name of the format
        assert "nan" not in text


def test_a_fold_says_what_it_holds_out_and_shares_no_photo(dataset, tmp_path):
    out = str(tmp_path / "fold-0")
    trained(dataset, out, Fold(0, 3))
    held_out = read_rows(describe(dataset), "validation", Fold(0, 3))
    rows = table_of(out).to_pylist()
    assert len(rows) == len(held_out) > 10
    assert not any(row["shared"] for row in rows)
    assert {row["key"].split("-")[0] for row in rows} == {"train", "validation"}


def test_a_model_folder_in_a_store_is_written_and_cleared(dataset):
    out = "memory://models/toy"
    trained(dataset, out)
    assert load_predictor(out).spec.label_names == train_toy.LABELS.names
    storage.write_bytes(f"{out}/savedmodel/saved_model.pb", b"")
    storage.write_bytes(f"{out}/model.tflite", b"")
    model_folder.clear(out)
    assert list(storage.list_files(out)) == []


# --- plots


def history(*rows):
    names = ("stage", "epoch", "loss", "val_loss", "val_accuracy", "val_macro_f1")
    return [dict(zip(names, row, strict=True)) for row in rows]


def texts(svg):
    return [one.text for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("}text")]


def test_learning_curves_show_both_stages_and_the_epoch_that_was_kept():
    svg = plots.learning_curves(
        history(("head", 1, 2.0, 1.9, 0.2, 0.1), ("main", 1, 1.5, 1.4, 0.4, 0.3), ("main", 2, 1.0, 1.6, 0.3, 0.2)), 1
    )
    assert texts(svg)[1].startswith("The dot is epoch 2, whose weights were kept.")
    assert texts(svg).count("main stage") == 2
    lines = [one.get("points") for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("}polyline")]
    points = [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]
    assert len(points) == 4
    assert [x for x, _ in points[0]] == [34.0, 152.0, 270.0]
    assert points[0][0][1] < points[0][1][1] < points[0][2][1]  # the loss falls
    dots = [one for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("}circle")]
    assert (float(dots[1].get("cx")), float(dots[1].get("cy"))) == points[1][1]


def test_one_epoch_and_a_figure_that_is_no_number_make_a_plot_too():
    svg = plots.learning_curves(history(("main", 1, 2.0, float("nan"), 0.2, float("nan"))), 0)
    assert "nan" not in svg
    assert len(texts(svg)) > 8


def test_a_confusion_matrix_has_shares_of_its_rows_and_escapes_names():
    svg = plots.confusion([[3, 1], [0, 0]], ("a<b", "right"))
    assert texts(svg)[2:] == ["a<b", "right", "a<b", "75%", "3", "25%", "1", "right"]
    assert 'fill-opacity="0.750"' in svg


def test_the_reliability_plot_tells_its_ece():
    svg = plots.reliability(metrics.reliability([0.95, 0.95, 0.55, 0.55], [1, 1, 1, 0]))
    assert texts(svg)[0] == "Reliability after temperature, ECE 0.050"
