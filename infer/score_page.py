"""The page of a scoring run: its folder in, one self-contained report.html out, in the look of a data set's report.

Names of files, classes and details come from strangers: each passes `escape`. One pass over the parts, a few columns at
a time; crops are those that the workers kept, as the network saw them.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_tools import charts, figures, parquet, storage
from dataset_tools.cards import flat
from dataset_tools.report import duration, size
from dataset_tools.survey import Histogram
from infer.evaluation_text import key, plural
from schemas.manifest import Manifest
from schemas.model import ModelSpec

_OF_A_CLASS = 6
_LEAST_SURE = 12
_EXAMPLES = 5
_BATCH_ROWS = 16384


@dataclass
class _Found:
    """What one pass over the parts gives."""

    confidence: Histogram = field(default_factory=lambda: Histogram.between(0, 1, 0.005, bar_bins=4))
    face_px: Histogram = field(default_factory=lambda: Histogram.between(3, 14, 1 / 32, log=True, bar_bins=4))
    sums: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    samples: list[dict[str, Any]] = field(default_factory=list)


def write_report(out: str, manifest: Manifest, summary: Mapping[str, Any], spec: ModelSpec) -> str:
    """Make OUT/report.html of a run whose parts are all there; returns its URL."""
    url = storage.join(out, "report.html")
    storage.write_bytes(url, render(out, manifest, summary, spec, _look(out)).encode())
    return url


def render(out: str, manifest: Manifest, summary: Mapping[str, Any], spec: ModelSpec, found: "_Found") -> str:
    sections = [
        _counts(summary),
        _expressions(summary, spec, found),
        _samples(spec, found),
        _measures(found),
        _failures(manifest, summary, out, found),
        _use(out, spec),
        _run(manifest, summary),
    ]
    template = Template(resources.files("dataset_tools").joinpath("report.html.tmpl").read_text("utf-8"))
    return template.substitute(
        style=charts.style(),
        title=f"{summary['faces']:,} faces scored · facemill score",
        command="score",
        headline=f"{plural(summary['faces'], 'face')} scored in {plural(summary['images'], 'image')}",
        facts=_facts(manifest, summary),
        sections="\n".join(f"<section>{section}</section>" for section in sections if section),
        version=escape(manifest.versions.get("facemill", "")),
    )


def _look(out: str) -> _Found:
    found = _Found()
    for batch in _batches(out, "predictions", ["expression", "confidence", "bbox"]):
        confidence = batch["confidence"].to_numpy(zero_copy_only=False).astype(np.float64)
        found.confidence.add(confidence)
        box = batch["bbox"].flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)
        found.face_px.add(np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]))
        names = batch["expression"].to_pylist()
        for name, value in zip(names, confidence.tolist(), strict=True):
            found.sums[name] += value
    for batch in _batches(out, "failures", ["key", "face_index", "reason", "detail"]):
        for row in batch.to_pylist():
            examples = found.failures[row["reason"]]
            if row["face_index"] is None and len(examples) < _EXAMPLES:
                examples.append((row["key"], row["detail"] or ""))
    for batch in _batches(out, "samples", None):
        found.samples += batch.to_pylist()
        found.samples = _best(found.samples)
    return found


def _batches(out: str, folder: str, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    for url in parquet.parts(storage.join(out, folder)):
        with storage.open_read(url) as file:
            yield from pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns)


def _best(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The surest of each class and the least sure of all; a face is there once."""
    samples = sorted(samples, key=lambda row: (row["confidence"], row["key"], row["face_index"]))
    kept = {(row["key"], row["face_index"]): row for row in samples[:_LEAST_SURE]}
    taken: Counter[str] = Counter()
    for row in reversed(samples):
        taken[row["expression"]] += 1
        if taken[row["expression"]] <= _OF_A_CLASS:
            kept[row["key"], row["face_index"]] = row
    return list(kept.values())


