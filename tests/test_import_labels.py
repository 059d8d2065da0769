"""Whole runs of import-labels on small sets in their published form, and on FER-2013 itself where it is to be had."""

import csv
import json
import os
import resource
import signal
import subprocess
import tarfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from schemas.labels import FER_2013
from schemas.tables import facemill_metadata
from tests import collection, labelled
from tests.collection import ROOT, faces, ledger
from tests.labelled import import_labels


@pytest.fixture
def fer(tmp_path):
    return labelled.fer_folders(tmp_path / "fer")


def rows(out):
    """(file, class, split) of every face, sorted."""
    names = facemill_metadata(pq.read_schema(next(Path(out, "data").glob("*.parquet"))))["label_names"]
    found = faces(out).to_pylist()
    return sorted((row["key"].rsplit("/", 1)[-1], names[row["label"]], row["split"]) for row in found)


def test_a_labelled_set_becomes_the_same_folder_as_crops_do(fer, tmp_path, capsys):
    out = tmp_path / "out"
    told = import_labels(capsys, fer, "--out", out, "--json").summary
    assert (told["images"], told["faces"], told["failed"], told["dropped"]) == (8, 8, 0, {})
    assert told["splits"] == {"train": 4, "validation": 2, "test": 2}
    assert told["classes"]["validation"] == {**dict.fromkeys(FER_2013.names, 0), "anger": 1, "disgust": 1}
    assert (told["format"], told["label_set"]) == ("fer2013", "fer2013")
    assert told["leaks"] == {
        **{"exact_groups": 1, "exact_images": 2, "near_groups": 1, "near_images": 2},
        **{"copies": 1, "tainted": 1},
    }
    assert {path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file()} == {
        *("data", "done", "ledger", "listing.parquet", "manifest.json", "README.md", "report.html", "summary.json")
    }
    assert rows(out)[0] == ("PrivateTest_7.jpg", "happiness", "test")
    schema = pq.read_schema(next((out / "data").glob("train-*")))
    assert facemill_metadata(schema)["label_names"] == list(FER_2013.names)
    assert "crop" not in facemill_metadata(schema)["recipe"]
    keys = [row["key"] for row in ledger(out)]
    assert len(set(keys)) == len(keys) == 8


def test_hugging_face_reads_it_with_labels_and_votes(fer, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    names = [Path(name).name for name, _ in labelled.FER_FOLDERS]
    usages = ["Training" if name.startswith("T") else "PublicTest" for name in names]
    votes = [(usage, name, 1, 2, 0, 7, 0, 0, 0, 0, 0, 0) for usage, name in zip(usages, names, strict=True)]
    votes_file = labelled.votes_csv(tmp_path / "votes.csv", votes[1:])
    import_labels(capsys, fer, "--out", out, "--format", "fer2013", "--votes", votes_file, "--json")
    data = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in data.items()} == {"train": 4, "validation": 2, "test": 2}
    first = {row["key"].rsplit("/", 1)[-1]: row for row in data["train"]}
    assert data["train"].features["label"].names == list(FER_2013.names)
    assert first["Training_2.jpg"]["image"].size == (48, 48)
    assert first["Training_2.jpg"]["votes"] == [0, 0, 0, 2, 7, 0, 1]
    assert first["Training_1.jpg"]["votes"] is None


def test_leaks_are_dropped_from_training_and_the_sums_add_up(fer, tmp_path, capsys):
    out = tmp_path / "out"
    told = import_labels(capsys, fer, "--out", out, "--json", "--drop-leaks").summary
    assert told["dropped"] == {"its copy is in another split": 1}
    assert (told["images"], told["faces"], told["faces_screened"]) == (8, 7, 1)
    assert told["splits"] == {"train": 3, "validation": 2, "test": 2}
    (dropped,) = [row for row in ledger(out) if row["detail"]]
    assert dropped["key"].endswith("Training_2.jpg")
    assert (dropped["status"], dropped["faces"], dropped["detail"]) == (
        *("ok", 0, "dropped: its copy is in another split"),
    )
    assert sum(row["faces"] for row in ledger(out)) == faces(out).num_rows == 7
    again = import_labels(capsys, fer, "--out", out, "--json", "--drop-leaks").summary
    assert {**again, "images_processed": 8} == told


