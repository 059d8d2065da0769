"""The page of an evaluation: what metrics.json holds and a few crops in, one self-contained HTML page out.

It has the look of a data set's report, whose template it fills: no script, nothing from elsewhere, readable on a phone.
Names of models, classes, photos and folders come from strangers: each passes `escape`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from string import Template
from typing import Any

from dataset_tools import charts, figures
from infer import evaluation_model
from infer.evaluation import FIGURES, LOWER_IS_BETTER
from infer.evaluation_text import interval, key, plural, value
from infer.shared_photos import WAYS

_MEANINGS = {
    "Accuracy": "The share of faces whose most probable class is the labelled one.",
    "Balanced accuracy": "The mean of the classes' recalls, so that a rare class counts as much as a frequent one.",
    "Macro F1, weighted F1": "The mean of the classes' F1: each class alike, or by its number of faces. Classes "
    "without a labelled face do not count.",
    "Top-2, top-3": "The labelled class is among the two or three most probable ones.",
    "Log loss": "Mean of -ln of the probability given to the labelled class, after temperature scaling; lower is "
    "better.",
    "ECE": "Expected calibration error: how far confidence and accuracy lie apart, in 15 equal-width bins weighted by "
    "their faces; 0 is perfect. Before: with the logits as they are. After: divided by the temperature in model.json.",
    "AURC": "Area under the risk-coverage curve: the mean share of errors when only the most confident faces are "
    "answered; lower is better.",
    "Answered": "Faces whose best probability reaches the model's threshold; the others are 'not sure'.",
    "Leak-free": "The same figure without the faces whose photo also lies in another split that a model has seen.",
    "Intervals": "95 %, from 1,000 resamples of the photos with all their faces. A difference has an interval of its "
    "own, from the same resamples for both models.",
}


def render(result: Mapping[str, Any], wrong: Sequence[Sequence[evaluation_model.Mistake]]) -> str:
    """The page as text. result: as metrics.json holds it. wrong: what `evaluation_model.mistakes` gave."""
    several = len(result["models"]) > 1
    sections = [_figures(result)]
    sections += [_differences(result)] if several else []
    sections += [
        evaluation_model.section(model, of_model, several=several)
        for model, of_model in zip(result["models"], wrong, strict=True)
    ]
    sections += [_account(result), _meanings(result)]
    look = resources.files("dataset_tools").joinpath("report.html.tmpl").read_text("utf-8")
    style = resources.files("infer").joinpath("evaluation.css").read_text("utf-8")
    template = Template(look.replace("</style>", f"{style}</style>"))
    return template.substitute(
        style=charts.style(),
        title=f"{escape(', '.join(model['name'] for model in result['models']))} · facemill evaluate",
        command="evaluate",
        headline=_headline(result),
        facts=_facts(result),
        sections=_warning(result) + "\n".join(f"<section>{section}</section>" for section in sections),
        version=escape(result["versions"].get("facemill", "")),
    )


def _headline(result: Mapping[str, Any]) -> str:
    models, faces = result["models"], result["faces"]["scored"]
    if len(models) > 1:
        return f"{len(models)} models on {plural(faces, 'face')}"
    clean = models[0]["leak_free"]
    if clean:
        return f"{value('accuracy', clean['accuracy'])} accuracy, leak\u2011free"
    return f"{value('accuracy', models[0]['figures']['accuracy'])} accuracy on {plural(faces, 'face')}"


def _facts(result: Mapping[str, Any]) -> str:
    when = datetime.fromisoformat(result["created"])
    data, faces = result["dataset"], result["faces"]
    limit = f", the first {faces['limit']:,} faces only" if faces["limit"] else ""
    facts = {
        "Data set": key(data["folder"]),
        "Split": escape(data["split"]) + limit,
        "Scored": f"{plural(faces['scored'], 'face')} of {plural(faces['photos'], 'photo')}",
        "Labels": f"{key(data['label_set'])}, {len(data['label_names'])} classes",
        "Written": f"{when.day} {when:%B %Y, %H:%M} UTC",
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _warning(result: Mapping[str, Any]) -> str:
    """What makes the figures look better than they are, before any of them."""
    told = []
    shared, scored, split = result["shared"], result["faces"]["scored"], result["dataset"]["split"]
    if shared["faces"]:
        ways = "; ".join(
            f"{key(other)}: {counts['faces']:,} ("
            + ", ".join(f"{counts[way]:,} {escape(text)}" for way, text in WAYS.items() if counts[way])
            + ")"
            for other, counts in shared["with"].items()
            if counts["faces"]
        )
        told.append(
            f"<b>{plural(shared['faces'], 'face')} of {scored:,} "
            f"({figures.share(shared['faces'], scored)}) {'shares its' if shared['faces'] == 1 else 'share their'} "
            f"photo with what a model may have seen.</b> By {ways}. Such faces test memory: the leak-free figures are "
            f"of the other {shared['left']:,}."
        )
    if split == "train":
        told.append("<b>These are training faces.</b> The figures say nothing about new photos.")
    elsewhere = [model["name"] for model in result["models"] if not model["trained_on_this"]]
    if elsewhere:
        names = ", ".join(key(name) for name in elsewhere)
        told.append(
            f"{names}: by its model.json not trained on this very data set. Photos shared with another one are found "
            "with <code>--trained-on FOLDER</code>."
        )
    strong = shared["faces"] or split == "train"
    body = "".join(f"<p>{text}</p>" for text in told)
    return f'<div class="{"warn" if strong else "soft block"}">{body}</div>' if told else ""


def _figures(result: Mapping[str, Any]) -> str:
    models = result["models"]
    clean = any(model["leak_free"] for model in models)
    span = ' colspan="2"' if clean else ""
    head = "".join(f"<th{span}>{key(model['name'])}</th>" for model in models)
    part = '<tr class="part"><th></th>' + '<th class="part">all faces</th><th class="part">leak-free</th>' * len(models)
    rows = []
    for figure, title in FIGURES.items():
        cells = ""
        for model in models:
            cells += f"<td>{interval(figure, model['figures'][figure])}</td>"
            cells += f"<td>{interval(figure, model['leak_free'][figure])}</td>" if clean else ""
        rows.append(f"<tr><th>{title}</th>{cells}</tr>")
    curve = charts.risk_coverage(
        [(model["name"], model["risk_coverage"]) for model in models],
        "Risk and coverage",
        "Share of errors when only the most confident faces are answered.",
    )
    return (
        f"<h2>{'Side by side' if len(models) > 1 else 'Figures'}</h2>"
        '<p class="soft">With 95 % intervals, resampled by photo. What each figure means stands at the end.</p>'
        f'<div class="scroll"><table class="numbers"><thead><tr><th></th>{head}</tr>{part + "</tr>" if clean else ""}'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<div class="figures">{"<div>" + curve + "</div>"}</div>' if len(models) > 1 else "")
    )


def _differences(result: Mapping[str, Any]) -> str:
    names = [model["name"] for model in result["models"]]
    clean = any(difference["leak_free"] for difference in result["differences"])
    span = ' colspan="2"' if clean else ""
    head = "".join(f"<th{span}>{key(names[difference['model']])}</th>" for difference in result["differences"])
    part = '<th class="part">all faces</th><th class="part">leak-free</th>' * len(result["differences"])
    rows = []
    for figure, title in FIGURES.items():
        cells = ""
        for difference in result["differences"]:
            for group in ("figures", "leak_free") if clean else ("figures",):
                cells += _difference(figure, difference[group][figure])
        rows.append(f"<tr><th>{title}</th>{cells}</tr>")
    return (
        f"<h2>Difference from {key(names[0])}</h2>"
        '<p class="soft">Paired: both models on the same resamples of the same faces. In colour where the 95 % '
        "interval leaves out 0: green is better, red is worse.</p>"
        f'<div class="scroll"><table class="numbers"><thead><tr><th></th>{head}</tr>'
        f"{'<tr><th></th>' + part + '</tr>' if clean else ''}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _difference(figure: str, cell: Mapping[str, float | None]) -> str:
    value, low, high = cell["value"], cell["low"], cell["high"]
    kind = ""
    if value is not None and low is not None and high is not None and not low <= 0 <= high and figure != "answered":
        kind = f' class="clear {"better" if (value > 0) != (figure in LOWER_IS_BETTER) else "worse"}"'
    return f"<td{kind}>{interval(figure, cell, signed=True)}</td>"


def _account(result: Mapping[str, Any]) -> str:
    faces = result["faces"]
    parts = [("scored", faces["scored"], "main")]
    parts += [("without a label", faces["unlabelled"], "quiet")] if faces["unlabelled"] else []
    parts += [(f"{name}: left out", count, "third") for name, count in sorted(faces["dropped"].items())]
    parts += [
        (f"not to be scored: {reason.replace('_', ' ')}", count, "bad")
        for reason, count in sorted(faces["not_scored"].items())
    ]
    text = f"what became of {faces['looked_at']:,} faces"
    return (
        f"<h2>Every face of the split is accounted for</h2>{figures.stacked_bar(parts, text)}"
        '<p class="soft block">What each model said about each face stands in <code>predictions.parquet</code>, the '
        "numbers of this page in <code>metrics.json</code>.</p>"
    )


def _meanings(result: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _MEANINGS.items())
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in result["versions"].items())
    return (
        f'<h2>What the figures mean</h2><dl class="means">{items}</dl>'
        f'<p class="soft block">{escape(result["runtime"])}, seed {result["intervals"]["seed"]}; {versions}.</p>'
    )
