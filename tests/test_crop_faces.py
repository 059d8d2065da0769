"""Whole runs of the command with real processes, as a user types it."""

import json

import pytest
from distributed import LocalCluster

from dataset_tools.encoding import encode
from tests import collection
from tests.collection import crop_faces, faces, ledger, summary
from workflows import dask_engine
from workflows.crop_faces import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return collection.make(tmp_path_factory.mktemp("source") / "photos")


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """One finished run: (OUT, its summary). Tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("run") / "out"
    options = ("--split", "0.5,0.25,0.25", "--yolo", "pose", "--workers", 2, "--shard-size", 3)
    return out, summary(crop_faces(photos, "--out", out, "--json", *options))


def test_the_counts_add_up(run):
    out, told = run
    assert (told["images"], told["ok"], told["no_face"], told["failed"]) == (14, 9, 3, 2)
    assert told["faces"] == 9
    assert told["reasons"] == {"not_an_image": 1, "truncated": 1}
    rows = ledger(out)
    assert len({row["key"] for row in rows}) == len(rows) == 14
    assert sum(row["faces"] for row in rows) == faces(out).num_rows == 9
    assert json.loads((out / "manifest.json").read_text())["ignored"] == {".txt": 1, "Thumbs.db": 1}


def test_a_face_is_where_it_is_in_the_picture(run, photos):
    out, _ = run
    row = next(row for row in faces(out).to_pylist() if row["key"] == str(photos / "below" / "portrait-000.jpg"))
    x1, y1, x2, y2 = row["bbox"]
    # The astronaut's face lies at 182..265 × 64..171; this picture starts at (60, 0) and is scaled by 256/260.
    assert (x1, y1, x2, y2) == pytest.approx(((182 - 60) * 0.985, 63, (265 - 60) * 0.985, 168), abs=6)
    assert row["score"] > 0.99
    assert row["image"]["bytes"][:2] == b"\xff\xd8"


def test_the_parts_of_a_run_are_all_there(run):
    out, _ = run
    names = {path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file()}
    assert names == {
        *("data", "done", "ledger", "yolo", "listing.parquet", "manifest.json"),
        *("README.md", "report.html", "summary.json"),
    }
    assert len(list((out / "yolo" / "images").rglob("*.jpg"))) == 12
    assert len(list((out / "yolo" / "labels").rglob("*.txt"))) == 12
    assert sum(len(path.read_text().split()) == 20 for path in (out / "yolo" / "labels").rglob("*.txt")) == 9


def test_workers_shards_and_order_change_nothing(run, photos, tmp_path):
    out, told = run
    options = ("--split", "0.5,0.25,0.25", "--yolo", "pose", "--workers", 1, "--shard-size", 100)
    again = summary(crop_faces(photos, "--out", tmp_path / "out", "--json", *options))
    assert again["fingerprint"] == told["fingerprint"]
    assert collection.outcome(tmp_path / "out") == collection.outcome(out)


def test_the_same_command_again_has_nothing_to_do(run, photos):
    out, told = run
    before = {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    options = ("--split", "0.5,0.25,0.25", "--yolo", "pose", "--json")
    again = summary(crop_faces(photos, "--out", out, *options))
    assert {**again, "images_processed": 14} == told
    assert again["images_processed"] == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()} == before


def test_other_parameters_are_refused(run, photos):
    out, _ = run
    done = crop_faces(photos, "--out", out, "--split", "0.5,0.25,0.25", "--yolo", "pose", "--margin", "0.3")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {out} holds a run with other parameters (recipe.crop.margin: was 0.2, now 0.3): "
        "choose another --out, or start anew with --overwrite\n"
    )


def test_only_what_failed_is_processed_again(photos, tmp_path):
    source = collection.make(tmp_path / "photos", faces=3)
    out = tmp_path / "out"
    first = summary(crop_faces(source, "--out", out, "--json", "--workers", 1))
    assert first["failed"] == 2
    before = {row["key"]: row for row in ledger(out)}
    (source / "cut.jpg").write_bytes(encode(collection.portrait(50), "jpeg", 95))
    (source / "page.jpg").write_bytes(encode(collection.portrait(51), "jpeg", 95))

    again = summary(crop_faces(source, "--out", out, "--json", "--workers", 1, "--retry-failed=truncated"))
    assert (again["images"], again["faces"], again["reasons"]) == (8, 4, {"not_an_image": 1})
    assert again["images_processed"] == 1
    after = {row["key"]: row for row in ledger(out)}
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {str(source / "cut.jpg")}

    last = summary(crop_faces(source, "--out", out, "--json", "--workers", 1, "--retry-failed"))
    assert (last["faces"], last["failed"]) == (5, 0)
    fresh = summary(crop_faces(source, "--out", tmp_path / "fresh", "--json", "--workers", 1))
    assert fresh["fingerprint"] == last["fingerprint"]
    assert faces(out).num_rows == 5


def test_overwriting_starts_anew_and_spares_other_files(photos, tmp_path):
    source = collection.make(tmp_path / "photos", faces=1)
    out = tmp_path / "out"
    summary(crop_faces(source, "--out", out, "--json", "--workers", 1))
    (out / "thesis.tex").write_text("mine")
    told = summary(crop_faces(source, "--out", out, "--json", "--workers", 1, "--overwrite", "--limit", 2))
    assert told["images"] == 2
    assert len(ledger(out)) == 2
    assert (out / "thesis.tex").read_text() == "mine"


def test_a_cluster_that_runs_already_gives_the_same(run, photos, tmp_path):
    _, told = run
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        options = ("--split", "0.5,0.25,0.25", "--yolo", "pose", "--scheduler", cluster.scheduler_address)
        again = summary(crop_faces(photos, "--out", tmp_path / "out", "--json", *options))
        assert cluster.scheduler_info["workers"]  # the user's cluster is left running
    assert again["fingerprint"] == told["fingerprint"]


def test_a_dry_run_tells_and_writes_nothing(photos, tmp_path):
    told = summary(crop_faces(photos, "--out", tmp_path / "out", "--dry-run", "--json", "--workers", 4))
    assert (told["images"], told["sampled"], told["faces"], told["workers"]) == (14, 14, 9, 4)
    assert told["bytes_written"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("bound", "code"), [("2", 0), ("1", 3), ("10%", 3)])
def test_more_failures_than_allowed_exit_with_3(run, photos, bound, code):
    out, _ = run
    with pytest.raises(SystemExit) as ended:
        main([str(photos), "--out", str(out), "--split", "0.5,0.25,0.25", "--yolo", "pose", "--max-failed", bound])
    assert ended.value.code == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("/nowhere/photos",), "error: /nowhere/photos does not exist\n"),
        (("{photos}", "--out", "{photos}/faces"), "lies inside SOURCE {photos}: choose an --out beside it\n"),
        (("{photos}", "--out", "{tmp}/x", "--split", "1,1,1"), "error: --split takes three fractions that add up to 1"),
        (("{photos}", "--out", "{tmp}/x", "--retry-failed"), "error: --retry-failed: there is no run in {tmp}/x to be"),
        (("{photos}", "--out", "{tmp}/x", "--label-set", "fer"), "error: unknown label set 'fer': choose affectnet-8"),
        (
            ("{photos}", "--out", "{tmp}/x", "--detector-model", "m"),
            "error: --detector-model goes with --detector yunet",
        ),
        (("{photos}", "--out", "{tmp}/x", "--min-face", "5"), "error: min_face_px is 5"),
        (("{photos}", "--out", "{tmp}/x", "--scheduler", "tcp://127.0.0.1:9"), "error: no Dask scheduler answers at"),
        (("{photos}", "--out", "{tmp}"), "is not empty and holds no run of facemill: choose another --out\n"),
    ],
)
def test_a_users_error_is_one_line(photos, tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.setattr(dask_engine, "_CONNECT_S", 1)
    (tmp_path / "mine").write_text("")
    names = {"photos": photos, "tmp": tmp_path}
    with pytest.raises(SystemExit) as ended:
        main([argument.format(**names) for argument in arguments])
    assert ended.value.code == (1 if "scheduler" in message else 2)
    told = capfd.readouterr().err
    last = told.splitlines()[-1] + "\n"
    assert message.format(**names) in last
    assert last.startswith("error: ")
    assert "Traceback" not in told
