"""A small data set folder made by hand, so that tests know every number in it: 3 shards, 7 photos, 6 faces, 2 failures.

Rows are stated here and not computed by a detector, the crops and pictures are drawn with numpy, and the project's own
writers put them on disk.
"""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dataset_tools import parquet, storage, yolo
from dataset_tools.counts import Counts
from dataset_tools.detection import Face
from dataset_tools.faces import Recipe
from schemas.labels import AFFECTNET_8
from schemas.manifest import Manifest
from schemas.outcomes import Reason, Status
from schemas.tables import FaceRow, LedgerRow, faces_schema, ledger_schema, to_table

WIDTH_PX, HEIGHT_PX = 320, 240
Photo = tuple[LedgerRow, list[FaceRow]]


def jpeg(width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX, shade: int = 90, **options: Any) -> bytes:
    """A picture of a soft gradient with a bright disc in it. options: Pillow's for saving."""
    y, x = np.mgrid[:height_px, :width_px]
    disc = (x - width_px / 2) ** 2 + (y - height_px / 2) ** 2 < (min(width_px, height_px) / 3) ** 2
    grey = np.clip(shade + 60 * x / width_px + 70 * disc, 0, 255)
    pixels = np.stack([grey, grey * 0.85, grey * 0.7], axis=-1).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=90, **options)
    return data.getvalue()


def found(box: tuple[float, ...]) -> Face:
    """A detection of this box, with the landmarks of `face`."""
    row = face("k", "train", box)
    return Face(row.bbox, row.landmarks, row.score)


def face(key: str, split: str, box: tuple[float, ...], index: int = 0, **changes: Any) -> FaceRow:
    """One face, with landmarks at a third and two thirds of its box. changes: other values of its row."""
    x1, y1, x2, y2 = box
    left, right, middle = x1 + (x2 - x1) / 4, x2 - (x2 - x1) / 4, (x1 + x2) / 2
    upper, lower = y1 + (y2 - y1) / 4, y2 - (y2 - y1) / 4
    values: dict[str, Any] = {
        "image": {"bytes": jpeg(112, 112, shade=40 + 20 * index), "path": f"face-{index:03d}.jpg"},
        "label": None,
        "key": key,
        "source_sha256": key.encode().hex().ljust(64, "0")[:64],
        "source_phash": "0123456789abcdef",
        "face_index": index,
        "bbox": box,
        "landmarks": ((left, upper), (right, upper), (middle, (y1 + y2) / 2), (left, lower), (right, lower)),
        "score": 0.98,
        "crop_aligned": True,
        "crop_margin": 0.2,
        "crop_size_px": 112,
        "sharpness": 150.0,
        "luminance_mean": 0.5,
        "inter_eye_distance_px": right - left,
        "head_roll_deg": 0.0,
        "source_width_px": WIDTH_PX,
        "source_height_px": HEIGHT_PX,
        "valence": None,
        "arousal": None,
        "split": split,
    }
    return FaceRow(**{**values, **changes})


def photo(
    key: str, split: str, faces: Sequence[FaceRow] = (), phash: str = "0123456789abcdef", screened: int = 0
) -> Photo:
    """A photo that could be read, with its faces."""
    row = LedgerRow(
        key=key,
        sha256=key.encode().hex().ljust(64, "0")[:64],
        bytes=1000,
        format="JPEG",
        width_px=WIDTH_PX,
        height_px=HEIGHT_PX,
        status=Status.OK if faces or screened else Status.NO_FACE,
        reason=None,
        detail=None,
        faces=len(faces),
        faces_screened=screened,
        phash=phash,
        split=split,
        seconds=0.5,
    )
    return row, list(faces)


def failure(key: str, reason: Reason = Reason.TRUNCATED, detail: str = "the file ends early") -> Photo:
    """A photo that could not be read."""
    empty: dict[str, Any] = dict.fromkeys(LedgerRow.__dataclass_fields__)
    values = {"key": key, "status": Status.FAILED, "reason": reason, "detail": detail, "faces": 0, "faces_screened": 0}
    return LedgerRow(**{**empty, **values, "bytes": 10, "seconds": 0.25}), []


