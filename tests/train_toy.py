"""A small labelled data set for training tests: faces of 16 px whose class is told by a bright bar, in uneven parts."""

import json
from pathlib import Path

import cv2
import numpy as np

from dataset_tools import parquet
from dataset_tools.encoding import encode
from schemas.labels import LabelSet
from schemas.model import ModelSpec
from schemas.tables import FaceRow, faces_schema, to_table
from tests import toy

SIDE = 16
LABELS = LabelSet("toy-3", ("left", "middle", "right"))
SPEC = ModelSpec("tiny", SIDE, "grey", LABELS.name, LABELS.names, {})


def picture(label: int, number: int) -> np.ndarray:
    """(16, 16, 3) uint8: noise with a bar in the third that the label names."""
    pixels = np.random.default_rng(number).integers(0, 120, (SIDE, SIDE, 3), np.uint8)
    pixels[:, 1 + 5 * label : 5 + 5 * label] += 30
    return cv2.blur(pixels, (2, 2))


def row(split: str, number: int, label: int | None, **changes: object) -> FaceRow:
    data = {"bytes": encode(picture(label or 0, number), "png"), "path": f"{split}-{number}.png"}
    phash = f"{number:04x}{split.encode().hex():0<12}"[:16]
    box = (0.0, 0.0, float(SIDE), float(SIDE))
    values = {"image": data, "label": label, "source_phash": phash} | changes
    return toy.face(f"{split}-{number}", split, box, **values)


def build(out: str, train: int = 45, validation: int = 20, parts: int = 2, **changes: object) -> str:
    """A folder with this many labelled faces; class 0 is rare. changes: of every row."""
    for split, count in (("train", train), ("validation", validation)):
        rows = [row(split, number, (0, 1, 1, 2, 2)[number % 5], **changes) for number in range(count)]
        for part in range(parts):
            edges = [round(count * edge / parts) for edge in (part, part + 1)]
            write(out, split, part, parts, rows[edges[0] : edges[1]])
    return out


def write(out: str, split: str, part: int, parts: int, rows: list[FaceRow]) -> None:
    schema = faces_schema(LABELS, {"recipe": {"crop": {"aligned": True, "margin": 0.2, "size_px": SIDE}}})
    parquet.write_part(parquet.data_part(out, split, part, parts), to_table(rows, schema))


def known_to_ray(out: Path) -> int:
    """The checkpoints that Ray will go on from. It learns of one up to half a second after its files are there, in
    which a network of this size is two epochs further."""
    try:
        told = json.loads((out / "checkpoints" / "checkpoint_manager_snapshot.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not yet, or just being written
        return 0
    return len(told["checkpoint_results"])


def tiny_model(dropout: float = 0.0, seed: int = 0):
    """A network of a few hundred weights with BatchNorm and dropout, built like the real ones."""
    import keras

    from train import models

    keras.utils.set_random_seed(seed)
    shape = (SIDE, SIDE, 1)
    inputs = keras.Input(shape)
    x = models._conv_norm(inputs, 4, 3, 2)
    base = keras.Model(inputs, keras.layers.Activation("relu")(x), name="base")
    return models._assemble(shape, len(LABELS.names), base, models._pooled, dropout)
