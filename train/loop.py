"""The training loop of one worker: a model, its feed and an all-reduce in; checkpoints and history rows out.

Each worker holds an ordinary Keras model and an equal copy of the optimizer. A step sums the weighted losses of its own
faces, adds up gradients and weights over all workers in one vector, and divides: so unequal shares and short batches
give exactly the gradient of the whole global batch. No engine is imported here: what the loop needs of one (`Worker`)
is passed in, and one process with the identity as its all-reduce is a run like any other.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dataset_tools import metrics
from train import models
from train.augment import augment, generator
from train.checkpoint import State, read_state, write_state
from train.data import Batch, Feed, class_factors
from train.fused import fused
from train.prefetch import prefetched
from train.recipes_io import Recipe

_REPORT_EVERY_S = 0.5
_AHEAD = 4
_CPU = Path("/proc/cpuinfo")
HISTORY = (
    *("stage", "epoch", "steps", "rate", "loss", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1"),
    *("images_per_s", "seconds", "best"),
)


class TrainError(RuntimeError):
    """Training cannot go on; one line that names the next step."""


@dataclass(frozen=True)
class Worker:
    """What the loop is given. all_reduce: a float vector summed over all workers, usable inside a tf.function.

    save(row, write): called by every worker at each epoch's end with the history row; write(folder) fills a local
    folder with the checkpoint. report: progress, called often. restore: local folder of a checkpoint to continue from.
    """

    rank: int = 0
    world: int = 1
    all_reduce: Callable[[Any], Any] = lambda vector: vector
    save: Callable[[dict[str, Any], Callable[[str], None]], None] = lambda _row, _write: None
    report: Callable[[dict[str, Any]], None] = lambda _progress: None
    restore: str | None = None


@dataclass(frozen=True)
class Stage:
    """epochs at a rate; base: whether the base trains, or the head alone."""

    name: str
    epochs: int
    rate: float
    base: bool


def stages(recipe: Recipe) -> list[Stage]:
    """Frozen base first where the recipe asks for it, then the whole network."""
    head = [Stage("head", recipe.head_epochs, recipe.head_rate, base=False)] if recipe.head_epochs else []
    return [*head, Stage("main", recipe.epochs, recipe.rate, base=True)]


def train(
    recipe: Recipe,
    model: keras.Model,
    feed: Feed,
    validation: Feed,
    worker: Worker,
    counts: NDArray[np.int64] | None = None,
    teacher: keras.Model | None = None,
) -> State:
    """Run what is left of all stages; the state's `best` holds the weights of the best epoch, like on all workers.

    feed: batches of batch_size / world faces. counts: training faces of each class over all workers, for class weights.
    teacher: sees each face as the model does, augmented, and its chances of the classes are `teacher_part` of a target.
    Raises TrainError for a share without faces and for a loss that is no number.
    """
    state = read_state(worker.restore) if worker.restore else None
    if state is None:
        state = State(weights=_from_first_worker(model, worker))
    network = fused(model)
    network.set_weights(state.weights)
    shares = _gathered(feed.rows, worker)
    if min(shares) == 0:
        raise TrainError(f"{len(shares)} workers for {sum(shares)} faces leave one without any: use fewer --workers")
    steps = math.ceil(max(shares) / feed.batch)
    factors = np.ones(model.output_shape[-1], np.float32)
    if recipe.balance == "weights" and counts is not None:
        factors = class_factors(counts, recipe.balance_power)
    for number, stage in enumerate(stages(recipe)):
        if number >= state.stage:
            _run_stage(recipe, network, feed, validation, worker, state, stage, number, steps, factors, teacher)
    model.set_weights(state.best)
    return state


def _run_stage(
    recipe: Recipe,
    model: keras.Model,
    feed: Feed,
    validation: Feed,
    worker: Worker,
    state: State,
    stage: Stage,
    number: int,
    steps: int,
    factors: NDArray[np.float32],
    teacher: keras.Model | None,
) -> None:
    models.set_stage(model, base=stage.base, batchnorm=not recipe.frozen_batchnorm)
    optimizer = make_optimizer(recipe, stage.rate)
    optimizer.build(model.trainable_variables)
    averaged = [tf.Variable(one) for one in _followed(model)] if recipe.ema else []
    if state.epoch:
        _assign(optimizer.variables, state.optimizer)
        _assign(averaged, state.averaged)
    step = _make_step(recipe, model, optimizer, averaged, worker.all_reduce, teacher)
    validate = _make_validate(model, worker)
    epochs_before = sum(one.epochs for one in stages(recipe)[:number])
    for epoch in range(state.epoch, stage.epochs):
        started = time.monotonic()
        _seed_dropout(model, recipe.seed, epochs_before + epoch, worker.rank)
        batches = _augmented(recipe, feed, epochs_before + epoch, steps, worker.rank, factors)
        loss = weight = tf.zeros(())
        shown = started
        done = epoch * steps
        for at, one in enumerate(batches):
            rate = rate_at(recipe, stage.rate, done + at, stage.epochs * steps, steps)
            step_loss, step_weight = step(*one, tf.constant(rate, tf.float32))
            loss, weight = loss + step_loss, weight + step_weight
            now = time.monotonic()
            if now - shown >= _REPORT_EVERY_S or at + 1 == steps:
                shown = now
                worker.report(
                    {
                        "stage": stage.name,
                        "epoch": epoch + 1,
                        "epochs": stage.epochs,
                        "step": at + 1,
                        "steps": steps,
                        "images_per_s": (at + 1) * feed.batch * worker.world / max(now - started, 1e-9),
                        "loss": float(loss) / max(float(weight), 1e-9),
                    }
                )
        mean_loss = float(loss) / float(weight)
        trained_s = time.monotonic() - started
        if not math.isfinite(mean_loss):
            raise TrainError(f"the loss of epoch {epoch + 1} is {mean_loss}: lower the rate ({stage.rate:g})")
        _average_statistics(model, worker)
        own = model.get_weights()
        if averaged:
            _assign(_followed(model), averaged)
            _average_statistics(model, worker)
            _assign(averaged, _followed(model))
        row: dict[str, Any] = {"stage": stage.name, "epoch": epoch + 1, "steps": steps, "rate": rate}
        row |= {"loss": mean_loss} | validate(validation)
        row |= {"images_per_s": feed.rows * worker.world / trained_s, "seconds": time.monotonic() - started}
        value = -row["val_loss"] if recipe.monitor == "loss" else row[f"val_{recipe.monitor}"]
        row["best"] = state.best_value is None or value > state.best_value
        if row["best"]:
            state.best, state.best_value, state.stale = model.get_weights(), value, 0
        else:
            state.stale += 1
        model.set_weights(own)
        state.history.append({name: row[name] for name in HISTORY})
        ends = epoch + 1 == stage.epochs or bool(recipe.patience and state.stale >= recipe.patience)
        if ends:  # what follows starts from the best so far
            state.stage, state.epoch, state.stale = number + 1, 0, 0
            state.weights, state.optimizer, state.averaged = state.best, [], []
            model.set_weights(state.best)
        else:
            state.epoch, state.weights = epoch + 1, own
            state.optimizer = [np.asarray(one) for one in optimizer.variables]
            state.averaged = [one.numpy() for one in averaged]
        worker.save(row, lambda folder: write_state(folder, state))
        if ends:
            return


def rate_at(recipe: Recipe, rate: float, step: int, total: int, steps: int) -> float:
    """The learning rate of one step of a stage: linear warm-up, then half a cosine down to final_rate, or constant."""
    warm = recipe.warmup_epochs * steps
    if step < warm:
        return rate * (step + 1) / warm
    if recipe.schedule == "constant":
        return rate
    part = (step - warm) / max(total - warm, 1)
    return rate * (recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * part)))


def make_optimizer(recipe: Recipe, rate: float) -> keras.optimizers.Optimizer:
    """The recipe's optimizer. Weight decay spares biases and BatchNorm, which it would only shrink."""
    decay = recipe.weight_decay or None
    if recipe.optimizer == "sgd":
        made = keras.optimizers.SGD(rate, momentum=recipe.momentum, weight_decay=decay)
    elif recipe.optimizer == "adamw" or decay:
        made = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)
    else:
        made = keras.optimizers.Adam(rate)
    if decay:
        made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


