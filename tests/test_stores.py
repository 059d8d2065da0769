"""The commands with source and output in a bucket: what comes out is what the same command leaves on a disk.

crop-faces is in test_crop_stores.py.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import fsspec
import numpy as np
import onnx
import pytest
import s3fs
from onnx import numpy_helper

from dataset_tools import storage
from dataset_tools.detection import DetectorSettings, load_detector
from infer import evaluation
from tests import collection, labelled, score_toy, toy_model, train_toy
from tests.collection import ROOT, crop_faces, faces, ledger, summary
from tests.labelled import import_labels
from tests.stores import BUCKET, KEY, S3_SERVER, SECRET, STORES, point_at_s3, s3_client, s3_server
from tests.test_evaluate import data_set, ten_faces
from workflows import evaluate


def upload(folder, url):
    """Put a local folder into a bucket."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write_bytes(storage.join(url, path.relative_to(folder).as_posix()), path.read_bytes())
    return url


def evaluation_of(monkeypatch, model, data, out):
    """metrics.json of `just evaluate`, but for the time it took and the places."""
    monkeypatch.setattr(evaluation, "RESAMPLES", 50)
    with pytest.raises(SystemExit) as ended:
        evaluate.main([str(model), str(data), "--out", str(out)])
    assert ended.value.code == 0
    told = json.loads(storage.read_bytes(storage.join(out, "metrics.json")))
    for model_told in told["models"]:
        del model_told["crops_per_second"], model_told["folder"]
    return {name: told[name] for name in ("faces", "shared", "models", "differences")}


@pytest.mark.parametrize("kind", STORES)
def test_a_labelled_set_is_imported_from_bucket_to_bucket(request, tmp_path, capsys, kind):
    source = labelled.fer_folders(tmp_path / "fer")
    told = import_labels(capsys, source, "--out", tmp_path / "out", "--drop-leaks", "--json").summary
    store = request.getfixturevalue(f"{kind}_store")
    options = (upload(source, f"{store}/fer"), "--out", f"{store}/out", "--drop-leaks", "--json")
    in_store = import_labels(capsys, *options).summary
    assert in_store["faces"] == 7
    assert in_store["fingerprint"] == told["fingerprint"]
    assert import_labels(capsys, *options).summary["images_processed"] == 0


@pytest.mark.parametrize("kind", STORES)
def test_a_model_and_its_faces_are_evaluated_in_a_bucket(request, tmp_path, monkeypatch, kind):
    local = toy_model.folder(tmp_path / "m")
    told = evaluation_of(monkeypatch, local, data_set(tmp_path / "faces", ten_faces()), tmp_path / "out")
    store = request.getfixturevalue(f"{kind}_store")
    model, data = upload(local, f"{store}/m"), data_set(f"{store}/faces", ten_faces())
    assert evaluation_of(monkeypatch, model, data, f"{store}/out") == told
    assert told["models"][0]["figures"]["accuracy"]["value"] == 0.8
    assert {"metrics.json", "predictions.parquet", "report.html"} == {
        url.rsplit("/", 1)[-1] for url, _ in storage.list_files(f"{store}/out")
    }


RECIPE = 'model = "linear"\ninput_px = 16\nbatch_size = 8\nepochs = 2\nrate = 0.002\ndropout = 0.0\n'


