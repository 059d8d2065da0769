"""The story of one training run: check, or continue; train on Ray; choose the best epoch; write the model folder.

run.json is written first and says what the run is; metrics.json comes last and means that the model is complete.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: its notes help nobody here

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from dataset_tools import storage
from schemas.manifest import differences
from train import models
from train.data import DataError, Fold, describe
from train.export import ExportError
from train.job import Job, make_model, make_spec, make_teacher, split_rows
from train.loop import TrainError
from train.recipes_io import About, Recipe, RecipeError, override
from train.recipes_io import load as load_recipe
from train.scalars import scalar_writer
from workflows import cli, ray_engine
from workflows.model_folder import clear, write_model_folder
from workflows.train_progress import TrainProgress


@dataclass(frozen=True)
class Run:
    """One model to be trained into `out`. parameters: everything that decides what comes out."""

    job: Job
    about: About
    out: str
    where: ray_engine.Where
    parameters: dict[str, Any]
    command: str


def train_expressions(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code. Raises cli.UserError and cli.RunError."""
    try:
        runs = _runs(args)
        if args.dry_run:
            return _dry_run(runs[0], len(runs), as_json=args.json)
        results = [_train(run, overwrite=args.overwrite) for run in runs]
    except (DataError, RecipeError, models.ModelError, TrainError, ray_engine.JobError) as error:
        raise cli.UserError(str(error)) from None
    except (storage.MissingFileError, storage.DeniedError) as error:
        raise cli.UserError(str(error)) from None
    except (OSError, ray_engine.EngineError, ExportError) as error:
        raise cli.RunError(str(error)) from None
    if args.folds:
        return _tell_folds(_out(args), results, as_json=args.json)
    cli.result(_told(results[0], runs[0].out), results[0] | {"out": runs[0].out}, as_json=args.json)
    return 0


def _runs(args: argparse.Namespace) -> list[Run]:
    """The models to train, checked: one, or one for each fold."""
    recipe, about = load_recipe(args.recipe)
    recipe = override(recipe, args.set)
    if args.weights is not None:
        recipe = replace(recipe, weights="" if args.weights == "none" else storage.normalize(args.weights))
    if args.teacher is not None:
        recipe = replace(recipe, teacher=storage.normalize(args.teacher))
    if args.seed is not None:
        recipe = replace(recipe, seed=args.seed)
    if args.folds == 1:
        raise cli.UserError("--folds 1 leaves nothing to train on: give 2 or more")
    data = describe(args.dataset)
    out = _out(args)
    found = []
    for fold in [Fold(number, args.folds, recipe.seed) for number in range(args.folds)] if args.folds else [None]:
        own = storage.join(out, f"fold-{fold.number}") if fold else out
        job = Job(data.url, recipe, make_spec(data, recipe), fold, args.limit)
        place = storage.join(args.storage, *([f"fold-{fold.number}"] if fold else [])) if args.storage else own
        where = ray_engine.Where(args.workers, place, args.gpu, args.address, args.max_failures)
        parameters = {
            "dataset": storage.redact(data.url),
            "dataset_fingerprint": data.fingerprint,
            "recipe": _redacted(recipe),
            "limit": args.limit,
            "workers": args.workers,
            "fold": asdict(fold) if fold else None,
        }
        found.append(Run(job, about, own, where, parameters, _command(args)))
    return found


def _train(run: Run, *, overwrite: bool) -> dict[str, Any]:
    """Train, or continue, or say again what is there; returns what metrics.json holds."""
    # What is missing is told now: not by a worker after Ray's start, and before run.json. The folder's model computes
    # in float32 wherever it was trained: its exports are held against it, and serving has no bfloat16.
    model = make_model(replace(run.job, recipe=replace(run.job.recipe, precision="float32")))
    make_teacher(run.job)
    rows = split_rows(run.job, "train")
    split_rows(run.job, "validation")
    _claim(run, overwrite=overwrite)
    finished = storage.join(run.out, "metrics.json")
    if storage.exists(finished):
        cli.note(f"{run.out} is trained already; --overwrite trains it anew")
        return dict(json.loads(storage.read_bytes(finished)))
    counts = dict(zip(run.job.spec.label_names, (int(one) for one in rows.counts()), strict=True))
    cli.note(
        f"{len(rows):,} training faces, {model.count_params():,} parameters, {run.where.workers} workers; Ray starts"
    )
    progress = TrainProgress(sys.stderr)
    scalars = scalar_writer(storage.join(run.out, "tensorboard")) if storage.is_local(run.out) else None

    def heard(message: dict[str, Any]) -> None:
        progress.heard(message)
        if scalars and "row" in message:
            scalars(message["row"])

    try:
        trained = ray_engine.run(run.job, run.where, heard)
    finally:
        progress.close()
    model.set_weights(trained.state.best)
    model = models.mirrored(model) if run.job.recipe.mirrored else model
    cli.note("writing the model folder")
    return write_model_folder(run.out, run.job, run.about, model, trained.state, counts, run.command)


