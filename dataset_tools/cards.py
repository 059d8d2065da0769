"""The data set card: a finished data set folder in, README.md out, as the Hugging Face Hub and a colleague read it.

Its front matter tells `load_dataset` which Parquet files are faces and which are the ledger, so that the folder loads
as it is. What a column means is said once, in COLUMNS. Names from outside are escaped, and none is in the front matter.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from dataset_tools import storage
from schemas.manifest import Manifest
from schemas.tables import FACES, LEDGER, SPLITS

COLUMNS = {
    "faces": {
        "image": "the crop, encoded, and a file name for it",
        "label": "expression, an id of the label set; null where it is not known",
        "key": "the photo it comes from: path, URL, or archive and member",
        "source_sha256": "SHA-256 of the photo's bytes",
        "source_phash": "perceptual hash of the photo, 64 bits in hex",
        "face_index": "which of the photo's faces, in the detector's order",
        "bbox": "x1, y1, x2, y2 in pixels of the upright photo",
        "landmarks": "x, y of the eye on the left of the image, the other eye, the nose, the mouth corner on the left, "
        "the other corner, in pixels of the upright photo; nan where the source gives none",
        "score": "of the detection, 0 to 1; null where no detector looked",
        "crop_aligned": "whether the crop is aligned by the landmarks",
        "crop_margin": "added on each side, as a fraction of the square",
        "crop_size_px": "side of the crop, in pixels",
        "sharpness": "variance of the Laplacian of the crop's luminance (0 to 255) at 112 px",
        "luminance_mean": "of the crop, 0 (black) to 1 (white)",
        "inter_eye_distance_px": "between the eyes, in pixels of the photo",
        "head_roll_deg": "of the line between the eyes, in degrees, positive when the eye on the right is lower",
        "source_width_px": "of the upright photo, in pixels",
        "source_height_px": "of the upright photo, in pixels",
        "valence": "as the source gives it, -1 to 1; null where it does not",
        "arousal": "as the source gives it, -1 to 1; null where it does not",
        "split": "train, validation or test",
        "votes": "number of annotators for each class of the label set, in its order; null where they are not known",
        "pixels_sha256": "SHA-256 of the decoded photo, in a labelled set; equal for exact copies",
    },
    "ledger": {
        "key": "the image: path, URL, or archive and member",
        "sha256": "of its bytes; null where they could not be read",
        "bytes": "size of the file",
        "format": "what it turned out to be",
        "width_px": "upright, in pixels",
        "height_px": "upright, in pixels",
        "status": "ok, no_face or failed",
        "reason": "why it failed, else null",
        "detail": "the same in words",
        "faces": "number written",
        "faces_screened": "number held back by the quality bounds",
        "phash": "perceptual hash, 64 bits in hex",
        "split": "train, validation or test",
        "seconds": "of one worker, spent on it",
        "pixels_sha256": "SHA-256 of the decoded picture, in a labelled set; equal for exact copies",
    },
}
"""What each column of the two tables holds, with its unit."""

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")
"""The Hub's names for numbers of rows: below a thousand, then by powers of ten."""


def write_card(out: str) -> str:
    """Make OUT/README.md of a data set folder whose summary.json is written; returns its URL."""
    manifest = Manifest.from_json(storage.read_bytes(storage.join(out, "manifest.json")))
    summary = json.loads(storage.read_bytes(storage.join(out, "summary.json")))
    url = storage.join(out, "README.md")
    storage.write_bytes(url, render(manifest, summary).encode())
    return url


