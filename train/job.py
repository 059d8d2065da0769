"""One training job as a plain value that travels to workers, and what each worker does with it: read, build, train.

The feed is read here, by the worker itself, from wherever the data set lies: no face passes through the driver.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dataset_tools import storage
from dataset_tools.crop import CropRecipe
from schemas.model import ModelSpec
from train import models
from train.checkpoint import State
from train.data import DataSet, Feed, Fold, Rows, class_factors, describe, make_feed, read_rows
from train.export import MasterError, load_master
from train.fused import fused
from train.loop import TrainError, Worker, has_bfloat16, stages, train
from train.recipes_io import Recipe

VALIDATION_BATCH = 256


@dataclass(frozen=True)
class Job:
    """dataset: folder or URL. limit: only the first faces of each split. fold: instead of the data set's own split."""

    dataset: str
    recipe: Recipe
    spec: ModelSpec
    fold: Fold | None = None
    limit: int | None = None


def make_spec(data: DataSet, recipe: Recipe) -> ModelSpec:
    """The model.json of what this recipe makes of this data set. Who cut the crops says how: the set, or the recipe."""
    return ModelSpec(
        architecture=recipe.model,
        input_px=recipe.input_px,
        colour=recipe.colour,
        equalise=recipe.equalise,
        label_set=data.label_set,
        label_names=data.label_names,
        crop=data.crop or _stated_crop(recipe),
        dataset_fingerprint=data.fingerprint,
    )


def _stated_crop(recipe: Recipe) -> dict[str, Any]:
    if not recipe.crop.framing:
        return {}
    return CropRecipe(recipe.crop.framing == "aligned", recipe.crop.margin, recipe.input_px).to_dict()


def split_rows(job: Job, split: str) -> Rows:
    """The labelled faces of `train` or `validation` that this job uses. Soft labels are for training only."""
    soft = job.recipe.soft_labels if split == "train" else 0.0
    rows = read_rows(describe(job.dataset), split, job.fold, soft=soft, translate=job.recipe.soft_translate)
    return rows if job.limit is None else rows.take(np.arange(min(job.limit, len(rows))))


def training_feed(job: Job, rows: Rows, rank: int = 0, world: int = 1) -> Feed:
    """The share of one worker. Raises TrainError when the batch cannot be divided among the workers."""
    recipe = job.recipe
    if recipe.batch_size % world:
        raise TrainError(f"batch_size {recipe.batch_size} does not divide among {world} workers: change one of them")
    draw = class_factors(rows.counts(), recipe.balance_power) if recipe.balance == "sampling" else None
    return make_feed(
        rows,
        job.spec,
        recipe.batch_size // world,
        rank=rank,
        world=world,
        seed=recipe.seed,
        draw=draw,
        memory_bytes=recipe.memory_gb * 1e9,
    )


def validation_feed(job: Job, rows: Rows, rank: int = 0, world: int = 1) -> Feed:
    """The share of one worker, in the order of the data set."""
    memory = job.recipe.memory_gb * 1e9
    return make_feed(rows, job.spec, VALIDATION_BATCH, rank=rank, world=world, shuffle=False, memory_bytes=memory)


def make_model(job: Job) -> keras.Model:
    """The network at its start: the same for the same recipe, on every worker and at every resume."""
    keras.utils.set_random_seed(job.recipe.seed)
    keras.mixed_precision.set_global_policy(_policy(job))
    return models.build(job.recipe.model, job.spec, job.recipe.weights or None, job.recipe.dropout)


def make_teacher(job: Job) -> keras.Model | None:
    """The network of the recipe's teacher, whatever its architecture, in the precision of the run, for inference
    only. Raises models.ModelError."""
    folder = job.recipe.teacher
    if not folder:
        return None
    try:
        model, spec = load_master(folder)
    except MasterError as error:
        raise models.ModelError(f"teacher: {error}") from None
    for name in ("label_names", "input_px", "colour", "equalise"):
        theirs, ours = getattr(spec, name), getattr(job.spec, name)
        if theirs != ours:
            told = f"teacher {storage.redact(folder)}"
            raise models.ModelError(f"{told} has {name} {theirs}, this run {ours}: they must be equal")
    return fused(models.network_of(model), _policy(job))


def _policy(job: Job) -> str:
    """Keras' name of the precision: the recipe's, where it pays."""
    return "mixed_bfloat16" if job.recipe.precision == "mixed" and has_bfloat16() else "float32"


def run_worker(job: Job, worker: Worker, threads: int | None = None) -> State:
    """Train one worker's part of the job to its end. threads: of TensorFlow, None is one per core."""
    recipe = job.recipe
    if threads is not None:
        with contextlib.suppress(RuntimeError):  # TensorFlow runs already: the caller chose
            tf.config.threading.set_intra_op_parallelism_threads(threads)
    if recipe.head_epochs and not recipe.weights:
        raise TrainError(
            "head_epochs trains on a frozen base, which needs --weights; from scratch: --set head_epochs=0"
        )
    if recipe.epochs < 1 or not stages(recipe):
        raise TrainError("the recipe has no epochs")
    rows, held_out = split_rows(job, "train"), split_rows(job, "validation")
    feed = training_feed(job, rows, worker.rank, worker.world)
    validation = validation_feed(job, held_out, worker.rank, worker.world)
    if unreadable := feed.unreadable + validation.unreadable:
        worker.report({"rank": worker.rank, "unreadable": unreadable})
    model, teacher = make_model(job), make_teacher(job)
    state = train(recipe, model, feed, validation, worker, rows.counts(), teacher)
    worker.report({"rank": worker.rank, "weights_sha256": fingerprint(model)})
    return state


def fingerprint(model: keras.Model) -> str:
    """sha256 over all weights: equal on all workers at the end, or something is broken."""
    digest = hashlib.sha256()
    for one in model.get_weights():
        digest.update(np.ascontiguousarray(one).tobytes())
    return digest.hexdigest()
