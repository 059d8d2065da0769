"""The end of an import-labels run: leaks found and taken out, counts added up, card and report written, and told."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset_tools import cards, leaks, parquet, report, storage
from dataset_tools.importers.annotations import DROPPED
from dataset_tools.importers.shard import LEAK, drop_faces
from dataset_tools.run_folder import RunFolder
from schemas.manifest import Manifest
from schemas.tables import facemill_metadata
from workflows.progress import duration
from workflows.sums import Effort, add_up, write_summary


def finish(folder: RunFolder, manifest: Manifest, effort: Effort) -> dict[str, Any]:
    """Take leaks out if the run is to, add up, and write summary.json, the card and the report; returns the summary."""
    drop = manifest.parameters["drop_leaks"]
    found = leaks.of_data_set(folder.out, near=drop != "exact", dropped=DROPPED + LEAK)
    if drop is not None:
        _drop(folder, manifest.shards, found)
    summary = add_up(folder, manifest, effort, listed_in="set")
    summary |= {name: manifest.parameters[name] for name in ("format", "label_set")}
    summary |= {"classes": _classes(folder.out)}
    summary |= {"dropped": _dropped(folder.out), "leaks": found.to_dict()}
    write_summary(folder, summary)
    cards.write_card(folder.out)
    report.write_report(folder.out)
    return summary


def _drop(folder: RunFolder, shards: int, found: leaks.Leaks) -> None:
    """Rewrite the shards that hold faces to be dropped: a repeated command finds none, since their ledger tells so."""
    keys = pa.array(sorted(found.to_drop), pa.string())
    for shard in range(shards):
        ledger = parquet.read_part(parquet.ledger_part(folder.out, shard), ["key", "faces"])
        leaked = pc.and_(pc.is_in(ledger["key"], keys), pc.greater(ledger["faces"], 0))
        if pc.any(leaked).as_py():
            drop_faces(folder.out, shard, shards, found.to_drop)


def _classes(out: str) -> dict[str, dict[str, int]]:
    """Faces by split and class name."""
    classes: dict[str, Counter[str]] = {}
    for split, url in parquet.data_parts(out):
        table = parquet.read_part(url, ["label"])
        names = facemill_metadata(table.schema)["label_names"]
        counts = np.bincount(table["label"].drop_null().to_numpy(), minlength=len(names))
        classes.setdefault(split, Counter()).update(dict(zip(names, counts.tolist(), strict=True)))
    return {split: dict(counts) for split, counts in classes.items()}


def _dropped(out: str) -> dict[str, int]:
    """Images that are well but not in the data set, by why."""
    why: Counter[str] = Counter()
    for url in parquet.parts(storage.join(out, "ledger")):
        details = parquet.read_part(url, ["detail"])["detail"].drop_null()
        for entry in pc.value_counts(details.filter(pc.starts_with(details, DROPPED))).to_pylist():
            why[entry["values"].removeprefix(DROPPED)] += entry["counts"]
    return dict(sorted(why.items()))


def told(summary: dict[str, Any], folder: RunFolder) -> list[str]:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(summary["reasons"].items()))
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(summary["splits"].items()))
    found = summary["leaks"]
    return [
        f"{summary['images']:,} images = {summary['faces']:,} faces ({splits or 'none'}) + "
        f"{sum(summary['dropped'].values()):,} dropped + {summary['no_face']:,} without a face + "
        f"{summary['failed']:,} failed" + (f" ({reasons})" if reasons else ""),
        *(f"dropped     {count:,}: {why}" for why, count in summary["dropped"].items()),
        *class_lines(summary["classes"], summary["label_set"]),
        f"copies      {found['exact_groups']:,} groups of identical pictures lie in several splits "
        f"({found['exact_images']:,} images), {found['near_groups']:,} of almost identical ones "
        f"({found['near_images']:,} images)",
        f"{duration(summary['wall_seconds'])} at {summary['images_per_second']} images/s",
        f"fingerprint {summary['fingerprint']}",
        f"data set    {folder.out}",
        f"report      {folder.at('report.html')}",
    ]


def class_lines(classes: dict[str, dict[str, int]], name: str) -> list[str]:
    names = list(dict.fromkeys(label for counts in classes.values() for label in counts))
    if len(names) > 30:
        return [f"{name}: {len(names)} classes"]
    sums = {label: [counts.get(label, 0) for counts in classes.values()] for label in names}
    head = f"{name:<12}" + "".join(f"{split:>12}" for split in classes)
    return [head, *(f"  {label:<10}" + "".join(f"{count:>12,}" for count in row) for label, row in sums.items())]