def render(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    """The card as text."""
    sections = [
        _front_matter(summary),
        "# Faces\n\n" + _story(manifest, summary),
        "## Counts\n\n" + _counts(summary),
        "## How the faces were made\n\n" + _recipe(manifest),
        "## Load it\n\n" + _loading(manifest, summary),
        "## Columns\n\nOne row a face, in `data/`:\n\n" + _columns("faces", FACES),
        "One row an input image, whatever became of it, in `ledger/`:\n\n" + _columns("ledger", LEDGER),
        "## Parameters and versions\n\n" + _table(("parameter", "value"), flat(manifest.parameters).items()),
        _table(("package", "version"), manifest.versions.items()),
        "## Rights\n\nThe photos and the faces in them belong to their owners, and this card grants no licence to "
        "them. Faces are personal data in many places: ask before you publish or share them.",
    ]
    return "\n\n".join(sections) + "\n"


def loading_snippets(out: str, manifest: Manifest, summary: Mapping[str, Any]) -> dict[str, str]:
    """By reader, the lines of Python that load this data set from `out`, a path or a URL."""
    split = next((split for split in SPLITS if split in summary["splits"]), None)
    snippets = {}
    if split is not None:
        files = {split: f"{out}/data/{split}-*.parquet"}
        found = repr(out) if storage.is_local(out) else f'"parquet", data_files={files!r}'
        snippets["Hugging Face datasets"] = (
            f'from datasets import load_dataset\n\nfaces = load_dataset({found}, split="{split}")\n'
            'faces[0]["image"]  # a PIL image'
        )
        snippets["pandas"] = (
            f"import pandas as pd\n\nfaces = pd.read_parquet(\n    {f'{out}/data'!r},\n"
            '    columns=["key", "bbox", "score", "split"])'
        )
    if manifest.parameters.get("yolo", "off") != "off" and summary["ok"] + summary["no_face"]:
        pose = "-pose" if manifest.parameters["yolo"] == "pose" else ""
        copied = manifest.parameters.get("yolo_images") == "copy"
        snippets["YOLO"] = (
            "from ultralytics import YOLO\n\n"
            + ("" if copied else "# first bring the photos, under the names in sources.csv\n")
            + f'YOLO("yolo11n{pose}.pt").train(\n    data={f"{out}/yolo/data.yaml"!r})'
        )
    snippets["What became of each image"] = (
        f"import pandas as pd\n\nledger = pd.read_parquet({f'{out}/ledger'!r})\n"
        'ledger.groupby(["status", "reason"], dropna=False).size()'
    )
    return snippets


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters as one level, names joined by dots."""
    pairs: dict[str, Any] = {}
    for name, value in values.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return pairs


def _front_matter(summary: Mapping[str, Any]) -> str:
    size = _SIZES[min(max(len(str(summary["faces"])) - 3, 0), len(_SIZES) - 1)]
    lines = [
        "---",
        "pretty_name: Faces",
        "task_categories:",
        "- image-classification",
        "tags:",
        "- faces",
        "- facial-expression-recognition",
        "- facemill",
        "size_categories:",
        f"- {size}",
        "configs:",
    ]
    if summary["splits"]:
        lines += ["- config_name: faces", "  default: true", "  data_files:"]
        for split in (split for split in SPLITS if split in summary["splits"]):
            lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    lines += ["- config_name: ledger", "  data_files:", "  - split: images", "    path: ledger/*.parquet", "---"]
    return "\n".join(lines)


def _story(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    sources = ", ".join(_md(source) for source in manifest.sources)
    return (
        f"{summary['faces']:,} faces from {summary['images']:,} images, made by `{manifest.command}` of facemill "
        f"{_md(manifest.versions.get('facemill', ''))} on {_md(manifest.created[:10])} from {sources}. "
        "`report.html` shows a sample of them.\n\n"
        f"Fingerprint `{summary['fingerprint']}`: the same images, parameters and versions give the same one."
    )


def _counts(summary: Mapping[str, Any]) -> str:
    rows = [
        ("images", summary["images"]),
        ("… with faces", summary["ok"]),
        ("… without a face", summary["no_face"]),
        ("… failed", summary["failed"]),
        *((f"…… {reason}", count) for reason, count in sorted(summary["reasons"].items())),
        ("faces written", summary["faces"]),
        *((f"… {split}", summary["splits"][split]) for split in SPLITS if split in summary["splits"]),
        *(
            [(f"dropped: {why}", count) for why, count in sorted(summary["dropped"].items())]
            if "dropped" in summary
            else [("faces held back by the quality bounds", summary["faces_screened"])]
        ),
    ]
    counts = _table(("what", "number"), ((name, f"{count:,}") for name, count in rows))
    classes: Mapping[str, Mapping[str, int]] = summary.get("classes", {})
    if not classes:
        return counts
    names = list(dict.fromkeys(name for of_split in classes.values() for name in of_split))
    lines = ((name, *(f"{of_split.get(name, 0):,}" for of_split in classes.values())) for name in names)
    return f"{counts}\n\n{_table(('class', *classes), lines)}"


def _recipe(manifest: Manifest) -> str:
    """In words, from the parameters of crop-faces; what a command does not have is not said."""
    recipe = manifest.parameters.get("recipe", {})
    detector, crop, fractions = recipe.get("detector"), recipe.get("crop"), recipe.get("split")
    told = []
    if detector:
        score = "its own least score" if detector["min_score"] is None else f"a score of {detector['min_score']} and up"
        told.append(f"- Detector: {_md(detector['name'])}, faces of {detector['min_face_px']} px and up, {score}.")
    if crop:
        how = "aligned by five landmarks to ArcFace's template" if crop["aligned"] else "the upright square of the box"
        told.append(
            f"- Crop: {crop['size_px']} px, {how}, with a margin of {crop['margin']:g} of the side all round; "
            f"{_md(crop['format'])}, quality {crop['quality']}. Pixels come from the original photo."
        )
    bounds = {name: value for name, value in recipe.get("screen", {}).items() if value is not None}
    if "screen" in recipe:
        said = ", ".join(f"`{name}` {value:g}" for name, value in bounds.items()) or "none"
        told.append(f"- Quality bounds: {said}.")
    if fractions:
        shares = ", ".join(f"{split} {share:g}" for split, share in zip(SPLITS, fractions, strict=True))
        told.append(
            f"- Split: {shares}, seed {recipe.get('seed', 0)}, drawn from the photo's perceptual hash: all faces of a "
            "photo, and of others with the same hash, lie in one split, and photos added later move none. "
            "`report.html` tells whether photos that are almost the same lie apart."
        )
    if "format" in manifest.parameters and not crop:
        told.append("- Pictures and splits: as the published set gives them.")
    if "label_set" in manifest.parameters:
        told.append(f"- Label set: {_md(manifest.parameters['label_set'])}.")
    return "\n".join(told) or "See the parameters below."


def _loading(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    snippets = loading_snippets("/path/to/this/folder", manifest, summary)
    return "\n\n".join(f"{name}:\n\n```python\n{code}\n```" for name, code in snippets.items())


def _columns(table: str, schema: pa.Schema) -> str:
    lines = ["| column | type | what it holds |", "|---|---|---|"]
    lines += [f"| `{column.name}` | {_kind(column.type)} | {COLUMNS[table][column.name]} |" for column in schema]
    return "\n".join(lines)


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} × {_kind(kind.value_type)}"
    if pa.types.is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "{" + ", ".join(f"{child.name}: {_kind(child.type)}" for child in kind) + "}"
    return {pa.float32(): "float32"}.get(kind, str(kind))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cells(values: Sequence[Any]) -> str:
        return f"| {' | '.join(_md('not set' if value is None else value) for value in values)} |"

    return "\n".join([cells(head), "|---" * len(head) + "|", *(cells(row) for row in rows)])


def _md(value: Any) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, one line."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]#!|~$@])", r"\\\1", escape(text, quote=False))