def test_a_run_that_stops_while_it_drops_leaks_makes_that_shard_again(fer, tmp_path, capsys, monkeypatch):
    out, options = tmp_path / "out", ("--json", "--drop-leaks")
    told = import_labels(capsys, fer, "--out", tmp_path / "undisturbed", *options).summary

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dataset_tools.importers.shard.parquet.read_faces", stop)
        with pytest.raises(KeyboardInterrupt):
            import_labels(capsys, fer, "--out", out, *options)
    again = import_labels(capsys, fer, "--out", out, *options).summary
    assert (again["fingerprint"], again["images_processed"]) == (told["fingerprint"], 8)
    assert collection.outcome(out) == collection.outcome(tmp_path / "undisturbed")


def test_a_split_that_loses_all_its_faces_leaves_no_part(tmp_path, capsys):
    labelled.write(tmp_path / "set" / "train" / "a" / "1.jpg", 1)
    labelled.write(tmp_path / "set" / "test" / "b" / "2.jpg", 1)
    told = import_labels(capsys, tmp_path / "set", "--out", tmp_path / "out", "--json", "--drop-leaks").summary
    assert told["splits"] == {"test": 1}
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["test-00000-of-00001.parquet"]


def test_shards_and_processes_change_nothing(fer, tmp_path, capsys, monkeypatch):
    whole = import_labels(capsys, fer, "--out", tmp_path / "a", "--json").summary
    monkeypatch.setattr("workflows.import_run._ALONE_IMAGES", 0)
    parts = import_labels(capsys, fer, "--out", tmp_path / "b", "--json", "--shard-size", 3, "--workers", 2).summary
    assert parts["fingerprint"] == whole["fingerprint"]
    assert collection.outcome(tmp_path / "a") == collection.outcome(tmp_path / "b")
    assert len(list((tmp_path / "b" / "done").iterdir())) == 3


def test_what_is_missing_is_made_and_the_rest_is_left(fer, tmp_path, capsys):
    out = tmp_path / "out"
    told = import_labels(capsys, fer, "--out", out, "--json", "--shard-size", 3, "--drop-leaks").summary
    kept = {path: path.stat().st_mtime_ns for path in (out / "ledger").iterdir() if "00001" not in path.name}
    (out / "done" / "00001.json").unlink()
    again = import_labels(capsys, fer, "--out", out, "--json", "--shard-size", 3, "--drop-leaks").summary
    assert (again["fingerprint"], again["images_processed"]) == (told["fingerprint"], 3)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_other_parameters_are_refused_and_overwrite_starts_anew(fer, tmp_path, capsys):
    out = tmp_path / "out"
    import_labels(capsys, fer, "--out", out)
    done = import_labels(capsys, fer, "--out", out, "--drop-leaks")
    assert (done.code, done.err) == (
        2,
        f"error: {out} holds a run with other parameters (drop_leaks: was None, now 'near'): "
        "choose another --out, or start anew with --overwrite",
    )
    assert import_labels(capsys, fer, "--out", out, "--drop-leaks", "--overwrite", "--json").summary["faces"] == 7
    refused = import_labels(capsys, fer, "--out", out, "--label-set", "nonsense", "--overwrite")
    assert (refused.code, (out / "summary.json").exists()) == (2, True)


def test_the_full_affectnet_is_cut_by_its_boxes(tmp_path, capsys):
    source, out = labelled.affectnet_full(tmp_path / "set"), tmp_path / "out"
    told = import_labels(capsys, source, "--out", out, "--json", "--size", 64, "--label-set", "affectnet-7").summary
    assert (told["images"], told["faces"], told["no_face"], told["failed"]) == (7, 2, 1, 1)
    assert told["reasons"] == {"unreadable": 1}
    assert told["dropped"] == {
        "contempt, which affectnet-7 lacks": 1,
        "none of the expressions": 1,
        "uncertain expression": 1,
    }
    assert rows(out) == [("a.jpg", "neutral", "train"), ("v.jpg", "anger", "validation")]
    face = faces(out).to_pylist()[0]
    assert (face["bbox"], face["crop_size_px"], face["crop_aligned"]) == ([12, 18, 72, 84], 64, False)
    assert (face["valence"], face["arousal"]) == (0.25, -0.5)
    assert labelled.decode(face["image"]["bytes"]).shape == (64, 64, 3)


def test_affectnet_8_keeps_contempt_and_align_uses_the_given_points(tmp_path, capsys):
    source, out = labelled.affectnet_later(tmp_path / "set"), tmp_path / "out"
    told = import_labels(capsys, source, "--out", out, "--json").summary
    assert told["classes"]["train"]["contempt"] == 1
    assert faces(out).to_pylist()[0]["crop_aligned"] is None
    full = labelled.affectnet_full(tmp_path / "full")
    import_labels(capsys, full, "--out", tmp_path / "aligned", "--align", "--json")
    assert faces(tmp_path / "aligned").to_pylist()[0]["crop_aligned"] is True


