"""The page a researcher opens after a run: a finished data set folder in, one self-contained report.html out.

No script, no font and no picture comes from elsewhere (the page's own policy forbids it), so it opens from a disk or a
bucket, today and in ten years. Names of files, details and sources come from strangers: each passes `escape`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from importlib import resources
from string import Template
from typing import Any

from dataset_tools import charts, figures, storage
from dataset_tools.cards import flat, loading_snippets
from dataset_tools.survey import PHOTOS_OF_GROUP, Duplicates, Pick, Survey, read_crops, survey
from schemas.manifest import Manifest
from schemas.tables import SPLITS

_SPLIT_CLASSES = dict(zip(SPLITS, ("main", "second", "third"), strict=True))


def write_report(out: str) -> str:
    """Make OUT/report.html of a data set folder whose summary.json is written; returns its URL."""
    manifest = Manifest.from_json(storage.read_bytes(storage.join(out, "manifest.json")))
    summary = json.loads(storage.read_bytes(storage.join(out, "summary.json")))
    found = survey(out)
    twins = (twin.face for _, photos in found.duplicates.examples for twin in photos if twin.face)
    picks = {*found.contact, *found.lowest_score, *found.least_sharp, *twins}
    thumbnails = {pick: figures.thumbnail(pick, crop) for pick, crop in read_crops(picks)}
    url = storage.join(out, "report.html")
    storage.write_bytes(url, render(out, manifest, summary, found, thumbnails).encode())
    return url


def render(
    out: str, manifest: Manifest, summary: Mapping[str, Any], found: Survey, thumbnails: Mapping[Pick, str]
) -> str:
    """The page as text. thumbnails: the HTML of each pick's crop."""
    sections = [
        _counts(manifest, summary),
        _contact(found, thumbnails),
        _doubts(found, thumbnails),
        _measures(found),
        _labels(found, summary),
        _failures(found, summary, out, manifest.sources),
        _duplicates(found.duplicates, thumbnails, manifest.sources),
        _loading(out, manifest, summary),
        _recipe(manifest, summary),
    ]
    template = Template(resources.files("dataset_tools").joinpath("report.html.tmpl").read_text("utf-8"))
    return template.substitute(
        style=charts.style(),
        title=f"{summary['faces']:,} faces · facemill {escape(manifest.command)}",
        command=escape(manifest.command),
        headline=f"{_plural(summary['faces'], 'face')} from {_plural(summary['images'], 'image')}",
        facts=_facts(manifest, summary),
        sections="\n".join(f"<section>{section}</section>" for section in sections if section),
        version=escape(manifest.versions.get("facemill", "")),
    )