def on_gpu() -> bool:
    """Whether TensorFlow sees a GPU here: jit is 6 times slower without one."""
    return bool(tf.config.list_physical_devices("GPU"))


def has_bfloat16() -> bool:
    """Whether mixed precision pays here: on a GPU, or on a CPU that multiplies bfloat16 in tiles (Intel's AMX). Other
    CPUs are up to 16 times slower with it."""
    with contextlib.suppress(OSError):
        return on_gpu() or "amx_bf16" in _CPU.read_text()
    return False


def _make_step(
    recipe: Recipe,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    averaged: list[Any],
    all_reduce: Callable[[Any], Any],
    teacher: keras.Model | None = None,
) -> Callable[..., tuple[Any, Any]]:
    variables = model.trainable_variables
    sizes = [math.prod(one.shape) for one in variables]
    classes = model.output_shape[-1]

    @tf.function(jit_compile=recipe.jit and on_gpu())
    def gradients(images: Any, targets: Any, weights: Any) -> Any:
        smooth = recipe.label_smoothing
        if teacher is not None:
            taught = tf.nn.softmax(tf.cast(teacher(images, training=False), tf.float32))
            targets = (1 - recipe.teacher_part) * targets + recipe.teacher_part * taught
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = -tf.reduce_sum((targets * (1 - smooth) + smooth / classes) * tf.nn.log_softmax(logits), -1)
            loss = tf.reduce_sum(losses * weights)
        found = tape.gradient(loss, [one.value for one in variables])
        flat = [tf.reshape(one, [-1]) for one in found]
        return tf.concat([*flat, [loss, tf.reduce_sum(weights)]], 0)

    @tf.function
    def step(images: Any, targets: Any, weights: Any, rate: Any) -> tuple[Any, Any]:
        # One vector, so one collective: many small ones would each wait for the slowest worker.
        *flat, loss, weight = tf.split(all_reduce(gradients(images, targets, weights)), [*sizes, 1, 1])
        optimizer.learning_rate.assign(rate)
        divided = [
            tf.reshape(tf.math.divide_no_nan(one, weight), variable.shape)
            for one, variable in zip(flat, variables, strict=True)
        ]
        optimizer.apply(divided, variables)
        if averaged:  # a young average follows closely, or it would hold the random start for long
            count = tf.cast(optimizer.iterations, tf.float32)
            decay = tf.minimum(recipe.ema, (1 + count) / (10 + count))
            for mean, variable in zip(averaged, _followed(model), strict=True):
                mean.assign_sub((1 - decay) * (mean - tf.cast(variable.value, tf.float32)))
        return loss[0], weight[0]

    return step


