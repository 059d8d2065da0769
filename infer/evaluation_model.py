"""One model's part of the page: its confusion matrix, classes, plots, slices, and the mistakes it is surest of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from dataset_tools import charts, figures
from dataset_tools.survey import Pick, read_crops
from infer.evaluation_text import interval, key, value
from infer.predictor import Predictor
from infer.split_scores import Scores

MISTAKES = 24
_MISTAKES_EACH = 16
"""Of several models."""


@dataclass(frozen=True)
class Mistake:
    """A face that a model took for another class. picture: HTML of its crop."""

    label: str
    predicted: str
    confidence: float
    picture: str


def mistakes(
    scores: Scores, predictors: Sequence[Predictor], models: Sequence[Mapping[str, Any]]
) -> list[list[Mistake]]:
    """For each model its most confident mistakes, with their crops. models: of metrics.json, for the label maps."""
    good = np.flatnonzero(scores.scored)
    most = MISTAKES if len(predictors) == 1 else _MISTAKES_EACH
    chosen: list[list[tuple[Pick, str, str, float]]] = []
    labels = scores.faces["label"].to_numpy()[good]
    for predictor, model, logits in zip(predictors, models, scores.logits, strict=True):
        found = predictor.from_logits(logits[good])
        best, sure = found.logits.argmax(axis=1), found.probabilities.max(axis=1, initial=0.0)
        to_model = [found.names.index(name) if name else -1 for name in model["label_map"].values()]
        true = np.array(to_model, np.int64)[labels]
        wrong = np.flatnonzero(best != true)
        of_model = []
        for place in wrong[np.argsort(-sure[wrong], kind="stable")][:most]:
            row = scores.faces.slice(int(good[place]), 1).to_pylist()[0]
            pick = Pick(
                rank=0.0,
                key=row["key"] or "",
                face_index=row["face_index"] or 0,
                score=_or_nan(row["score"]),
                sharpness=_or_nan(row["sharpness"]),
                label=list(model["label_map"])[row["label"]],
                part=scores.parts[row["part"]],
                row=row["row"],
            )
            of_model.append(
                (pick, list(model["label_map"])[row["label"]], found.names[best[place]], float(sure[place]))
            )
        chosen.append(of_model)
    crops = dict(read_crops({pick for of_model in chosen for pick, *_ in of_model}))
    return [
        [
            Mistake(label, predicted, sure, figures.thumbnail(pick, crops.get(pick, b"")))
            for pick, label, predicted, sure in of_model
        ]
        for of_model in chosen
    ]


def section(model: Mapping[str, Any], wrong: Sequence[Mistake], *, several: bool) -> str:
    about = [
        escape(model["architecture"]),
        f"{model['input_px']} px {escape(model['colour'])}",
        f"temperature {model['temperature']:.3g}",
        f"not sure below {model['threshold']:.0%}" if model["threshold"] else "always answers",
        f"{model['crops_per_second']:,.0f} crops/s here",
    ]
    return (
        f'<h2>{key(model["name"])}</h2><p class="soft">{" · ".join(about)}</p>'
        + _mapped(model)
        + f'<div class="pair block"><div><h3>Confusion matrix</h3>{_matrix(model)}</div>'
        f"<div><h3>Classes</h3>{_classes(model)}</div></div>"
        + f'<div class="figures block">{_plots(model, several)}</div>'
        + _slices(model)
        + _mistakes(wrong)
    )


def _mapped(model: Mapping[str, Any]) -> str:
    changed = [(name, target) for name, target in model["label_map"].items() if target != name]
    new = [name for name in model["label_names"] if name not in model["label_map"].values()]
    told = [f"{escape(name)} {'counts as ' + escape(target) if target else 'is left out'}" for name, target in changed]
    if new:
        told.append(f"{escape(', '.join(new))}: a class of the model that no face here is labelled with")
    return f"<p>Labels: {'; '.join(told)}.</p>" if told else ""


def _matrix(model: Mapping[str, Any]) -> str:
    names = [one["name"] for one in model["classes"]]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for name, counts in zip(names, model["confusion"], strict=True):
        total, cells = sum(counts), ""
        for predicted, count in zip(names, counts, strict=True):
            part = count / total if total else 0.0
            strong = ' class="strong"' if part > 0.75 else ""
            title = f"{escape(name)} taken for {escape(predicted)}: {count:,} of {total:,}"
            text = f"{part:.0%}<small>{count:,}</small>" if count else ""
            cells += f'<td{strong} style="--share:{part:.3f}" title="{title}">{text}</td>'
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return (
        '<p class="soft">A row for each labelled class: its share and number of faces by predicted class.</p>'
        f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _classes(model: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(one['name'])}</th><td>{one['support']:,}</td>"
        + "".join(f"<td>{interval(figure, one[figure])}</td>" for figure in ("precision", "recall", "f1"))
        + "</tr>"
        for one in model["classes"]
    )
    return (
        '<div class="scroll"><table class="numbers tight"><thead><tr><th></th><th>faces</th><th>precision</th>'
        f"<th>recall</th><th>F1</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _plots(model: Mapping[str, Any], several: bool) -> str:
    figure, note = model["figures"], "Bars: accuracy by confidence. Red: the distance to the diagonal. Below: faces."
    shown = [
        charts.reliability(
            model["reliability_before"], f"Before temperature, ECE {value('ece', figure['ece_before'])}", note
        ),
        charts.reliability(model["reliability"], f"After temperature, ECE {value('ece', figure['ece'])}", note),
    ]
    if not several:
        curve = [(model["name"], model["risk_coverage"])]
        text = "Share of errors when only the most confident faces are answered."
        shown.append(charts.risk_coverage(curve, f"Risk and coverage, AURC {value('aurc', figure['aurc'])}", text))
    return "".join(shown)


def _slices(model: Mapping[str, Any]) -> str:
    if not model["slices"]:
        return ""
    rows, last = [], ""
    for one in model["slices"]:
        if one["measure"] != last:
            last = one["measure"]
            rows.append(f'<tr class="group"><th colspan="4">{escape(last.capitalize())}</th></tr>')
        cell = one["accuracy"]
        value, low, high = (100 * (cell[name] or 0) for name in ("value", "low", "high"))
        whisker = f'<u style="left:{low:.1f}%;width:{high - low:.1f}%"></u>' if cell["low"] is not None else ""
        rows.append(
            f"<tr><th>{escape(one['name'])}</th><td>{one['faces']:,}</td><td>{interval('accuracy', cell)}</td>"
            f'<td><div class="meter"><i style="width:{value:.1f}%"></i>{whisker}</div></td></tr>'
        )
    return (
        '<div class="block"><h3>Where it does better and worse</h3><div class="scroll"><table class="numbers"><thead>'
        f"<tr><th></th><th>faces</th><th>accuracy</th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "</div></div>"
    )


def _mistakes(wrong: Sequence[Mistake]) -> str:
    if not wrong:
        return '<div class="block"><h3>Mistakes</h3><p>None.</p></div>'
    items = "".join(
        f"<li>{one.picture}<b>{escape(one.predicted)} {one.confidence:.0%}</b>labelled {escape(one.label)}</li>"
        for one in wrong
    )
    return (
        '<div class="block"><h3>The most confident mistakes</h3>'
        '<p class="soft">Where the model is surest and the label says otherwise: some labels are wrong.</p>'
        f'<ul class="faces wide">{items}</ul></div>'
    )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