def test_raf_db_and_its_boxes(tmp_path, capsys):
    source = labelled.raf_db(tmp_path / "set")
    told = import_labels(capsys, source, "--out", tmp_path / "aligned", "--json").summary
    assert (told["splits"], told["label_set"]) == ({"train": 2, "test": 2}, "raf-db")
    assert faces(tmp_path / "aligned").to_pylist()[0]["crop_size_px"] == 102
    original = source / "basic" / "Image" / "original"
    import_labels(capsys, source, "--out", tmp_path / "original", "--images", original, "--json")
    assert {tuple(row["bbox"]) for row in faces(tmp_path / "original").to_pylist()} == {(30.5, 40, 130.5, 150)}


def test_a_class_without_counterpart_stops_the_run_before_it_starts(fer, tmp_path, capsys):
    columns = ("path", "label")
    source = labelled.write_csv(
        fer / "list.csv", columns, [("train/angry/Training_1.jpg", "anger"), ("train/happy/Training_2.jpg", "bored")]
    )
    done = import_labels(capsys, source, "--out", tmp_path / "out", "--label-set", "raf-db")
    assert (done.code, done.err) == (
        2,
        "error: raf-db has no class for bored (1 images): drop them with --drop-unmapped",
    )
    assert not (tmp_path / "out").exists()
    told = import_labels(
        capsys, source, "--out", tmp_path / "out", "--label-set", "raf-db", "--drop-unmapped", "--json"
    ).summary
    assert (told["faces"], told["dropped"]) == (1, {"bored, which raf-db lacks": 1})


def test_a_set_of_its_own_names_continues_and_splits_are_drawn(tmp_path, capsys):
    for number in range(40):
        labelled.write(tmp_path / "set" / ("calm" if number % 2 else "tense") / f"{number}.jpg", number)
    options = (tmp_path / "set", "--out", tmp_path / "out", "--json", "--split", "0.5,0.25,0.25")
    told = import_labels(capsys, *options).summary
    assert (told["label_set"], set(told["splits"])) == ("custom", {"train", "validation", "test"})
    assert set(told["classes"]["train"]) == {"calm", "tense"}
    assert import_labels(capsys, *options).summary["images_processed"] == 0


def test_detect_finds_the_face_in_whole_photos(tmp_path, capsys):
    for number, name in enumerate(("happy/1.png", "sad/2.png")):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(collection.portrait(number)).save(path)
    labelled.write(tmp_path / "set" / "sad" / "3.png", 3, side=96, colour=True)
    out = tmp_path / "out"
    told = import_labels(
        capsys,
        tmp_path / "set",
        "--out",
        out,
        "--detect",
        "--label-set",
        "raf-db",
        "--size",
        112,
        "--workers",
        1,
        "--json",
    ).summary
    assert (told["faces"], told["no_face"]) == (2, 1)
    assert rows(out) == [("1.png", "happiness", "train"), ("2.png", "sadness", "train")]
    face = faces(out).to_pylist()[0]
    assert (face["crop_aligned"], face["crop_size_px"]) == (True, 112)
    assert face["score"] > 0.9


def test_failed_images_are_tried_again_on_request(tmp_path, capsys):
    for name in ("a/1.jpg", "b/2.jpg"):
        labelled.write(tmp_path / "set" / name, 1)
    (tmp_path / "set" / "b" / "2.jpg").write_bytes(b"<html>")
    out = tmp_path / "out"
    assert import_labels(capsys, tmp_path / "set", "--out", out, "--json").summary["reasons"] == {"not_an_image": 1}
    labelled.write(tmp_path / "set" / "b" / "2.jpg", 2)
    assert import_labels(capsys, tmp_path / "set", "--out", out, "--json").summary["failed"] == 1
    told = import_labels(capsys, tmp_path / "set", "--out", out, "--json", "--retry-failed").summary
    assert (told["failed"], told["faces"]) == (0, 2)


def test_a_dry_run_writes_nothing(fer, tmp_path, capsys):
    told = import_labels(capsys, fer, "--out", tmp_path / "out", "--dry-run", "--json").summary
    assert (told["images"], told["format"], told["classes"]["test"]["sadness"]) == (8, "fer2013", 1)
    assert not (tmp_path / "out").exists()