def _make_validate(model: keras.Model, worker: Worker) -> Callable[[Feed], dict[str, float]]:
    """Loss and figures over the whole validation set: confusion matrices add up over workers, so they are exact."""
    classes = model.output_shape[-1]

    @tf.function
    def predict(images: Any) -> Any:
        return tf.cast(model(images, training=False), tf.float32)

    def validate(feed: Feed) -> dict[str, float]:
        matrix, loss = np.zeros((classes, classes)), 0.0
        for images, targets, weights in whole(feed):
            logits = predict(images).numpy().astype(np.float64)
            real = weights > 0
            labels = targets[real].argmax(-1)
            matrix += metrics.confusion_matrix(labels, logits[real].argmax(-1), classes)
            loss += float(metrics.losses(labels, metrics.softmax(logits[real])).sum())
        summed = _reduced(np.append(matrix.ravel(), loss), worker)
        matrix, total = summed[:-1].reshape(classes, classes), summed[:-1].sum()
        return {
            "val_loss": float(summed[-1] / total),
            "val_accuracy": float(metrics.accuracy(matrix)),
            "val_balanced_accuracy": float(metrics.balanced_accuracy(matrix)),
            "val_macro_f1": float(metrics.macro_f1(matrix)),
        }

    return validate


def whole(feed: Feed) -> Iterator[Batch]:
    """Every face of an unshuffled feed once; the last batch has fillers. A feed of no faces gives nothing."""
    return feed.batches(0, math.ceil(feed.rows / feed.batch) if feed.rows else 0)


