"""Two real Ray workers on this machine: the same weights on both, as one process would have them, whoever is killed.

One undisturbed run stands for all comparisons: class weights, augmentation and averaging on, shares of 203 and 202
faces, a short last batch. A second one, of a network with BatchNorm and dropout, stands for what no single process can
repeat, since batch statistics are each worker's own: there it is both workers alike, a death without a trace, and
moving statistics that are the mean of the workers'.
"""

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests import train_toy

# Third parties: keras on numpy 2 (see test_train_loop), and Ray's own deprecated calls and unclosed sockets and files.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parent.parent
RECIPE = {
    "model": "linear",
    "input_px": 16,
    "batch_size": 8,
    "epochs": 4,
    "rate": 0.002,
    "dropout": 0.0,
    "balance": "weights",
    "ema": 0.9,
    "label_smoothing": 0.1,
    "augment": {"mirror": 0.1, "rotate_deg": 8.0, "contrast": 0.2, "erase": 0.2, "mixup": 0.1},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return train_toy.build(str(tmp_path_factory.mktemp("ray") / "set"), train=405, validation=51)


@pytest.fixture(scope="module")
def job(dataset):
    from train.data import describe
    from train.job import Job, make_spec
    from train.recipes_io import Recipe

    recipe = Recipe.from_dict(RECIPE)
    return Job(dataset, recipe, make_spec(describe(dataset), recipe))


@pytest.fixture(scope="module")
def normed_job(job):
    """The same with a network of five blocks with BatchNorm, and dropout."""
    return replace(job, recipe=replace(job.recipe, model="compact48", dropout=0.3, epochs=3))


@pytest.fixture(scope="module")
def engine():
    """The engine, in one Ray for all tests of this module."""
    from workflows import ray_engine

    ray_engine.ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    yield ray_engine
    ray_engine.ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(engine, job, tmp_path_factory):
    heard = []
    trained = engine.run(job, engine.Where(2, str(tmp_path_factory.mktemp("quiet"))), heard.append)
    return trained, heard


@pytest.fixture(scope="module")
def normed(engine, normed_job, tmp_path_factory):
    return engine.run(normed_job, engine.Where(2, str(tmp_path_factory.mktemp("normed"))), lambda message: None)


def merged_feed(job, world):
    """What the workers of a run see, one global batch after the other, augmented by each worker's own draws."""
    from train.augment import augment, generator
    from train.data import Batch, Feed
    from train.job import split_rows, training_feed

    rows = split_rows(job, "train")
    shares = [training_feed(job, rows, rank, world) for rank in range(world)]

    def batches(epoch, steps):
        own = [share.batches(epoch, steps) for share in shares]
        for step, parts in enumerate(zip(*own, strict=True)):
            changed = [
                augment(part.images, part.targets, job.recipe.augment, generator(job.recipe.seed, epoch, step, rank))
                for rank, part in enumerate(parts)
            ]
            yield Batch(
                np.concatenate([images for images, _ in changed]),
                np.concatenate([targets for _, targets in changed]),
                np.concatenate([part.weights for part in parts]),
            )

    steps = max(math.ceil(share.rows / share.batch) for share in shares)
    return Feed(steps * job.recipe.batch_size, job.recipe.batch_size, batches), rows


def training_workers(name="RayTrainWorker"):
    """The processes of Ray that train now; children of this process, or of its children."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_both_workers_end_with_equal_weights(undisturbed):
    trained, heard = undisturbed
    assert sorted(trained.weights_sha256) == [0, 1]
    assert len(set(trained.weights_sha256.values())) == 1
    assert [message["row"]["epoch"] for message in heard if "row" in message] == [1, 2, 3, 4]


def test_two_workers_end_as_one_process_that_saw_the_same_global_batches(undisturbed, job):
    from train.job import make_model, split_rows, validation_feed
    from train.loop import Worker, train
    from train.recipes_io import Augment

    feed, rows = merged_feed(job, 2)
    assert rows.counts().tolist() == [81, 162, 162]
    alone = replace(job, recipe=replace(job.recipe, augment=Augment()))
    held_out = validation_feed(alone, split_rows(alone, "validation"))
    state = train(alone.recipe, make_model(alone), feed, held_out, Worker(), rows.counts())
    trained, _ = undisturbed
    differences = [
        float(np.abs(mine - theirs).max()) for mine, theirs in zip(state.best, trained.state.best, strict=True)
    ]
    assert max(differences) < 1e-5
    for mine, theirs in zip(state.history, trained.state.history, strict=True):
        for name in ("val_accuracy", "val_balanced_accuracy", "val_macro_f1"):
            assert mine[name] == theirs[name]
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-5)
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_moving_statistics_are_the_mean_of_the_workers_own(engine, normed_job, tmp_path):
    """At a rate of next to nothing the weights stay, so what each worker saw can be repeated here."""
    from train import models
    from train.augment import augment, generator
    from train.job import make_model, split_rows, training_feed

    still = replace(normed_job, limit=60, recipe=replace(normed_job.recipe, epochs=1, rate=1e-12, ema=0.0))
    trained = engine.run(still, engine.Where(2, str(tmp_path)), lambda message: None)
    assert len(trained.weights_sha256) == 2
    assert len(set(trained.weights_sha256.values())) == 1

    def statistics(model):
        norms = models.batchnorms(model)
        return [np.array(one) for norm in norms for one in (norm.moving_mean, norm.moving_variance)]

    own = []
    for rank in range(2):
        model = make_model(still)
        models.set_stage(model, base=True, batchnorm=True)
        feed = training_feed(still, split_rows(still, "train"), rank, 2)
        for step, batch in enumerate(feed.batches(0, 8)):
            random = generator(still.recipe.seed, 0, step, rank)
            model(augment(batch.images, batch.targets, still.recipe.augment, random)[0], training=True)
        own.append(statistics(model))
    model.set_weights(trained.state.best)
    found = statistics(model)
    assert len(found) == 2 * 13
    apart = 0.0
    for mine, *theirs in zip(found, *own, strict=True):
        np.testing.assert_allclose(mine, np.mean(theirs, axis=0), atol=1e-5)
        apart = max(apart, float(np.abs(np.subtract(*theirs)).max()))
    assert apart > 1e-2  # the workers differ, or any one's statistics would do


def test_a_worker_killed_in_mid_epoch_resumes_and_ends_with_the_same_weights(engine, normed_job, normed, tmp_path):
    killed = []

    def heard(message):
        if "row" in message and message["row"]["epoch"] == 1 and not killed:
            workers = training_workers()
            assert len(workers) == 2
            killed.append(workers[1].pid)
            workers[1].kill()

    trained = engine.run(normed_job, engine.Where(2, str(tmp_path), max_failures=1, timeout_s=60), heard)
    assert len(killed) == 1
    assert sorted(trained.weights_sha256) == [0, 1]
    assert trained.weights_sha256 == normed.weights_sha256
    assert [row["epoch"] for row in trained.state.history] == [1, 2, 3]
    for mine, theirs in zip(trained.state.best, normed.state.best, strict=True):
        assert np.array_equal(mine, theirs)


def test_a_worker_that_dies_for_good_ends_the_run_with_one_line(engine, job, tmp_path):
    def heard(message):
        if "row" in message:
            for process in training_workers():
                process.kill()

    long = replace(job, recipe=replace(job.recipe, epochs=500))
    started = time.monotonic()
    with pytest.raises(engine.EngineError, match="a training worker died 1 times") as raised:
        engine.run(long, engine.Where(2, str(tmp_path), max_failures=0, timeout_s=60), heard)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < 120


def test_a_job_that_a_worker_refuses_is_one_line(engine, job, tmp_path):
    odd = replace(job, recipe=replace(job.recipe, batch_size=9))
    with pytest.raises(engine.JobError) as raised:
        engine.run(odd, engine.Where(2, str(tmp_path)), lambda message: None)
    assert str(raised.value) == "batch_size 9 does not divide among 2 workers: change one of them"


def command(dataset, out, *more):
    recipe = out.parent / "tiny.toml"
    flat = "\n".join(f"{key} = {json.dumps(value)}" for key, value in RECIPE.items() if key != "augment")
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in RECIPE["augment"].items())
    recipe.write_text(f"{flat}\n[augment]\n{lines}\n")
    arguments = [dataset, "--recipe", recipe, "--out", out, "--workers", "2", "--json", *more]
    return [sys.executable, "-m", "workflows.train_expressions", *map(str, arguments)]


def processes_of_ray():
    return {
        one.pid for one in psutil.process_iter(["cmdline"]) if "raylet" in " ".join(one.info["cmdline"] or [])[:200]
    }


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_ended_continues_when_the_command_is_repeated_and_leaves_nothing_running(
    dataset, tmp_path, sign
):
    before = processes_of_ray()
    out = tmp_path / "model"
    arguments = command(dataset, out, "--set", "epochs=12")
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            until = time.monotonic() + 150
            while train_toy.known_to_ray(out) < 1:
                assert first.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.1)
            if sign == signal.SIGINT:
                os.killpg(first.pid, sign)  # a terminal sends Ctrl-C to the whole group
                assert first.wait(60) == 130
                told = (tmp_path / "log").read_text()
                assert told.endswith("\ninterrupted: the same command continues where it stopped\n")
                assert "Traceback" not in told
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first.pid, signal.SIGKILL)
            first.wait()
    assert not (out / "metrics.json").exists()
    again = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    told = json.loads(again.stdout)
    with (out / "history.csv").open() as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file)]
    assert epochs == list(range(1, 13))
    shown = [line for line in again.stderr.splitlines() if line.startswith("main epoch ") and ": loss" in line]
    assert 0 < len(shown) < 12
    assert told["macro_f1"] > 0.9
    assert {path.name for path in out.iterdir()} >= {"model.keras", "model.onnx", "model.json", "README.md"}
    refused = subprocess.run([*arguments, "--set", "rate=0.5"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "recipe.rate: was 0.002, now 0.5" in refused.stderr
    until = time.monotonic() + 30
    while processes_of_ray() - before and time.monotonic() < until:
        time.sleep(0.2)
    assert processes_of_ray() - before == set()