def _facts(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    when = datetime.fromisoformat(manifest.created)
    shown = [key(source) for source in manifest.sources[:3]]
    more = [f"and {len(manifest.sources) - 3:,} more"] if len(manifest.sources) > 3 else []
    facts = {
        "Source" if len(manifest.sources) == 1 else "Sources": "<br>".join([*shown, *more]),
        "Model": key(summary["model"]),
        "Started": f"{when.day} {when:%B %Y, %H:%M} UTC",
        "Took": duration(summary["wall_seconds"])
        + (f" with {plural(summary['workers'], 'worker')}" if summary["workers"] else ""),
        "Speed": f"{summary['images_per_second']:,.1f} images/s",
        "Read": size(summary["bytes"]),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _counts(summary: Mapping[str, Any]) -> str:
    images = summary["images"]
    parts = [
        ("scored", summary["scored"], "main"),
        ("without a face", summary["no_face"], "quiet"),
        ("failed", summary["failed"], "bad"),
    ]
    bar = figures.stacked_bar(parts, f"what became of {images:,} images")
    blocks = [f"<div><h3>Every image is accounted for</h3>{bar}</div>"]
    faces = [
        ("sure", summary["faces"] - summary["not_sure"], "main"),
        ("not sure", summary["not_sure"], "third"),
        ("could not be scored", summary["faces_failed"], "bad"),
    ]
    wanted = [part for part in faces if part[1] or part[0] == "sure"]
    bar = figures.stacked_bar(wanted, f"what became of {summary['faces'] + summary['faces_failed']:,} faces")
    blocks.append(f"<div><h3>{plural(summary['faces'] + summary['faces_failed'], 'face')} found</h3>{bar}</div>")
    if summary["ignored"]:
        total = sum(summary["ignored"].values())
        kinds = sorted(summary["ignored"].items(), key=lambda entry: (-entry[1], entry[0]))[:12]
        named = ", ".join(f"{count:,} {key(kind) if kind else 'without a suffix'}" for kind, count in kinds)
        left = f"{plural(total, 'thing')} beside the images {'was' if total == 1 else 'were'} left alone"
        blocks.append(f"<div><h3>Ignored</h3><p>{left}: {named}.</p></div>")
    return f'<div class="pair">{"".join(blocks)}</div>'


def _expressions(summary: Mapping[str, Any], spec: ModelSpec, found: _Found) -> str:
    counts = summary["expressions"]
    total = sum(counts.values())
    rows = ""
    for name in sorted(spec.label_names, key=lambda name: (-counts.get(name, 0), name)):
        count = counts.get(name, 0)
        mean = f"{found.sums[name] / count:.2f}" if count else ""
        share = figures.share(count, total)
        rows += f"<tr><th>{escape(name)}</th><td>{count:,}</td><td>{share}</td><td>{mean}</td></tr>"
    note = "By the most probable class of each face. What a face shows, not what a person feels."
    head = "<tr><th></th><td>faces</td><td>share</td><td>mean confidence</td></tr>"
    return f'<h2>Expressions</h2><p class="soft">{note}</p><table class="figures">{head}{rows}</table>'


def _samples(spec: ModelSpec, found: _Found) -> str:
    if not found.samples:
        return "<h2>Faces</h2><p>No face was scored, so there is none to show.</p>"
    by_confidence = sorted(found.samples, key=lambda row: (-row["confidence"], row["key"], row["face_index"]))
    blocks = []
    for name in spec.label_names:
        rows = [row for row in by_confidence if row["expression"] == name][:_OF_A_CLASS]
        if rows:
            blocks.append(f"<div><h3>{escape(name)}</h3>{_grid(rows)}</div>")
    doubts = by_confidence[::-1][:_LEAST_SURE]
    note = "As the network saw them, with its confidence."
    return (
        f'<h2>The surest of each expression</h2><p class="soft">{note}</p><div class="pair">{"".join(blocks)}</div>'
        f'<h2 style="margin-top:34px">The least sure</h2>{_grid(doubts, named=True)}'
    )


def _grid(rows: Sequence[Mapping[str, Any]], *, named: bool = False) -> str:
    items = []
    for row in rows:
        title = f"{row['key']} · face {row['face_index']} · {row['expression']} {row['confidence']:.3f}"
        picture = figures.picture(io.BytesIO(row["image"]["bytes"]), row["expression"], title)
        caption = f"{escape(row['expression'])}<br>" if named else ""
        items.append(f"<li>{picture}{caption}{row['confidence']:.2f}</li>")
    return f'<ul class="faces{"" if named else " few"}">{"".join(items)}</ul>'


def _measures(found: _Found) -> str:
    if not found.samples:
        return ""
    charts = [
        figures.histogram(found.confidence, "Confidence", "Calibrated probability of the top class.", digits=2),
        figures.histogram(found.face_px, "Face size", "Longer side of the box in the photo.", " px"),
    ]
    return f'<h2>How sure, and how large</h2><div class="figures">{"".join(charts)}</div>'


def _failures(manifest: Manifest, summary: Mapping[str, Any], out: str, found: _Found) -> str:
    if not summary["failed"]:
        return ""
    blocks = []
    for reason, count in sorted(summary["reasons"].items(), key=lambda entry: (-entry[1], entry[0])):
        examples = found.failures.get(reason, [])
        prefix = f"{manifest.sources[0]}/" if len(manifest.sources) == 1 else ""
        items = "".join(
            f"<li>{key(name.removeprefix(prefix))}<span>{escape(detail)}</span></li>" for name, detail in examples
        )
        more = f'<li class="soft">and {count - len(examples):,} more</li>' if count > len(examples) else ""
        blocks.append(f"<div><h3>{escape(reason.replace('_', ' '))} · {count:,}</h3><ul>{items}{more}</ul></div>")
    return (
        f"<h2>{plural(summary['failed'], 'image')} failed</h2>"
        f'<p class="soft">All of them, and those without a face, are in '
        f"<code>{escape(storage.join(out, 'failures'))}</code> with stage, reason and detail.</p>"
        f'<div class="reasons">{"".join(blocks)}</div>'
    )


def _use(out: str, spec: ModelSpec) -> str:
    column = f"p_{spec.label_names[0]}"
    snippets = {
        "DuckDB": f"SELECT expression, count(*), avg(confidence)\nFROM '{out}/predictions/*.parquet'\n"
        f"WHERE NOT not_sure GROUP BY expression;",
        "pandas": f'import pandas\n\nfaces = pandas.read_parquet("{out}/predictions")\n'
        f'faces.sort_values("{column}", ascending=False).head(20)',
    }
    blocks = "".join(
        f"<div><h3>{name}</h3><pre><code>{escape(code)}</code></pre></div>" for name, code in snippets.items()
    )
    return f'<h2>Use it</h2><div class="pair" style="margin-top:18px">{blocks}</div>'


def _run(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    run = {
        "units of work": f"{manifest.shards:,}",
        "worker time, reading and finding faces": duration(summary["read_s"]),
        "worker time, network": duration(summary["score_s"]),
        "fingerprint of the listing": manifest.listing_fingerprint,
        "created": manifest.created,
    } | {f"Beam: {name}": f"{value:,}" for name, value in sorted(summary["counters"].items())}
    return (
        "<h2>The same predictions again</h2>"
        "<p>Same images, model, parameters and versions give this fingerprint, with any number of workers and on any "
        "runner.</p>"
        f'<code class="print">{escape(str(summary["fingerprint"]))}</code>'
        f"<details><summary>Parameters</summary>{_table(flat(manifest.parameters))}</details>"
        f"<details><summary>Versions</summary>{_table(manifest.versions)}</details>"
        f"<details><summary>The run</summary>{_table(run)}</details>"
    )


def _table(rows: Mapping[str, Any]) -> str:
    lines = (
        f"<tr><th>{escape(name)}</th><td>{escape('not set' if value is None else str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{''.join(lines)}</table>"
