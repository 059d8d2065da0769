"""The story of one export: load the master and some real faces, convert, compare, and only then publish and tell."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: its notes help nobody here

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset_tools import storage
from train.card import with_export
from train.data import DataError
from train.export import FORMATS, TOLERANCE, Agreement, ExportError, MasterError, export, load_master
from train.some_faces import some_faces
from workflows import cli


def export_model(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code. Raises cli.UserError and cli.RunError."""
    try:
        return _export(args)
    except (MasterError, DataError, storage.MissingFileError) as error:
        raise cli.UserError(str(error)) from None
    except (OSError, ExportError) as error:
        raise cli.RunError(str(error)) from None


def _export(args: argparse.Namespace) -> int:
    folder, name = storage.normalize(args.model), FORMATS[args.to].file
    model, spec = load_master(folder)
    place = storage.join(folder, name)
    last = place if args.to != "savedmodel" else storage.join(place, "saved_model.pb")
    if storage.exists(last) and not (args.overwrite or args.dry_run):
        raise cli.UserError(f"{storage.redact(folder)} has {name} already: replace it with --overwrite")
    dataset = _dataset(args, folder)
    faces, split = some_faces(dataset, spec)
    told = f"{len(faces)} {split} faces of {storage.redact(dataset)}"
    if args.dry_run:
        lines = [f"would write {storage.redact(place)}", f"compared with model.keras on {told}"]
        cli.result(lines, {"file": name, "faces": len(faces), "split": split, "out": folder}, as_json=args.json)
        return 0
    cli.note(f"writing {name}, and comparing it with model.keras on {told}")
    with tempfile.TemporaryDirectory(prefix="facemill-export-") as local:
        with cli.muted():  # TensorFlow's converter writes to standard error what no setting stops
            agreement = export(model, args.to, Path(local), faces, spec.temperature)
        if not agreement.tells:
            raise cli.UserError(
                f"the probabilities of {told} lie at most {agreement.spread:.1e} apart, so that any two files agree on "
                "them: train the model to more than that, or name faces that differ with --faces"
            )
        size = _publish(Path(local) / name, place)
    _tell(folder, args.to, name, agreement, size)
    lines = [
        f"{name}: {size / 1e6:.1f} MB; differs from model.keras by at most {agreement.largest_difference:.1e} in a "
        f"probability of {told} (allowed: {TOLERANCE:g}), whose probabilities lie up to {agreement.spread:.2f} apart",
        f"written     {storage.redact(place)}",
    ]
    result = {"file": name, "bytes": size, **asdict(agreement), "split": split, "out": folder}
    cli.result(lines, result, as_json=args.json)
    return 0


def _dataset(args: argparse.Namespace, folder: str) -> str:
    """What --faces names, or else what run.json says that the model was trained on."""
    if args.faces:
        return storage.normalize(args.faces)
    run = storage.join(folder, "run.json")
    named = json.loads(storage.read_bytes(run)).get("dataset", "") if storage.exists(run) else ""
    if not named or not storage.is_folder(named):
        where = f"is not at {named} any more" if named else "is not named in its folder"
        raise cli.UserError(f"the data set that the model was trained on {where}: name a face data set with --faces")
    return str(named)


def _publish(made: Path, place: str) -> int:
    """Copy a file or a folder to its place, and say its bytes. A SavedModel is one when its saved_model.pb is there."""
    if made.is_file():
        storage.write_bytes(place, made.read_bytes())
        return made.stat().st_size
    storage.remove_tree(place)
    files = sorted((path for path in made.rglob("*") if path.is_file()), key=lambda path: path.name == "saved_model.pb")
    for path in files:
        storage.write_bytes(storage.join(place, path.relative_to(made).as_posix()), path.read_bytes())
    return sum(path.stat().st_size for path in files)


def _tell(folder: str, kind: str, name: str, agreement: Agreement, size: int) -> None:
    """The numbers into the card and, where training has ended, into metrics.json."""
    card = storage.join(folder, "README.md")
    text = storage.read_bytes(card).decode() if storage.exists(card) else ""
    storage.write_bytes(card, with_export(text, name, agreement, size).encode())
    metrics = storage.join(folder, "metrics.json")
    if storage.exists(metrics):
        figures: dict[str, Any] = json.loads(storage.read_bytes(metrics))
        figures[kind] = asdict(agreement)
        storage.write_bytes(metrics, (json.dumps(figures, indent=2) + "\n").encode())