def test_the_command_tells_counts_and_where_things_are(fer, tmp_path):
    done = labelled.run(fer, "--out", tmp_path / "out", "--drop-leaks")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == ("8 images = 7 faces (test 2, train 3, validation 2) + 1 dropped + 0 without a face + 0 failed")
    assert "dropped     1: its copy is in another split" in lines
    assert lines[-1] == f"report      {tmp_path / 'out' / 'report.html'}"
    assert done.stderr.splitlines()[0] == f"format fer2013, by what lies in {fer}"
    assert labelled.run(tmp_path / "nowhere").stderr == f"error: {tmp_path / 'nowhere'} does not exist\n"


def test_help_answers_within_a_third_of_a_second_of_cpu():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(labelled.command("--help"), capture_output=True, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


# --- FER-2013 itself --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def emotion_small(tmp_path_factory):
    place = Path(os.environ.get("FACEMILL_DATA", ROOT.parent / "shared" / "data"))
    if not (place / "emotion_small.tar").exists():
        pytest.skip(f"FER-2013 is not here: put emotion_small.tar into {place}, or name its folder in FACEMILL_DATA")
    folder = tmp_path_factory.mktemp("emotion_small")
    with tarfile.open(place / "emotion_small.tar") as tar:
        tar.extractall(folder, filter="data")
    return folder / "emotion_small"


def test_the_sample_of_the_csv_has_25_of_each_class(emotion_small, tmp_path, capsys):
    source = emotion_small / "fer2013" / "fer2013_sample.csv"
    told = import_labels(capsys, source, "--out", tmp_path / "out", "--json").summary
    assert told["faces"] == 525
    assert told["classes"] == {split: dict.fromkeys(FER_2013.names, 25) for split in ("train", "validation", "test")}


@pytest.mark.slow
def test_fer_2013_whole_has_the_published_counts_and_557_groups_across_splits(emotion_small, tmp_path):
    source, out = emotion_small / "fer2013" / "fer2013_images.tar.xz", tmp_path / "out"
    done = labelled.run(source, "--out", out, "--json", "--drop-leaks")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["images"], told["failed"]) == (35887, 0)
    assert (told["leaks"]["exact_groups"], told["leaks"]["exact_images"]) == (557, 1323)
    rows = ledger(out)
    assert Counter(row["split"] for row in rows) == {"train": 28709, "validation": 3589, "test": 3589}
    assert Counter(row["key"].split("/")[-2] for row in rows) == {
        **{"angry": 4953, "disgust": 547, "fear": 5121, "happy": 8989, "sad": 6077},
        **{"surprise": 4002, "neutral": 6198},
    }
    assert told["splits"]["test"] == 3589
    assert told["faces"] + sum(told["dropped"].values()) == 35887

    # The rows that an index of the lossless pixels names as copies, and two pairs within training that only the JPEGs
    # made equal.
    with (emotion_small / "fer2013" / "fer2013_index.csv").open(newline="") as file:
        listed = [row for row in csv.DictReader(file) if int(row["dup_group_size"]) > 1]
    assert len(listed) == 3365
    digests: dict[str, list[str]] = {}
    for row in rows:
        digests.setdefault(row["pixels_sha256"], []).append(row["key"].split("#")[1])
    ours = {name for names in digests.values() if len(names) > 1 for name in names}
    extra = ours - {row["kaggle_jpg"] for row in listed}
    assert (len(ours), len(extra), {name.split("/")[0] for name in extra}) == (3369, 4, {"train"})
    left = faces(out).select(["pixels_sha256", "split"]).to_pylist()
    in_training = {row["pixels_sha256"] for row in left if row["split"] == "train"}
    assert not in_training & {row["pixels_sha256"] for row in left if row["split"] != "train"}


@pytest.mark.slow
def test_a_run_that_is_killed_continues_to_the_same_faces(emotion_small, tmp_path):
    source = emotion_small / "fer2013" / "fer2013_images.tar.xz"
    out, options = tmp_path / "out", ("--format", "fer2013", "--limit", 12000, "--shard-size", 500, "--json")
    process = subprocess.Popen(
        labelled.command(source, "--out", out, *options),
        **{"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True},
    )
    deadline = time.monotonic() + 120
    while not list((out / "done").glob("*.json")):
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while subprocess.run(
        ["pgrep", "-g", str(process.pid)], capture_output=True
    ).stdout:  # workers end with their parent
        assert time.monotonic() < deadline
        time.sleep(0.2)
    continued = json.loads(labelled.run(source, "--out", out, *options).stdout)
    assert 0 < continued["images_processed"] < 12000
    whole = json.loads(labelled.run(source, "--out", tmp_path / "whole", *options).stdout)
    assert continued["fingerprint"] == whole["fingerprint"]