def _claim(run: Run, *, overwrite: bool) -> None:
    """Write run.json, or see that the one that stands there is of this run. Raises cli.UserError."""
    url = storage.join(run.out, "run.json")
    if overwrite and storage.exists(url):
        clear(run.out)
        storage.remove_tree(storage.join(run.where.storage, ray_engine.RUN_NAME))
        storage.remove(url)  # last: a clearing that was cut off is still known as a run
    if not storage.exists(url):
        if storage.is_folder(run.out) and any(True for _ in storage.list_files(run.out)):
            raise cli.UserError(f"{run.out} is not empty and holds no training run: choose another --out")
        storage.write_bytes(url, (json.dumps(run.parameters, indent=2, sort_keys=True) + "\n").encode())
        return
    changes = differences(json.loads(storage.read_bytes(url)), run.parameters)
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise cli.UserError(
            f"{run.out} holds a run with other parameters ({'; '.join(changes[:3])}{more}): "
            "choose another --out, or start anew with --overwrite"
        )


def _redacted(recipe: Recipe) -> dict[str, Any]:
    return replace(recipe, weights=storage.redact(recipe.weights), teacher=storage.redact(recipe.teacher)).to_dict()


def _command(args: argparse.Namespace) -> str:
    """What the card shows, without the names of this machine's folders."""
    words = ["just train", "DATASET", "--recipe", Path(args.recipe).name]
    for setting in args.set:
        words += ["--set", setting]
    words += [f"--{name} {Path(one).name}" for name in ("weights", "teacher") if (one := getattr(args, name))]
    words += [
        f"--{name} {getattr(args, name)}" for name in ("seed", "limit", "folds") if getattr(args, name) is not None
    ]
    return " ".join([*words, f"--workers {args.workers}", *(["--gpu"] if args.gpu else [])])


def _out(args: argparse.Namespace) -> str:
    if args.out:
        return storage.normalize(args.out)
    stem = args.dataset.rstrip("/").rsplit("/", 1)[-1]
    return storage.normalize(f"{stem}-{Path(args.recipe).stem}")


def _told(figures: dict[str, Any], out: str) -> list[str]:
    return [
        f"{figures['faces']:,} validation faces: accuracy {figures['accuracy']:.4f}, "
        f"balanced {figures['balanced_accuracy']:.4f}, macro F1 {figures['macro_f1']:.4f}, ECE {figures['ece']:.4f}",
        f"best epoch {figures['best_epoch']} ({figures['best_stage']}) of {figures['epochs']}; temperature "
        f"{figures['temperature']:.3f}; ONNX differs by {figures['onnx']['largest_difference']:.1e}",
        f"model       {out}",
    ]


def _tell_folds(out: str, results: list[dict[str, Any]], *, as_json: bool) -> int:
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    summary = {
        name: {"mean": mean(one[name] for one in results), "spread": stdev(one[name] for one in results)}
        for name in names
    }
    storage.write_bytes(storage.join(out, "folds.json"), (json.dumps(summary, indent=2) + "\n").encode())
    lines = [f"{name:18} {one['mean']:.4f} ± {one['spread']:.4f}" for name, one in summary.items()]
    cli.result(
        [f"{len(results)} folds, mean and standard deviation", *lines, f"models      {out}"], summary, as_json=as_json
    )
    return 0


def _dry_run(run: Run, count: int, *, as_json: bool) -> int:
    recipe = run.job.recipe
    rows, held_out = split_rows(run.job, "train"), split_rows(run.job, "validation")
    model = make_model(run.job)
    face_bytes = int(np.prod(model.input_shape[1:]))
    steps = -(-len(rows) // recipe.batch_size)
    values = {
        "training_faces": len(rows),
        "validation_faces": len(held_out),
        "classes": dict(zip(run.job.spec.label_names, (int(one) for one in rows.counts()), strict=True)),
        "parameters": model.count_params(),
        "steps_per_epoch": steps,
        "epochs": recipe.head_epochs + recipe.epochs,
        "models": count,
        "decoded_bytes": face_bytes * (len(rows) + len(held_out)),
        "streamed": face_bytes * len(rows) / run.where.workers > recipe.memory_gb * 1e9,
        "out": run.out,
    }
    lines = [
        f"{values['training_faces']:,} training and {values['validation_faces']:,} validation faces: "
        + ", ".join(f"{name} {one:,}" for name, one in values["classes"].items()),
        f"{recipe.model}, {values['parameters']:,} parameters; {values['epochs']} epochs of {steps:,} steps"
        + (f"; {count} models" if count > 1 else ""),
        f"{values['decoded_bytes'] / 1e9:.2f} GB decoded, " + ("streamed" if values["streamed"] else "kept in memory"),
        f"expected time of the recipe: {run.about.expected_time or 'not stated'}",
        f"would write {run.out}",
    ]
    cli.result(lines, values, as_json=as_json)
    return 0
