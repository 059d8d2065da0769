"""`just bench-train`: does the feed keep up with the step, and is the loop as fast as Keras' own?

Four figures on the same network and faces, in images/s: the step on a batch that lies in memory (the ceiling), the loop
with its feed, Keras `fit` on arrays in one process, and two Ray workers against one. Rounds take them in turn, and the
medians of the rounds are told. Faces are drawn, not read from a data set, so that anybody can run it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from dataset_tools import parquet
from dataset_tools.encoding import encode
from schemas.labels import FER_2013
from schemas.tables import FaceRow, faces_schema, to_table
from train import loop
from train.data import describe
from train.fused import fused
from train.job import Job, make_model, make_spec, split_rows, training_feed, validation_feed
from train.recipes_io import Augment, load, override

RATIOS = (
    ("loop", "step_in_memory"),
    ("loop_unaugmented", "step_in_memory"),
    ("loop_unaugmented", "keras_fit"),
    ("ray_2", "ray_1"),
)


def draw_faces(folder: str, count: int, side: int) -> str:
    """A data set of noise: decoding, augmenting and training cost the same as on faces."""
    schema = faces_schema(FER_2013, {})
    random = np.random.default_rng(0)
    empty: dict[str, Any] = dict.fromkeys(FaceRow.__dataclass_fields__)
    for split, number in (("train", count), ("validation", 64)):
        rows = []
        for at in range(number):
            pixels = random.integers(0, 256, (side, side, 3), np.uint8)
            image = {"bytes": encode(pixels, "jpeg"), "path": f"{at}.jpg"}
            own = {"image": image, "label": at % 7, "key": str(at), "source_phash": f"{at:016x}", "split": split}
            rows.append(FaceRow(**{**empty, **own}))
        parquet.write_part(parquet.data_part(folder, split, 0, 1), to_table(rows, schema))
    return folder


def ceiling(job: Job, steps: int) -> float:
    """images/s of the loop's own step on one batch that is there already."""
    model = fused(make_model(job))
    optimizer = loop.make_optimizer(job.recipe, job.recipe.rate)
    optimizer.build(model.trainable_variables)
    step = loop._make_step(job.recipe, model, optimizer, [], lambda vector: vector)
    batch = next(training_feed(job, split_rows(job, "train")).batches(0, 1))
    given = [tf.constant(one) for one in (*batch, np.float32(1e-3))]
    float(step(*given)[0])
    started = time.perf_counter()
    for _ in range(steps):
        last = step(*given)
    float(last[0])
    return steps * len(batch.images) / (time.perf_counter() - started)


def whole_loop(job: Job) -> float:
    """images/s of the loop from its second epoch on, augmentation and feed included, validation not."""
    rows = split_rows(job, "train")
    held_out = validation_feed(job, split_rows(job, "validation"))
    state = loop.train(job.recipe, make_model(job), training_feed(job, rows), held_out, loop.Worker(), rows.counts())
    return statistics.median(row["images_per_s"] for row in state.history[1:])


def keras_fit(job: Job, epochs: int) -> float:
    """images/s of `fit` on arrays in memory, without augmentation, from its second epoch on."""
    model = make_model(job)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(loop.make_optimizer(job.recipe, job.recipe.rate), loss)
    rows = split_rows(job, "train")
    batch = next(training_feed(job, rows).batches(0, 1))
    images = np.resize(batch.images, (len(rows), *batch.images.shape[1:]))
    targets = np.resize(batch.targets, (len(rows), batch.targets.shape[1]))
    found = []
    model.fit(images, targets, batch_size=job.recipe.batch_size, epochs=1, verbose=0)
    for _ in range(epochs - 1):
        started = time.perf_counter()
        model.fit(images, targets, batch_size=job.recipe.batch_size, epochs=1, verbose=0)
        found.append(len(images) / (time.perf_counter() - started))
    return statistics.median(found)


def on_ray(job: Job, workers: int) -> float:
    """images/s of all workers together, from the second epoch on."""
    from workflows import ray_engine

    with tempfile.TemporaryDirectory() as storage:
        trained = ray_engine.run(job, ray_engine.Where(workers, storage), lambda _: None)
    return statistics.median(row["images_per_s"] for row in trained.state.history[1:])


def main() -> None:
    parser = argparse.ArgumentParser(prog="just bench-train", description=__doc__)
    parser.add_argument("--recipe", default="compact48_fer2013")
    parser.add_argument("--faces", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-ray", action="store_true", help="leave out the two runs on Ray")
    args = parser.parse_args()
    recipe, _ = load(args.recipe)
    scratch = ["weights=", "head_epochs=0", f"epochs={args.epochs}", "balance=none", "ema=0"]
    recipe = override(recipe, [*scratch, *args.set])
    with tempfile.TemporaryDirectory() as folder:
        data = describe(draw_faces(str(Path(folder) / "set"), args.faces, recipe.input_px))
        job = Job(data.url, recipe, make_spec(data, recipe))
        plain = Job(data.url, override(recipe, [f"augment.{name}=0" for name in vars(Augment())]), job.spec)
        steps = max(2, args.faces // recipe.batch_size)
        measures = {
            "step_in_memory": lambda: ceiling(job, steps),
            "loop": lambda: whole_loop(job),
            "loop_unaugmented": lambda: whole_loop(plain),
            "keras_fit": lambda: keras_fit(job, args.epochs),
        }
        if not args.no_ray:
            measures |= {"ray_1": lambda: on_ray(job, 1), "ray_2": lambda: on_ray(job, 2)}
        rounds = [{name: measure() for name, measure in measures.items()} for _ in range(args.rounds)]
    found = {name: statistics.median(one[name] for one in rounds) for name in measures}
    for part, whole in RATIOS:
        if part in found:
            found[f"{part}_to_{whole}"] = statistics.median(one[part] / one[whole] for one in rounds)
    print(json.dumps({name: round(one, 3) for name, one in found.items()}, indent=2))


if __name__ == "__main__":
    main()
