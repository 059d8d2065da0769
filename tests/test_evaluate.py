"""`just evaluate` from the command to the page, on a model and faces of which every score is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dataset_tools import encoding, parquet, storage
from dataset_tools.metrics import softmax
from infer import evaluation, evaluation_page, shared_photos
from infer.evaluation import FIGURES, Measure, Sampled, Scored, sample
from infer.predictor import load_predictor
from infer.slices import slices_of
from infer.split_scores import open_data_set, score_split
from schemas.labels import LabelSet
from schemas.tables import FACES, faces_schema
from tests import toy, toy_model
from workflows import evaluate as command

TOY = LabelSet("toy", toy_model.NAMES)
RED, GREEN, BLUE = (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)
PURE = math.exp(toy_model.GAIN) / (math.exp(toy_model.GAIN) + 2)
"""The probability that the toy model gives to the class of a crop of one colour."""


def face(number, colour, label, split="test", **changes):
    """A face of one colour, of a photo of its own."""
    png = encoding.encode(toy_model.crop(*colour), "png") if not isinstance(colour, bytes) else colour
    values = {"image": {"bytes": png, "path": f"{number}.png"}, "label": label, "source_phash": f"{number + 1:04x}" * 4}
    one = toy.face(f"photos/{split}-{number}.jpg", split, (0, 0, 60 + number, 60), **values)
    return replace(one, **changes)


def data_set(out, faces, labels=TOY, fingerprint=""):
    with parquet.FaceWriter(str(out), 0, 1, faces_schema(labels, {})) as writer:
        for one in faces:
            writer.add(one)
    if fingerprint:
        storage.write_bytes(storage.join(out, "summary.json"), json.dumps({"fingerprint": fingerprint}).encode())
    return out


def ten_faces():
    """Eight of ten are right: one red and one blue face carry another label. Hashes differ from train's."""
    colours = [RED] * 4 + [GREEN] * 3 + [BLUE] * 3
    labels = [0, 0, 0, 1, 1, 1, 1, 2, 2, 0]
    return [face(10 + n, colour, label) for n, (colour, label) in enumerate(zip(colours, labels, strict=True))]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(evaluation, "RESAMPLES", 50)


def run(*arguments, code=0):
    with pytest.raises(SystemExit) as left:
        command.main([str(argument) for argument in arguments])
    assert left.value.code == code