def _facts(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    when = datetime.fromisoformat(manifest.created)
    facts = {
        "Source" if len(manifest.sources) == 1 else "Sources": "<br>".join(_key(source) for source in manifest.sources),
        "Started": f"{when.day} {when:%B %Y, %H:%M} UTC",
    }
    if "wall_seconds" in summary:
        workers = f" with {_plural(summary['workers'], 'worker')}" if summary.get("workers") else ""
        facts["Took"] = f"{duration(summary['wall_seconds'])}{workers}"
        facts["Speed"] = f"{summary['images_per_second']:,.1f} images/s"
    facts["Read"] = f"{size(summary['bytes'])}, {summary['pixels'] / 1e6:,.0f} megapixels"
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _counts(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    images, faces, screened = summary["images"], summary["faces"], summary["faces_screened"]
    of_images = [
        ("with faces", summary["ok"], "main"),
        ("without a face", summary["no_face"], "quiet"),
        ("failed", summary["failed"], "bad"),
    ]
    blocks = [
        _block("Every image is accounted for", figures.stacked_bar(of_images, f"what became of {images:,} images")),
        _block("Splits", figures.stacked_bar(_splits(summary), f"{faces:,} faces by split")),
    ]
    if screened:
        reasons = summary.get("dropped") or {"held back by the quality bounds": screened}
        parts = [("written", faces, "main"), *((why, count, "third") for why, count in sorted(reasons.items()))]
        bar = figures.stacked_bar(parts, f"what became of {faces + screened:,} faces")
        blocks.insert(1, _block(f"{_plural(faces + screened, 'face')} found", bar))
    if manifest.ignored:
        total = sum(manifest.ignored.values())
        kinds = ", ".join(
            f"{count:,} {_key(suffix) if suffix else 'without a suffix'}"
            for suffix, count in sorted(manifest.ignored.items(), key=lambda entry: (-entry[1], entry[0]))[:12]
        )
        more = ", and others" if len(manifest.ignored) > 12 else ""
        left = f"{_plural(total, 'file')} beside the photos {'was' if total == 1 else 'were'} left alone"
        text = f"{left}: {kinds}{more}."
        blocks.append(_block("Ignored", f"<p>{text}</p>"))
    return f'<div class="pair">{"".join(blocks)}</div>'


def _splits(summary: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    there = summary["splits"]
    return [(split, there[split], _SPLIT_CLASSES[split]) for split in SPLITS if split in there]


def _contact(found: Survey, thumbnails: Mapping[Pick, str]) -> str:
    if not found.contact:
        return "<h2>Faces</h2><p>No face was written, so there is none to show.</p>"
    captions = ((pick, _caption(pick)) for pick in found.contact)
    if found.lowest_score:
        note = (
            "From the highest detection score to the lowest, drawn by chance with as many from each band of score "
            "where there are enough: doubtful faces are rarer in the data set than here."
        )
    else:
        note = "Drawn by chance, with as many of each class where there are enough."
    return f'<h2>A look at the faces</h2><p class="soft">{note}</p>{_grid(captions, thumbnails)}'


def _caption(pick: Pick) -> str:
    return escape(pick.label) if math.isnan(pick.score) else f"{pick.score:.2f}"


def _doubts(found: Survey, thumbnails: Mapping[Pick, str]) -> str:
    if not found.contact:
        return ""
    low = ((pick, f"{pick.score:.2f}") for pick in found.lowest_score)
    blurred = ((pick, f"{pick.sharpness:.0f}") for pick in found.least_sharp)
    blocks = _block(f"Least sharp, {len(found.least_sharp)} faces", _grid(blurred, thumbnails, few=True))
    bounds = ""
    if found.lowest_score:
        title = f"Lowest detection score, {len(found.lowest_score)} faces"
        blocks = _block(title, _grid(low, thumbnails, few=True)) + blocks
        bounds = " Bounds for them are set with <code>--min-score</code> and <code>--min-sharpness</code>."
    return (
        f'<h2>Faces to doubt</h2><p class="soft">The first to look at when something seems wrong.{bounds}</p>'
        f'<div class="pair">{blocks}</div>'
    )


def _measures(found: Survey) -> str:
    if not found.contact:
        return ""
    histograms = [
        figures.histogram(found.size_px, "Face size", "Longer side of the box in the photo.", " px"),
        figures.histogram(found.inter_eye_distance_px, "Between the eyes", "In the photo.", " px"),
        figures.histogram(found.score, "Detection score", "As the detector gives it.", digits=3),
        figures.histogram(found.sharpness, "Sharpness", "Variance of the Laplacian, crop at 112 px."),
        figures.histogram(found.luminance_mean, "Luminance", "Mean of the crop, black 0 and white 1.", digits=2),
        figures.histogram(found.head_roll_deg, "Head roll", "Of the line between the eyes.", "°"),
    ]
    note = "Every face counts. The dashed line is the median, the number on the left the tallest bar."
    return f'<h2>What the faces are like</h2><p class="soft">{note}</p><div class="figures">{"".join(histograms)}</div>'


def _labels(found: Survey, summary: Mapping[str, Any]) -> str:
    if not found.labels:
        return ""
    total = found.labels.total()
    classes: Mapping[str, Mapping[str, int]] = summary.get("classes", {})
    head = "".join(f"<th>{escape(split)}</th>" for split in classes)
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{count:,}</td><td>{figures.share(count, total)}</td>"
        + "".join(f"<td>{of_split.get(name, 0):,}</td>" for of_split in classes.values())
        + "</tr>"
        for name, count in found.labels.most_common()
    )
    told = f"<p>{_plural(total, 'face')} carry a label.{_leaks(summary.get('leaks'))}</p>"
    return f"<h2>Expressions</h2>{told}<table><tr><th></th><th>faces</th><th></th>{head}</tr>{rows}</table>"


def _leaks(leaks: Mapping[str, int] | None) -> str:
    if not leaks or not leaks["near_groups"]:
        return ""
    return (
        f" As published, {leaks['exact_groups']:,} groups of identical pictures ({leaks['exact_images']:,} images) lie "
        f"in several splits, {leaks['near_groups']:,} with those almost identical ({leaks['near_images']:,} images)."
    )


def _failures(found: Survey, summary: Mapping[str, Any], out: str, sources: tuple[str, ...]) -> str:
    if not summary["failed"]:
        return ""
    blocks = []
    for reason, count in sorted(summary["reasons"].items(), key=lambda entry: (-entry[1], entry[0])):
        examples = found.failures.get(reason, [])
        items = "".join(
            f"<li>{_key(_short(key, sources))}<span>{escape(detail)}</span></li>" for key, detail in examples
        )
        more = f'<li class="soft">and {count - len(examples):,} more</li>' if count > len(examples) else ""
        name = escape(reason.replace("_", " "))
        blocks.append(f"<div><h3>{name} · {count:,}</h3><ul>{items}{more}</ul></div>")
    return (
        f"<h2>{_plural(summary['failed'], 'image')} failed</h2>"
        f'<p class="soft">All of them are in <code>{escape(storage.join(out, "ledger"))}</code> with reason and '
        "detail. The same command with <code>--retry-failed</code> tries them again.</p>"
        f'<div class="reasons">{"".join(blocks)}</div>'
    )


def _duplicates(of: Duplicates, thumbnails: Mapping[Pick, str], sources: tuple[str, ...]) -> str:
    if not of.groups:
        return ""
    across = (
        f"<b>{_plural(of.across_splits, 'group')} {'reaches' if of.across_splits == 1 else 'reach'} over more than one "
        "split</b>: a model is tested there on what it has seen."
        if of.across_splits
        else "Each of them lies within one split."
    )
    shown = "" if of.groups <= len(of.examples) else f" Shown are {len(of.examples)} of them."
    groups = []
    for count, photos in of.examples:
        shown_faces = [thumbnails.get(twin.face, "") if twin.face else "" for twin in photos]
        cells = "".join(face or '<span class="none">no face</span>' for face in shown_faces)
        row = f'<div class="row">{cells}</div>' if any(shown_faces) else '<p class="soft">Without faces:</p>'
        names = "".join(f"<li><em>{escape(twin.split)}</em> {_key(_short(twin.key, sources))}</li>" for twin in photos)
        more = f'<li class="more soft">and {count - len(photos):,} more</li>' if count > PHOTOS_OF_GROUP else ""
        groups.append(f"<div>{row}<ul>{names}{more}</ul></div>")
    return (
        f"<h2>Photos that are almost the same</h2><p>{_plural(of.photos, 'photo')} form {_plural(of.groups, 'group')} "
        f"in which perceptual hashes differ in at most three bits of 64. {across}{shown}</p>"
        f'<div class="twins">{"".join(groups)}</div>'
    )


def _loading(out: str, manifest: Manifest, summary: Mapping[str, Any]) -> str:
    snippets = loading_snippets(out, manifest, summary)
    blocks = (_block(name, f"<pre><code>{escape(code)}</code></pre>") for name, code in snippets.items())
    return f'<h2>Use it</h2><div class="pair" style="margin-top:18px">{"".join(blocks)}</div>'


def _recipe(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    return (
        "<h2>The same faces again</h2>"
        "<p>Same images, parameters and versions give this fingerprint, on any machine and with any number of "
        "workers.</p>"
        f'<code class="print">{escape(str(summary["fingerprint"]))}</code>'
        f"<details><summary>Parameters</summary>{_table(flat(manifest.parameters))}</details>"
        f"<details><summary>Versions</summary>{_table(manifest.versions)}</details>"
        "<details><summary>The run</summary>"
        + _table(
            {
                "images listed": f"{manifest.images:,}",
                "shards": f"{manifest.shards:,}",
                "worker time": duration(summary["seconds"]),
                "fingerprint of the listing": manifest.listing_fingerprint,
                "created": manifest.created,
            }
        )
        + "</details>"
    )


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes in the unit a person would say."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _grid(captions: Iterable[tuple[Pick, str]], thumbnails: Mapping[Pick, str], *, few: bool = False) -> str:
    items = "".join(f"<li>{thumbnails.get(pick, '')}{text}</li>" for pick, text in captions)
    return f'<ul class="faces{" few" if few else ""}">{items}</ul>'


def _block(title: str, body: str) -> str:
    return f"<div><h3>{escape(title)}</h3>{body}</div>"


def _table(rows: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return "not set" if value is None else str(value)

    lines = (f"<tr><th>{escape(name)}</th><td>{escape(text(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _short(key: str, sources: tuple[str, ...]) -> str:
    """The key without the source it lies in, when there is only one: what is left is what tells photos apart."""
    return key.removeprefix(f"{sources[0]}/") if len(sources) == 1 else key


def _key(text: str) -> str:
    """A name from outside. <bdi>: one that is written from right to left must not turn round what follows it."""
    return f'<bdi class="key">{escape(text)}</bdi>'


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