def _augmented(
    recipe: Recipe, feed: Feed, epoch: int, steps: int, rank: int, factors: NDArray[np.float32]
) -> Iterator[Batch]:
    def made() -> Iterator[Batch]:
        for step, (images, targets, weights) in enumerate(itertools.islice(feed.batches(epoch, steps), steps)):
            random = generator(recipe.seed, epoch, step, rank)
            images, targets = augment(images, targets, recipe.augment, random)
            yield Batch(images, targets, weights * (targets @ factors))

    return prefetched(made(), _AHEAD)


def _seed_dropout(model: keras.Model, seed: int, epoch: int, rank: int) -> None:
    """Dropout draws from (seed, epoch, rank), so that a repeated epoch drops the same."""
    states = [one for one in model.variables if "seed_generator_state" in one.path]
    for number, state in enumerate(states):
        drawn = np.random.SeedSequence([seed, epoch, rank, number]).generate_state(state.shape[0])
        state.assign(drawn.astype(np.uint32))


def _moving(model: keras.Model) -> list[Any]:
    """BatchNorm's statistics, which follow its input without being trained."""
    return [one for layer in models.batchnorms(model) for one in (layer.moving_mean, layer.moving_variance)]


def _followed(model: keras.Model) -> list[Any]:
    """What weight averaging averages. The statistics too: the newest do not fit averaged weights, and cost two points
    of accuracy in some epochs."""
    return [*model.trainable_variables, *_moving(model)]


def _average_statistics(model: keras.Model, worker: Worker) -> None:
    """BatchNorm's moving statistics come from each worker's own batches; from here on all have their mean."""
    moving = _moving(model)
    if not moving or worker.world == 1:
        return
    flat = np.concatenate([np.asarray(one, np.float64).ravel() for one in moving])
    mean = _reduced(flat, worker) / worker.world
    at = 0
    for one in moving:
        size = math.prod(one.shape)
        one.assign(mean[at : at + size].reshape(one.shape).astype(np.float32))
        at += size


def _from_first_worker(model: keras.Model, worker: Worker) -> list[NDArray[Any]]:
    """The first worker's weights, on every worker: the others add zeros."""
    own = model.get_weights()
    if worker.world == 1:
        return own
    flat = np.concatenate([one.ravel() for one in own]).astype(np.float64)
    flat = _reduced(flat if worker.rank == 0 else np.zeros_like(flat), worker)
    edges = np.cumsum([one.size for one in own])[:-1]
    return [part.reshape(one.shape).astype(one.dtype) for part, one in zip(np.split(flat, edges), own, strict=True)]


def _gathered(value: int, worker: Worker) -> list[int]:
    """The value of each worker, in order of rank."""
    own = np.zeros(worker.world)
    own[worker.rank] = value
    return [int(one) for one in _reduced(own, worker)]


def _reduced(values: NDArray[np.float64], worker: Worker) -> NDArray[np.float64]:
    return np.asarray(worker.all_reduce(tf.constant(values, tf.float64)))


def _assign(variables: Any, values: Any) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