def refused(capsys, *arguments):
    """The one line on stderr of a command that ends as a usage error."""
    run(*arguments, code=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def metrics_of(out):
    return json.loads((out / "metrics.json").read_text())


# --- The command ------------------------------------------------------------------------------------------------------


def test_known_scores_give_known_figures(tmp_path, capsys):
    model = toy_model.folder(tmp_path / "m", dataset_fingerprint="abc")
    data = data_set(tmp_path / "faces", ten_faces(), fingerprint="abc")
    run(model, data, "--out", tmp_path / "out")
    told = metrics_of(tmp_path / "out")
    (one,) = told["models"]
    values = {name: interval["value"] for name, interval in one["figures"].items()}
    assert one["confusion"] == [[3, 0, 1], [1, 3, 0], [0, 0, 2]]
    loss = -(8 * math.log(PURE) + 2 * math.log((1 - PURE) / 2)) / 10
    expected = {"accuracy": 0.8, "balanced_accuracy": (3 / 4 + 3 / 4 + 1) / 3, "top_3": 1.0, "log_loss": loss}
    expected |= {"macro_f1": (3 / 4 + 6 / 7 + 4 / 5) / 3, "ece": PURE - 0.8, "aurc": 0.2, "answered": 1.0}
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert one["leak_free"] is None
    assert one["trained_on_this"]
    assert told["faces"]["scored"] == told["faces"]["photos"] == 10
    stdout = capsys.readouterr().out
    assert "10 test faces = 10 scored + 0 unlabelled + 0 of classes left out + 0 not to be scored" in stdout
    assert "accuracy" in stdout
    assert "leak-free" not in stdout


def test_temperature_changes_calibration_and_no_prediction(tmp_path):
    data = data_set(tmp_path / "faces", ten_faces())
    run(toy_model.folder(tmp_path / "m", temperature=2.0), data, "--out", tmp_path / "out")
    figures = {name: cell["value"] for name, cell in metrics_of(tmp_path / "out")["models"][0]["figures"].items()}
    calm = math.exp(toy_model.GAIN / 2) / (math.exp(toy_model.GAIN / 2) + 2)
    assert figures["accuracy"] == 0.8
    assert figures["ece_before"] == pytest.approx(PURE - 0.8, abs=1e-6)
    assert figures["ece"] == pytest.approx(abs(calm - 0.8), abs=1e-6)


def test_every_face_of_the_split_is_accounted_for(tmp_path):
    faces = [*ten_faces(), face(30, RED, None), face(31, b"no picture", 0), face(32, b"", 1)]
    data = data_set(tmp_path / "faces", faces)
    run(toy_model.folder(tmp_path / "m"), data, "--out", tmp_path / "out", "--max-failed", "1", code=3)
    told = metrics_of(tmp_path / "out")["faces"]
    assert (told["looked_at"], told["scored"], told["unlabelled"]) == (13, 10, 1)
    assert told["not_scored"] == {"not_an_image": 2}
    table = parquet.read_part(str(tmp_path / "out" / "predictions.parquet"))
    rows = table.to_pylist()
    assert [row["reason"] for row in rows] == [None] * 10 + ["not_an_image"] * 2
    assert (rows[3]["label"], rows[3]["predicted"], rows[3]["not_sure"]) == ("fear", "anger", False)
    assert rows[3]["probabilities"] == pytest.approx([PURE, (1 - PURE) / 2, (1 - PURE) / 2])
    assert rows[3]["confidence"] == pytest.approx(PURE)
    assert [rows[10][name] for name in ("predicted", "confidence", "not_sure", "probabilities", "logits")] == [None] * 5
    assert (rows[10]["label"], rows[10]["key"]) == ("anger", "photos/test-31.jpg")


def test_a_face_for_which_one_model_gives_no_number_is_scored_for_none(tmp_path):
    yellow = (1.0, 1.0, 0)  # 3e38 for each of two colours is more than float32 holds
    data = data_set(tmp_path / "faces", [*ten_faces(), face(40, yellow, 0)])
    bad = toy_model.folder(tmp_path / "bad", toy_model.network(3, [[3e38, 0, 0], [3e38, 0, 0], [0, 0, 1]]))
    run(toy_model.folder(tmp_path / "good"), bad, data, "--out", tmp_path / "out")
    told = metrics_of(tmp_path / "out")
    assert told["faces"]["not_scored"] == {"no_number": 1}
    assert [sum(map(sum, model["confusion"])) for model in told["models"]] == [10, 10]


def test_several_models_stand_side_by_side_with_paired_differences(tmp_path, capsys):
    data = data_set(tmp_path / "faces", ten_faces())
    good, same = toy_model.folder(tmp_path / "one" / "m"), toy_model.folder(tmp_path / "two" / "m")
    blind = toy_model.folder(tmp_path / "blind", toy_model.network(3, np.zeros((3, 3))))
    run(good, same, "--split", "test", blind, data, "--out", tmp_path / "out", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told == metrics_of(tmp_path / "out") | {"out": str(tmp_path / "out")}
    assert [model["name"] for model in told["models"]] == ["one/m", "two/m", tmp_path.name + "/blind"]
    same_as_first, worse = (difference["figures"]["accuracy"] for difference in told["differences"])
    assert same_as_first == {"value": 0, "low": 0, "high": 0}
    assert worse["value"] == pytest.approx(0.4 - 0.8)
    assert worse["low"] < worse["value"] < worse["high"]


def test_a_limit_takes_the_first_faces_and_a_dry_run_writes_nothing(tmp_path, capsys):
    model, data, out = toy_model.folder(tmp_path / "m"), data_set(tmp_path / "faces", ten_faces()), tmp_path / "out"
    run(model, data, "--out", out, "--limit", "4", "--dry-run", "--json")
    assert json.loads(capsys.readouterr().out)["faces"] == 4
    assert not out.exists()
    run(model, data, "--out", out, "--limit", "4")
    assert metrics_of(out)["models"][0]["figures"]["accuracy"]["value"] == 0.75


def test_faces_keep_their_place_over_batches_and_parts_and_a_limit_counts_over_both(tmp_path):
    colours = [RED, GREEN, BLUE]
    for part, faces in enumerate((100, 70)):
        with parquet.FaceWriter(str(tmp_path / "faces"), part, 2, faces_schema(TOY, {})) as writer:
            for number in range(faces):
                writer.add(face(100 * part + number, colours[number % 3], None if number == 5 else number % 3))
    predictor = load_predictor(str(toy_model.folder(tmp_path / "m")))
    data = open_data_set(str(tmp_path / "faces"), "test")
    scores = score_split(data, "test", [predictor], [(0, 1, 2)], limit=169)
    assert (data.rows("test"), scores.rows, scores.unlabelled) == (170, 169, 2)
    places = [(0, row) for row in range(100) if row != 5] + [(1, row) for row in range(69) if row != 5]
    assert list(zip(scores.faces["part"].to_pylist(), scores.faces["row"].to_pylist(), strict=True)) == places
    assert scores.logits[0].argmax(1).tolist() == [row % 3 for _, row in places]


def test_everything_may_lie_in_a_store(tmp_path):
    local, data = toy_model.folder(tmp_path / "m"), data_set("memory://bucket/faces", ten_faces())
    for name in ("model.json", "model.onnx"):
        storage.write_bytes(f"memory://bucket/models/m/{name}", (local / name).read_bytes())
    run("memory://bucket/models/m", data, "--out", "memory://bucket/out")
    for name in ("metrics.json", "predictions.parquet", "report.html"):
        assert storage.exists(f"memory://bucket/out/{name}")


def test_an_evaluation_is_replaced_only_when_asked_and_other_folders_never(tmp_path, capsys):
    model, data, out = toy_model.folder(tmp_path / "m"), data_set(tmp_path / "faces", ten_faces()), tmp_path / "out"
    run(model, data, "--out", out)
    assert "replace it with --overwrite" in refused(capsys, model, data, "--out", out)
    run(model, data, "--out", out, "--overwrite")
    assert "is a model: choose another --out" in refused(capsys, model, data, "--out", model, "--overwrite")


def test_what_cannot_be_evaluated_is_told_in_one_line(tmp_path, capsys):
    model, out = toy_model.folder(tmp_path / "m"), ("--out", tmp_path / "out")
    data = data_set(tmp_path / "faces", [face(1, RED, None), face(2, RED, 0, "train")])
    assert "no face has a label in the test split" in refused(capsys, model, data, *out)
    assert "has no validation split: choose --split from train, test" in refused(
        capsys, model, data, "--split", "validation", *out
    )
    assert "has no data/*.parquet: name the folder" in refused(capsys, model, tmp_path / "nowhere", *out)
    assert "has no model.json" in refused(capsys, tmp_path, data, *out)
    assert "named twice" in refused(capsys, model, model, data, *out)
    bare = tmp_path / "bare" / "data" / "test-00000-of-00001.parquet"
    parquet.write_part(str(bare), pa.table({"image": [b""], "label": [0]}))
    assert "lacks key, source_sha256" in refused(capsys, model, tmp_path / "bare", *out)
    strange = data_set(tmp_path / "strange", [face(1, RED, 7)])
    assert "label 7 is no class of toy" in refused(capsys, model, strange, *out)


@pytest.mark.parametrize("line", ["a b c", "a b --limit 3 c", "a --limit 3 b c", "--limit 3 a b c", "a b c --limit 3"])
def test_flags_may_stand_anywhere_and_the_last_folder_is_the_data_set(line):
    args = command.parse(line.split())
    assert (args.model, args.dataset) == (["a", "b"], "c")


def test_help_is_printed_and_an_unknown_flag_or_a_lone_folder_is_refused(capsys):
    run("--help")
    assert "--trained-on" in capsys.readouterr().out
    run("a", "b", "--no-such", code=2)
    run("a", code=2)


# --- Labels -----------------------------------------------------------------------------------------------------------

OTHER = LabelSet("other", ("neutral", "contempt", "angry", "fear"))


def other_faces():
    """Labels by another numbering: blue is neutral, red anger, and one red face shows contempt."""
    rows = [(BLUE, 0), (RED, 1), (RED, 2), (GREEN, 3), (GREEN, 3)]
    return [face(number, colour, label) for number, (colour, label) in enumerate(rows)]


def test_another_label_set_is_refused_and_both_are_named(tmp_path, capsys):
    model, data = toy_model.folder(tmp_path / "m"), data_set(tmp_path / "faces", other_faces(), OTHER)
    line = refused(capsys, model, data, "--out", tmp_path / "out")
    assert "the data set has neutral, contempt, angry, fear (other) and m has anger, fear, neutral (toy)" in line
    assert "--label-map" in line


def test_a_class_without_a_counterpart_is_refused_left_out_or_mapped(tmp_path, capsys):
    model, data = toy_model.folder(tmp_path / "m"), data_set(tmp_path / "faces", other_faces(), OTHER)
    given, out = (model, data, "--label-map", "names"), tmp_path / "out"
    assert "m has no contempt (it has anger, fear, neutral): --allow-drop leaves" in refused(
        capsys, *given, "--out", out
    )
    run(*given, "--out", out, "--allow-drop")
    told = metrics_of(out)
    assert told["faces"]["dropped"] == {"contempt": 1}
    assert told["models"][0]["confusion"] == [[1, 0, 0], [0, 2, 0], [0, 0, 1]]
    assert told["models"][0]["label_map"] == {"neutral": "neutral", "contempt": None, "angry": "anger", "fear": "fear"}
    run(model, data, "--label-map", "contempt=fear", "--out", tmp_path / "mapped")
    assert metrics_of(tmp_path / "mapped")["models"][0]["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 1]]


def test_a_map_names_classes_that_exist(tmp_path, capsys):
    model, data = toy_model.folder(tmp_path / "m"), data_set(tmp_path / "faces", other_faces(), OTHER)
    out = ("--out", tmp_path / "out")
    assert "'joy' is no class of toy: it has anger, fear, neutral" in refused(
        capsys, model, data, "--label-map", "angry=joy", *out
    )
    assert "takes `names` or pairs such as" in refused(capsys, model, data, "--label-map", "angry", *out)
    far = data_set(tmp_path / "far", [face(1, RED, 0)], LabelSet("far", ("cat", "dog")))
    assert "have no class in common" in refused(capsys, model, far, "--label-map", "names", *out)


# --- Photos that a model may have seen --------------------------------------------------------------------------------


def test_shared_photos_are_told_on_top_and_the_leak_free_score_stands_beside(tmp_path, capsys):
    faces = ten_faces()
    seen = face(80, RED, 0, "train", source_sha256=faces[3].source_sha256)  # the red one that is labelled fear
    again = face(81, RED, 0, "validation", source_phash=faces[9].source_phash)  # the blue one that is labelled anger
    data, model = data_set(tmp_path / "faces", [*faces, seen, again]), toy_model.folder(tmp_path / "m")
    run(model, data, "--out", tmp_path / "out")
    told = metrics_of(tmp_path / "out")
    assert (told["shared"]["faces"], told["shared"]["left"]) == (2, 8)
    none = {"source_sha256": 0, "pixels_sha256": 0, "source_phash": 0}
    assert told["shared"]["with"]["train"] == none | {"source_sha256": 1, "faces": 1}
    assert told["shared"]["with"]["validation"] == none | {"source_phash": 1, "faces": 1}
    assert told["models"][0]["figures"]["accuracy"]["value"] == 0.8
    assert told["models"][0]["leak_free"]["accuracy"]["value"] == 1
    rows = parquet.read_part(str(tmp_path / "out" / "predictions.parquet"))["shared"].to_pylist()
    assert rows == [False] * 3 + [True] + [False] * 5 + [True]
    assert "2 of them share their photo with train or validation: leak-free" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("2 faces of 10") < page.index("<section>")
    assert "100.0 % accuracy, leak" in page


def test_the_training_data_of_a_model_may_be_another_data_set(tmp_path, capsys):
    faces = ten_faces()
    copies = [
        face(90 + n, RED, 0, split, source_sha256=faces[n].source_sha256)
        for n, split in enumerate(("train", "validation", "test"))
    ]
    elsewhere = data_set(tmp_path / "else", copies)
    data, model = data_set(tmp_path / "faces", faces), toy_model.folder(tmp_path / "m")
    run(model, data, "--out", tmp_path / "out", "--trained-on", elsewhere)
    # The third copy does not count: no model trains on a test split.
    assert metrics_of(tmp_path / "out")["shared"]["with"][str(elsewhere)]["faces"] == 2
    tests_alone = data_set(tmp_path / "tests", [face(93, RED, 0, "test")])
    for folder in (tmp_path / "no", tests_alone):
        line = refused(capsys, model, data, "--out", tmp_path / "o", "--trained-on", folder)
        assert "has no data/train-*.parquet" in line


@pytest.mark.parametrize(("split", "others"), [("test", ("train", "validation")), ("validation", ("train", "test"))])
def test_a_model_may_be_measured_on_a_split_of_what_it_was_trained_on(tmp_path, split, others):
    faces = [replace(one, split=split) for one in ten_faces()]
    faces += [face(94 + number, RED, 0, other) for number, other in enumerate(others)]
    data, model = data_set(tmp_path / "faces", faces), toy_model.folder(tmp_path / "m")
    run(model, f"{data}/", "--out", tmp_path / "out", "--split", split, "--trained-on", data)
    told = metrics_of(tmp_path / "out")["shared"]
    assert (told["faces"], told["left"]) == (0, 10)


def test_pixels_are_compared_by_their_digests_and_flat_hashes_say_nothing(tmp_path):
    flat = "0000000000000001"
    mine = [face(n, RED, 0, source_phash=flat, pixels_sha256=digest) for n, digest in enumerate(["a", "b", None])]
    seen = face(9, RED, 0, "train", source_phash=flat, pixels_sha256="b")
    none = face(8, RED, 0, "train", source_phash=flat)
    data = data_set(tmp_path / "faces", [*mine, seen, none])
    table = parquet.read_part(parquet.data_part(str(data), "test", 0, 1))
    part = parquet.data_part(str(data), "train", 0, 1)
    assert {name: found.tolist() for name, found in shared_photos.shared_with(table, [part]).items()} == {
        "source_sha256": [False] * 3,
        "pixels_sha256": [False, True, False],
        "source_phash": [False] * 3,
    }


def test_a_data_set_without_digests_of_pixels_is_read_as_well(tmp_path):
    data = data_set(tmp_path / "faces", [*ten_faces(), face(80, RED, 0, "train")])
    for split in ("test", "train"):
        part = parquet.data_part(str(data), split, 0, 1)
        parquet.write_part(part, parquet.read_part(part).drop_columns("pixels_sha256"))
    run(toy_model.folder(tmp_path / "m"), data, "--out", tmp_path / "out")
    assert metrics_of(tmp_path / "out")["shared"]["faces"] == 0


def test_a_photo_is_its_hash_and_where_that_says_nothing_its_bytes():
    rows = [("a", "0f" * 8), ("b", "0f" * 8), ("c", "00" * 8), ("c", "00" * 8), ("d", None), (None, None), (None, None)]
    table = pa.table({"source_sha256": [row[0] for row in rows], "source_phash": [row[1] for row in rows]})
    assert shared_photos.photo_of(table).tolist() == [0, 0, 1, 1, 2, 3, 4]


# --- Intervals --------------------------------------------------------------------------------------------------------


def scored(faces=400, seed=0, threshold=0.0):
    """Scores that are calibrated: each label is drawn from its face's probabilities."""
    draws = np.random.default_rng(seed)
    logits = 2 * draws.normal(size=(faces, 4))
    labels = (softmax(logits, 1.3).cumsum(1) < draws.random((faces, 1))).sum(1)
    return Scored(("a", "b", "c", "d"), labels, logits.astype(np.float32), 1.3, threshold)


def intervals(of, photos, resamples=300):
    measure = Measure(of)
    found = sample(measure, photos, seed=1, resamples=resamples).intervals()
    return dict(zip(measure.names, found, strict=True))


def test_copies_of_a_photo_do_not_narrow_the_interval():
    one = scored()
    four_times = np.repeat(np.arange(400), 4)
    once, again = intervals(one, np.arange(400)), intervals(one.of(four_times), four_times)
    for figure in FIGURES:
        assert once[figure] == pytest.approx(again[figure], abs=1e-6)


def test_the_interval_of_accuracy_is_as_wide_as_the_binomial_one():
    found = intervals(scored(), np.arange(400), 1000)["accuracy"]
    expected = 1.96 * math.sqrt(found["value"] * (1 - found["value"]) / 400)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(expected, rel=0.1)


def test_every_figure_lies_inside_its_own_interval():
    for name, found in intervals(scored(threshold=0.5), np.arange(400)).items():
        assert found["low"] < found["value"] < found["high"], name


def test_the_interval_is_that_of_the_resamples_moved_by_their_distance_from_the_figure():
    (found,) = Sampled(np.array([0.1]), np.array([[0.2], [0.3], [0.4]])).intervals()
    assert found == pytest.approx({"value": 0.1, "low": 0.1 - 0.095, "high": 0.1 + 0.095})


def test_the_figures_are_those_of_the_metrics_with_each_face_once():
    one = scored()
    found = Measure(one)(np.ones(400))
    correct = one.predicted == one.labels
    assert found[0] == correct.mean()
    assert dict(zip(FIGURES, found, strict=False))["top_2"] == pytest.approx(
        np.mean([label in row.argsort()[-2:] for label, row in zip(one.labels, one.logits, strict=True)])
    )


def test_nobody_sure_and_a_single_photo_and_no_face_are_no_error():
    found = intervals(scored(threshold=1.1), np.arange(400), 20)
    assert found["answered"]["value"] == 0
    assert found["accuracy_answered"] == {"value": None, "low": None, "high": None}
    lone = intervals(scored(5), np.zeros(5, np.int64))["accuracy"]
    assert lone["value"] is not None
    assert lone["low"] is lone["high"] is None
    assert intervals(scored(0), np.zeros(0, np.int64))["accuracy"]["value"] is None


def test_the_leak_free_figures_leave_the_leaked_faces_out():
    one, leaked = scored(), np.arange(400) < 100
    found = evaluation.evaluate([one, one], np.arange(400), leaked, [], resamples=20)
    correct = one.predicted == one.labels
    assert found["models"][0]["leak_free"]["accuracy"]["value"] == pytest.approx(correct[100:].mean(), abs=1e-6)
    assert found["differences"][0]["leak_free"]["accuracy"] == {"value": 0, "low": 0, "high": 0}


def test_slices_part_the_faces_by_what_is_known_of_them():
    rows = [
        face(n, RED, 0, bbox=(0, 0, side, 10), head_roll_deg=roll, sharpness=sharp, score=0.5)
        for n, (side, roll, sharp) in enumerate([(20, -25, 1.0), (48, 5, 2.0), (100, 12, 3.0), (500, 0, None)])
    ]
    columns = ("bbox", "head_roll_deg", "sharpness", "score")
    table = pa.table({name: pa.array([getattr(row, name) for row in rows], FACES.field(name).type) for name in columns})
    found = {(one.measure, one.name): np.flatnonzero(one.faces).tolist() for one in slices_of(table)}
    assert {name: faces for (measure, name), faces in found.items() if measure == "face size"} == {
        "under 48 px": [0],
        "48 px to 96 px": [1],
        "96 px to 192 px": [2],
        "192 px and up": [3],
    }
    assert found["head roll", "20° and up"] == [0]
    assert found["head roll", "10° to 20°"] == [2]
    assert found["sharpness", "not given"] == [3]
    assert not any(measure == "detection score" for measure, _ in found)


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_page_escapes_every_name_and_loads_nothing(tmp_path):
    names = ("<b>anger", "<b>fear", "<b>neutral")
    faces = [face(n, RED, n % 3, key=f"<script>alert({n})</script>.jpg") for n in range(6)]
    data = data_set(tmp_path / "<i>faces", faces, LabelSet("<u>set", names))
    values = {"label_names": names, "label_set": "<u>set", "architecture": "<s>net"}
    one, two = (toy_model.folder(tmp_path / name, **values) for name in ("<em>one", "two"))
    run(one, two, data, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    for tag in ("<b>anger", "<b>fear", "<b>neutral", "<script", "<i>faces", "<u>set", "<s>net", "<em>one"):
        assert tag not in page, tag
    assert "&lt;em&gt;one" in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "http" not in page.replace('http-equiv="Content', "")
    assert page.count("data:image/jpeg;base64,") == 8  # four mistakes of each of two models


def test_the_page_says_when_the_faces_are_those_of_training(tmp_path):
    data = data_set(tmp_path / "faces", [face(n, RED, 0, "train") for n in range(3)])
    run(toy_model.folder(tmp_path / "m"), data, "--split", "train", "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "These are training faces." in page
    assert "not trained on this very data set" in page
    assert "<h3>Mistakes</h3><p>None.</p>" in page


def test_the_most_confident_mistakes_come_first(tmp_path):
    shades = [(1.0, 0, 0), (0.9, 0, 0), (0.95, 0, 0), (1.0, 0, 0)]
    labels = [1, 2, 2, 0]
    data = data_set(
        tmp_path / "faces", [face(n, shade, label) for n, (shade, label) in enumerate(zip(shades, labels, strict=True))]
    )
    run(toy_model.folder(tmp_path / "m"), data, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    captions = [part.split("</li>")[0] for part in page.split("labelled ")[1:]]
    assert [caption for caption in captions if caption in toy_model.NAMES] == ["fear", "neutral", "neutral"]


def test_a_page_of_a_result_without_slices_or_plots_points_is_still_a_page(tmp_path):
    data = data_set(tmp_path / "faces", [face(1, RED, 0)])
    run(toy_model.folder(tmp_path / "m", threshold=1.0), data, "--out", tmp_path / "out")
    told = metrics_of(tmp_path / "out")
    assert told["models"][0]["figures"]["accuracy"] == {"value": 1, "low": None, "high": None}
    assert "none" in evaluation_page.render(told, [[]])