def shards() -> list[list[Photo]]:
    """The data set: a.jpg and its almost equal copy lie in different splits, edge.jpg's face reaches out of it."""
    a = [
        face("in/a.jpg", "train", (20.0, 30.0, 80.0, 100.0), label=1, valence=0.5, arousal=-0.25),
        face("in/a.jpg", "train", (150.25, 40.5, 230.75, 140.0), 1, score=0.75, sharpness=8.0),
    ]
    edge = [face("in/edge.jpg", "train", (-10.0, 200.0, 50.0, 250.0), score=0.91)]
    copy = [face("in/a copy.jpg", "test", (20.0, 30.0, 80.0, 100.0), score=0.97)]
    held = [face("in/b.jpg", "validation", (100.0, 100.0, 180.0, 200.0), score=0.99, label=0)]
    last = [face("pack.tar#members/c.jpg", "validation", (60.0, 60.0, 100.0, 110.0), score=0.85)]
    return [
        [
            photo("in/a.jpg", "train", a),
            failure("in/broken.jpg"),
            photo("in/edge.jpg", "train", edge, "00ff00ff00ff00ff"),
        ],
        [
            photo("in/a copy.jpg", "test", copy, "0123456789abcdec"),
            photo("in/wall.jpg", "train", (), "f0f0f0f0f0f0f0f0"),
        ],
        [
            photo("in/b.jpg", "validation", held, "ffff0000ffff0000", screened=1),
            failure("in/page.jpg", Reason.NOT_AN_IMAGE, "an HTML page"),
            photo("pack.tar#members/c.jpg", "validation", last, "aaaa5555aaaa5555"),
        ],
    ]


def build(
    out: str,
    data: list[list[Photo]] | None = None,
    *,
    sources: tuple[str, ...] = ("in", "pack.tar"),
    ignored: dict[str, int] | None = None,
    labels: str = "boxes",
    images: bool = True,
) -> list[FaceRow]:
    """Write the folder of a finished run, without card and report; returns its faces. labels, images: for YOLO."""
    data = shards() if data is None else data
    total = Counts()
    schema = faces_schema(AFFECTNET_8, {"recipe": Recipe().to_dict()})
    for number, photos in enumerate(data):
        counts = Counts()
        with parquet.FaceWriter(out, number, len(data), schema) as writer:
            for row, faces in photos:
                counts.add_image(row, faces)
                for one in faces:
                    writer.add(one)
                if row.split is not None:
                    _write_yolo(out, row, faces, labels, images)
        parquet.write_part(parquet.ledger_part(out, number), to_table([row for row, _ in photos], ledger_schema()))
        marker = {"shard": number} | counts.to_dict()
        storage.write_bytes(storage.join(out, "done", f"{number:05d}.json"), json.dumps(marker).encode())
        total.add(counts)
    manifest = Manifest(
        command="crop-faces",
        sources=sources,
        images=total.images,
        bytes=total.bytes,
        ignored={".txt": 2, "": 1} if ignored is None else ignored,
        listing_fingerprint="0" * 64,
        shards=len(data),
        shard_images=4,
        parameters={
            "recipe": Recipe().to_dict(),
            "label_set": AFFECTNET_8.name,
            "yolo": labels,
            "yolo_images": "copy" if images else "none",
        },
        created="2026-11-21T01:40:00+00:00",
    )
    summary = total.to_dict() | {"wall_seconds": 80.0, "workers": 2, "images_per_second": total.images / 80}
    storage.write_bytes(storage.join(out, "manifest.json"), manifest.to_json())
    yolo.write_index(out, images=images, pose=labels == "pose")
    storage.write_bytes(storage.join(out, "summary.json"), json.dumps(summary).encode())
    return [one for photos in data for _, faces in photos for one in faces]


def _write_yolo(out: str, row: LedgerRow, faces: list[FaceRow], labels: str, images: bool) -> None:
    name = yolo.image_name(row.key)
    lines = yolo.label_lines(
        [Face(one.bbox, one.landmarks, one.score) for one in faces], WIDTH_PX, HEIGHT_PX, pose=labels == "pose"
    )
    storage.write_bytes(yolo.label_url(out, str(row.split), name), lines.encode())
    if images:
        storage.write_bytes(yolo.image_url(out, str(row.split), name), jpeg())
