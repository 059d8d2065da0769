"""The story of one evaluation: load models and faces, score, look for leaks, measure, write numbers and page."""

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset_tools import parquet, storage
from dataset_tools.predictions import predictions_table
from infer import evaluation, evaluation_model, evaluation_page, shared_photos
from infer.predictor import Predictor, PredictorError, load_predictor
from infer.slices import slices_of
from infer.split_scores import DataSet, DataSetError, Scores, class_map, open_data_set, score_split
from schemas.labels import LabelSet
from schemas.tables import SPLITS
from schemas.versions import installed_versions
from workflows import cli
from workflows.progress import Progress, duration

FORMAT = 1
_DRY_FACES = 128
_TOLD = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "top_2", "log_loss", "ece", "aurc")

ClassMap = tuple[int | None, ...]
Models = list[tuple[str, Predictor]]
Shared = dict[str, dict[str, NDArray[np.bool_]]]
"""By other split: by column, which faces share its value."""


def evaluate(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code. Raises cli.UserError and cli.RunError."""
    try:
        out = _out(args)
        models = _named([load_predictor(model, args.runtime, args.workers) for model in args.model])
        data = open_data_set(args.dataset, args.split)
        others = {storage.redact(folder): _parts(folder, data.parts[args.split]) for folder in args.trained_on}
        maps = _maps(args, models, data)
        if args.dry_run:
            return _dry_run(args, out, models, maps, data)
        scores = _score(args, models, maps, data)
        cli.note("looking for photos that other splits share")
        shared = _shared(data, args.split, scores, others)
        result = _measured(args, models, maps, data, scores, shared)
        cli.note("writing the report")
        _write(out, result, models, scores, _any(shared.values(), len(scores.reasons)))
    except (PredictorError, DataSetError, storage.MissingFileError, storage.DeniedError) as error:
        raise cli.UserError(str(error)) from None
    except OSError as error:
        raise cli.RunError(str(error)) from None
    cli.result(_lines(result, out), result | {"out": out}, as_json=args.json)
    return cli.exit_code_for(sum(result["faces"]["not_scored"].values()), result["faces"]["looked_at"], args.max_failed)


def _out(args: argparse.Namespace) -> str:
    """The folder to write. It may be new or hold an evaluation; what others wrote is never replaced."""
    if args.out is None:
        name = storage.normalize(args.dataset).rsplit("/", 1)[-1]
        args.out = f"{name}-evaluation"
    out = storage.normalize(args.out)
    for file, what in (("model.json", "a model"), ("manifest.json", "a data set")):
        if storage.exists(storage.join(out, file)):
            raise cli.UserError(f"OUT {out} is {what}: choose another --out")
    if storage.exists(storage.join(out, "metrics.json")) and not (args.overwrite or args.dry_run):
        raise cli.UserError(f"{out} holds an evaluation: choose another --out, or replace it with --overwrite")
    return out


def _named(predictors: list[Predictor]) -> Models:
    """A short name for each: the folder's, and where two are the same, with what stands before it."""
    folders = [predictor.folder for predictor in predictors]
    if len(set(folders)) < len(folders):
        raise cli.UserError("a MODEL is named twice: name each once")
    for depth in range(1, 32):
        names = ["/".join(folder.split("/")[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return list(zip(names, predictors, strict=True))


def _parts(folder: str, scored: Sequence[str]) -> tuple[str, ...]:
    """What a model trained on this data set has seen: the faces it learnt from and those it was chosen by, but not
    those being scored, all of which would be copies of themselves."""
    found = tuple(part for split, part in parquet.data_parts(folder) if split != "test")
    if not found:
        raise cli.UserError(
            f"--trained-on {storage.redact(folder)} has no data/train-*.parquet and no data/validation-*.parquet: "
            "name the face data set that the model was trained on"
        )
    return tuple(part for part in found if part not in scored)


def _maps(args: argparse.Namespace, models: Models, data: DataSet) -> list[ClassMap]:
    given = None
    if args.label_map is not None:
        pairs = [pair.partition("=") for pair in args.label_map.split(",") if pair.strip() not in ("names", "")]
        if not all(sign and source.strip() and target.strip() for source, sign, target in pairs):
            raise cli.UserError(f"--label-map takes `names` or pairs such as contempt=disgust, not {args.label_map!r}")
        given = {source.strip(): target.strip() for source, _, target in pairs}
    return [
        class_map(
            data.labels,
            LabelSet(predictor.spec.label_set, predictor.spec.label_names),
            name,
            given,
            allow_drop=args.allow_drop,
        )
        for name, predictor in models
    ]


def _score(args: argparse.Namespace, models: Models, maps: list[ClassMap], data: DataSet) -> Scores:
    rows = min(data.rows(args.split), args.limit or 2**62)
    cli.note(f"scoring {rows:,} {args.split} faces with {', '.join(name for name, _ in models)}")
    progress = Progress(rows)
    last = (0, 0, 0)

    def heard(*now: int) -> None:
        nonlocal last
        last = now[0], now[1], now[2]
        progress.show(*last)

    try:
        scores = score_split(data, args.split, [predictor for _, predictor in models], maps, args.limit, heard)
    finally:
        progress.close(*last)
    if not scores.scored.any():
        what = "no face has a label" if scores.unlabelled == scores.rows else "no face could be scored"
        raise cli.UserError(f"{what} in the {args.split} split of {data.folder}: there is nothing to measure")
    return scores


def _measured(
    args: argparse.Namespace,
    models: Models,
    maps: list[ClassMap],
    data: DataSet,
    scores: Scores,
    shared: Shared,
) -> dict[str, Any]:
    """Everything that metrics.json holds."""
    good = np.flatnonzero(scores.scored)
    faces = scores.faces.take(good)
    labels = faces["label"].to_numpy()
    leaked = _any(shared.values(), len(scores.reasons))[good]
    photos = shared_photos.photo_of(faces)
    cli.note(f"measuring, with {evaluation.RESAMPLES:,} resamples of {len(set(photos.tolist())):,} photos")
    scored = [
        evaluation.Scored(
            names=predictor.spec.label_names,
            labels=np.array([of_model[label] for label in labels], np.int64),
            logits=logits[good],
            temperature=predictor.spec.temperature,
            threshold=predictor.spec.threshold,
        )
        for (_, predictor), of_model, logits in zip(models, maps, scores.logits, strict=True)
    ]
    measured = evaluation.evaluate(scored, photos, leaked, slices_of(faces), args.seed, evaluation.RESAMPLES)
    fingerprint = _fingerprint(data.folder)
    told = [
        {"name": name, **_about(predictor, fingerprint), "label_map": _told_map(data, predictor, of_model)}
        | {"crops_per_second": round(len(scores.reasons) / max(seconds, 1e-9), 1)}
        for (name, predictor), of_model, seconds in zip(models, maps, scores.seconds, strict=True)
    ]
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": installed_versions(),
        "runtime": args.runtime,
        "dataset": {
            "folder": storage.redact(data.folder),
            "fingerprint": fingerprint,
            "split": args.split,
            "label_set": data.labels.name,
            "label_names": list(data.labels.names),
        },
        "faces": {
            "looked_at": scores.rows,
            "limit": args.limit,
            "scored": len(good),
            "photos": len(set(photos.tolist())),
            "unlabelled": scores.unlabelled,
            "dropped": dict(scores.dropped),
            "not_scored": {
                str(reason): int((scores.reasons == reason).sum()) for reason in sorted(set(scores.reasons) - {""})
            },
        },
        "shared": {
            "faces": int(leaked.sum()),
            "left": int((~leaked).sum()),
            "with": {
                other: {name: int(faces[good].sum()) for name, faces in by_column.items()}
                | {"faces": int(_any([by_column], len(scores.reasons))[good].sum())}
                for other, by_column in shared.items()
            },
        },
        "intervals": {"resamples": evaluation.RESAMPLES, "level": evaluation.LEVEL, "by": "photo", "seed": args.seed},
        "models": [about | values for about, values in zip(told, measured["models"], strict=True)],
        "differences": measured["differences"],
    }


def _shared(data: DataSet, split: str, scores: Scores, others: Mapping[str, tuple[str, ...]]) -> Shared:
    """Which of the faces share a photo with what a model was fitted to (train) or chosen on (validation)."""
    earlier = SPLITS[: SPLITS.index(split)]
    places = {other: data.parts[other] for other in earlier if other in data.parts} | dict(others)
    return {other: shared_photos.shared_with(scores.faces, parts) for other, parts in places.items()}


def _any(found: Iterable[Mapping[str, NDArray[np.bool_]]], faces: int) -> NDArray[np.bool_]:
    """(faces,): shared with any of these in any way."""
    shared = np.zeros(faces, np.bool_)
    for by_column in found:
        for of_column in by_column.values():
            shared |= of_column
    return shared


def _about(predictor: Predictor, fingerprint: str) -> dict[str, Any]:
    spec = predictor.spec
    return {
        "folder": predictor.folder,
        "architecture": spec.architecture,
        "input_px": spec.input_px,
        "colour": spec.colour,
        "label_set": spec.label_set,
        "label_names": list(spec.label_names),
        "temperature": spec.temperature,
        "threshold": spec.threshold,
        "fingerprint": spec.fingerprint,
        "trained_on_this": bool(fingerprint) and spec.dataset_fingerprint == fingerprint,
    }


def _told_map(data: DataSet, predictor: Predictor, of_model: ClassMap) -> dict[str, str | None]:
    names = predictor.spec.label_names
    return {
        name: None if target is None else names[target]
        for name, target in zip(data.labels.names, of_model, strict=True)
    }


def _fingerprint(folder: str) -> str:
    """Of the data set's faces, as its summary says; empty where it says none."""
    try:
        return str(json.loads(storage.read_bytes(storage.join(folder, "summary.json"))).get("fingerprint", ""))
    except (storage.MissingFileError, ValueError):
        return ""


def _write(out: str, result: dict[str, Any], models: Models, scores: Scores, shared: NDArray[np.bool_]) -> None:
    """The table, the page, and metrics.json last: it stands for an evaluation that is complete."""
    storage.remove(storage.join(out, "metrics.json"))
    names = result["dataset"]["label_names"]
    labels = [names[label] for label in scores.faces["label"].to_pylist()]
    said = [(name, one.spec, logits) for (name, one), logits in zip(models, scores.logits, strict=True)]
    table = predictions_table(scores.faces, labels, said, scores.reasons, shared)
    parquet.write_part(storage.join(out, "predictions.parquet"), table)
    mistakes = evaluation_model.mistakes(scores, [predictor for _, predictor in models], result["models"])
    storage.write_bytes(storage.join(out, "report.html"), evaluation_page.render(result, mistakes).encode())
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    storage.write_bytes(storage.join(out, "metrics.json"), text.encode())


def _lines(result: dict[str, Any], out: str) -> list[str]:
    """What a person reads: the account of the faces, then a line a figure with a column a model."""
    faces, shared = result["faces"], result["shared"]
    failed = sum(faces["not_scored"].values())
    dropped = sum(faces["dropped"].values())
    lines = [
        f"{faces['looked_at']:,} {result['dataset']['split']} faces = {faces['scored']:,} scored + "
        f"{faces['unlabelled']:,} unlabelled + {dropped:,} of classes left out + {failed:,} not to be scored"
    ]
    if shared["faces"]:
        lines.append(
            f"{shared['faces']:,} of them share their photo with {' or '.join(shared['with'])}: "
            f"leak-free figures are of the other {shared['left']:,}"
        )
    names = [model["name"] for model in result["models"]]
    width = max(26, *(len(name) + 2 for name in names))
    lines.append(" " * 20 + "".join(f"{name:>{width}}" for name in names))
    for figure in _TOLD:
        for title, group in ((figure, "figures"), ("  leak-free", "leak_free")):
            cells = [model[group][figure] for model in result["models"] if model[group]]
            if cells:
                lines.append(f"{title:<20}" + "".join(f"{_interval(cell):>{width}}" for cell in cells))
    for difference in result["differences"]:
        cell = difference["figures"]["accuracy"]
        lines.append(f"accuracy of {names[difference['model']]} minus {names[0]}: {_interval(cell, signed=True)}")
    return [*lines, f"report      {storage.join(out, 'report.html')}"]


def _interval(cell: Mapping[str, float | None], *, signed: bool = False) -> str:
    numbers = [
        "-" if cell[name] is None else f"{cell[name]:{'+' if signed else ''}.4f}" for name in ("value", "low", "high")
    ]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _dry_run(args: argparse.Namespace, out: str, models: Models, maps: list[ClassMap], data: DataSet) -> int:
    """Score the first faces and say how long all would take."""
    rows = min(data.rows(args.split), args.limit or 2**62)
    predictors = [predictor for _, predictor in models]
    score_split(data, args.split, predictors, maps, 1)  # the first call of a network takes longer than the others
    started = time.perf_counter()
    scores = score_split(data, args.split, predictors, maps, min(rows, _DRY_FACES))
    seconds = (time.perf_counter() - started) / max(scores.rows, 1) * rows
    lines = [
        f"{rows:,} {args.split} faces, {len(models)} model{'s' if len(models) > 1 else ''}: labels and shapes fit",
        f"about {duration(seconds)} to score them, from the first {scores.rows:,}; then resamples and the report",
        f"would write metrics.json, predictions.parquet and report.html to {out}",
    ]
    result = {"faces": rows, "models": [name for name, _ in models], "sampled": scores.rows}
    cli.result(lines, result | {"seconds": round(seconds, 1), "out": out}, as_json=args.json)
    return 0