def train(tmp_path, dataset, out):
    """`just train` in a process of its own; the weights of the model it wrote, by name."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    arguments = ["-m", "workflows.train_expressions", dataset, "--recipe", recipe, "--out", out, "--json"]
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    model = onnx.load_from_string(storage.read_bytes(storage.join(out, "model.onnx")))
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_a_model_is_trained_in_a_bucket_checkpoints_included(request, tmp_path, kind):
    train_toy.build(str(tmp_path / "set"), train=60, validation=20)
    expected = train(tmp_path, tmp_path / "set", tmp_path / "model")
    store = request.getfixturevalue(f"{kind}_store")
    train_toy.build(f"{store}/set", train=60, validation=20)
    weights = train(tmp_path, f"{store}/set", f"{store}/model")
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    written = {url.removeprefix(f"{store}/model/") for url, _ in storage.list_files(f"{store}/model")}
    assert {"metrics.json", "model.keras", "model.onnx", "model.json", "README.md", "history.csv", "run.json"} < written
    assert any(name.startswith("checkpoints/checkpoint_") for name in written)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_an_archive_in_a_bucket_is_scored_into_it(request, tmp_path, kind):
    photos, model = collection.make(tmp_path / "photos", faces=6), toy_model.folder(tmp_path / "toy")
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "tar", photos))
    expected = score_toy.loop([archive], model, tmp_path / "here", detect=load_detector(DetectorSettings()))
    store = request.getfixturevalue(f"{kind}_store")
    storage.write_bytes(f"{store}/photos.tar", archive.read_bytes())
    upload(model, f"{store}/toy")
    words = (f"{store}/photos.tar", "--model", f"{store}/toy", "--out", f"{store}/scores", "--workers", 2, "--json")
    done = score_toy.score(*words)
    told = score_toy.summary(done)
    assert (told["images"], told["scored"], told["no_face"], told["failed"], told["faces"]) == (11, 6, 3, 2, 6)
    assert told["fingerprint"] == f"{expected.fingerprint:064x}"
    assert SECRET not in done.stdout + done.stderr
    rows, here = (score_toy.predictions(out) for out in (f"{store}/scores", tmp_path / "here"))
    assert [row["key"].removeprefix(store) for row in rows] == [row["key"].removeprefix(str(tmp_path)) for row in here]
    assert [row | {"key": ""} for row in rows] == [row | {"key": ""} for row in here]
    again = score_toy.summary(score_toy.score(*words))
    assert again["fingerprint"] == told["fingerprint"]
    assert again["counters"] == told["counters"]  # of the first run: nothing was done again


# --- Secrets ----------------------------------------------------------------------------------------------------------


def test_a_signed_address_leaves_its_signature_in_nothing_that_is_shown_or_shared(s3_store, tmp_path):
    photos = collection.make(tmp_path / "photos", faces=1)
    bucket, _, folder = upload(photos, f"{s3_store}/photos").removeprefix("s3://").partition("/")
    names = {"Bucket": bucket, "Key": f"{folder}/below/portrait-000.jpg"}
    good, bad = (
        s3_client(s3_server()).generate_presigned_url("get_object", names | key)
        for key in ({}, {"Key": f"{folder}/gone.jpg"})
    )
    secrets = {value for name, (value,) in parse_qs(urlsplit(good).query).items() if name in ("Signature", "Expires")}
    secrets |= {value for name, (value,) in parse_qs(urlsplit(bad).query).items() if name == "X-Amz-Signature"}
    assert secrets
    (tmp_path / "urls.txt").write_text(f"{good}\n{bad}\n{photos}/wall-0.png\n")
    done = crop_faces(tmp_path / "urls.txt", "--out", tmp_path / "out", "--json", "--workers", 1, "--verbose")
    told = summary(done)
    assert (told["images"], told["faces"], told["failed"]) == (3, 1, 1)
    # The listing is what a run that continues reads from; it has to know the address whole.
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "listing.parquet"]
    shown = [done.stdout.encode(), done.stderr.encode(), *(path.read_bytes() for path in written)]
    rows = [str(row) for row in ledger(tmp_path / "out") + faces(tmp_path / "out").drop_columns(["image"]).to_pylist()]
    for secret in (SECRET, *secrets):
        assert not any(secret.encode() in data or quote(secret, safe="").encode() in data for data in shown)
        assert not any(secret in row or quote(secret, safe="") in row for row in rows)


# --- Rights, keys and buckets, as MinIO has them ----------------------------------------------------------------------

real_s3 = pytest.mark.skipif(S3_SERVER != "minio", reason="moto asks for no key: build MinIO by tests/real_servers.py")


def refused(capsys, *arguments):
    """The one line of an import that ends as a usage error."""
    done = import_labels(capsys, *arguments)
    assert done.code == 2, done
    assert SECRET not in done.err
    assert "\n" not in done.err
    return done.err


def test_a_missing_bucket_is_one_line(s3_store, gcs_store, tmp_path, capsys):
    upload(labelled.fer_folders(tmp_path / "fer"), f"{s3_store}/fer")
    for place in ("s3://no-such-bucket", "gs://no-such-bucket"):
        assert refused(capsys, f"{place}/photos", "--out", tmp_path / "out") == f"error: {place}/photos does not exist"
        line = refused(capsys, f"{s3_store}/fer", "--out", f"{place}/out")
        assert line.startswith(f"error: cannot write {place}/out/listing.parquet: its bucket does not exist")


@real_s3
@pytest.mark.parametrize(("key", "secret"), [("nobody", SECRET), (KEY, "another-secret")])
def test_a_wrong_key_is_one_line_with_the_next_step(s3_store, tmp_path, monkeypatch, capsys, key, secret):
    upload(labelled.fer_folders(tmp_path / "fer"), f"{s3_store}/fer")
    point_at_s3(monkeypatch, s3_server(), key, secret)
    for arguments in ((f"{s3_store}/fer", "--out", tmp_path / "out"), (tmp_path / "fer", "--out", f"{s3_store}/out")):
        line = refused(capsys, *arguments)
        assert "; check your rights there (log in: aws configure; a public bucket: FSSPEC_S3_ANON=true)" in line
        assert secret not in line


@pytest.fixture
def reading_is_public():
    """A second bucket, from which everybody may read and to which nobody may write without a key."""
    client, name = s3_client(s3_server()), "public"
    client.create_bucket(Bucket=name)
    rights = {"Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["s3:GetObject", "s3:ListBucket"]}
    places = [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
    policy = {"Version": "2012-10-17", "Statement": [rights | {"Resource": places}]}
    client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    return f"s3://{name}"


@real_s3
def test_who_may_read_but_not_write_is_told_before_any_photo_is_read(
    s3_store, reading_is_public, tmp_path, monkeypatch, capsys
):
    upload(labelled.fer_folders(tmp_path / "fer"), f"{reading_is_public}/fer")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})  # what FSSPEC_S3_ANON=true does at the start
    s3fs.S3FileSystem.clear_instance_cache()
    assert import_labels(capsys, f"{reading_is_public}/fer", "--out", tmp_path / "out", "--json").summary["faces"] == 8
    line = refused(capsys, f"{reading_is_public}/fer", "--out", f"{reading_is_public}/out")
    assert line.startswith(f"error: cannot write {reading_is_public}/out/listing.parquet: Access Denied; check your")
    assert "check your rights there" in refused(capsys, f"s3://{BUCKET}/photos", "--out", tmp_path / "other")
