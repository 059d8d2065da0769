"""Scores of labelled faces in, figures with 95 % intervals out: of each model, and of the difference between models.

Everything is measured by one function of the faces' weights, once with each face counted once, and once for each of a
thousand resamples of the photos. Faces of one photo go together, since they are not independent. All models get the
same resamples, so that the difference of two models has an interval of its own, narrower than theirs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset_tools import metrics
from dataset_tools.metrics import Floats
from infer.slices import Slice

RESAMPLES = 1000
LEVEL = 0.95

FIGURES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "top_2": "Top-2 accuracy",
    "top_3": "Top-3 accuracy",
    "log_loss": "Log loss",
    "log_loss_before": "Log loss before temperature",
    "ece": "ECE",
    "ece_before": "ECE before temperature",
    "aurc": "AURC",
    "answered": "Share answered",
    "accuracy_answered": "Accuracy of the answered",
}
"""What stands in the table of models: key and title. `before`: with the logits as they are."""
OF_CLASS = ("precision", "recall", "f1")
UNBOUNDED = ("log_loss", "log_loss_before")
LOWER_IS_BETTER = (*UNBOUNDED, "ece", "ece_before", "aurc")

_CURVE_POINTS = 200


@dataclass(frozen=True)
class Scored:
    """One model's scores of some faces. labels: (faces,) ids of its own classes. logits: (faces, classes), finite.

    temperature and threshold as in ModelSpec; a face whose best probability is below the threshold is "not sure".
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    temperature: float
    threshold: float

    def of(self, faces: NDArray[Any]) -> "Scored":
        """The same of some of the faces."""
        return Scored(self.names, self.labels[faces], self.logits[faces], self.temperature, self.threshold)

    @property
    def predicted(self) -> NDArray[np.int64]:
        return self.logits.argmax(axis=1)


class Measure:
    """The figures of a model as a function of the faces' weights: (faces,) in, (names,) out.

    Faces are held from the most confident down, since it is called a thousand times: sorting and binning what is in
    order already takes a tenth of the time.
    """

    def __init__(self, scored: Scored, slices: Sequence[Slice] = ()) -> None:
        sure = metrics.softmax(scored.logits, scored.temperature).max(axis=1, initial=0.0)
        self._order = np.argsort(-sure, kind="stable")
        scored = scored.of(self._order)
        self._scored = scored
        self._predicted = scored.predicted
        self._correct = (self._predicted == scored.labels).astype(np.float64)
        before, after = metrics.softmax(scored.logits), metrics.softmax(scored.logits, scored.temperature)
        self._sure_before, self._sure = before.max(axis=1, initial=0.0), after.max(axis=1, initial=0.0)
        self._answered = (self._sure >= scored.threshold).astype(np.float64)
        self._means = {
            "top_2": metrics.in_top(scored.labels, scored.logits, 2).astype(np.float64),
            "top_3": metrics.in_top(scored.labels, scored.logits, 3).astype(np.float64),
            "log_loss": metrics.losses(scored.labels, after),
            "log_loss_before": metrics.losses(scored.labels, before),
            "answered": self._answered,
        }
        self._slices = [one.faces[self._order].astype(np.float64) for one in slices]
        self.names: list[str | tuple[str, str]] = [
            *FIGURES,
            *((name, figure) for figure in OF_CLASS for name in scored.names),
            *((one.measure, one.name) for one in slices),
        ]

    def __call__(self, weights: Floats) -> Floats:
        scored, correct, weights = self._scored, self._correct, weights[self._order]
        matrix = metrics.confusion_matrix(scored.labels, self._predicted, len(scored.names), weights)
        values = {name: metrics.mean(of_face, weights) for name, of_face in self._means.items()}
        values |= {
            "accuracy": float(metrics.accuracy(matrix)),
            "balanced_accuracy": float(metrics.balanced_accuracy(matrix)),
            "macro_f1": float(metrics.macro_f1(matrix)),
            "weighted_f1": float(metrics.weighted_f1(matrix)),
            "ece": metrics.ece(metrics.reliability(self._sure, correct, weights)),
            "ece_before": metrics.ece(metrics.reliability(self._sure_before, correct, weights)),
            "aurc": metrics.risk_coverage(self._sure, correct, weights).aurc,
            "accuracy_answered": metrics.mean(correct, weights * self._answered),
        }
        classes = metrics.per_class(matrix)
        of_slices = [metrics.mean(correct, weights * inside) for inside in self._slices]
        return np.concatenate(
            [[values[name] for name in FIGURES], classes.precision, classes.recall, classes.f1, of_slices]
        )

    def curves(self) -> dict[str, Any]:
        """Reliability before and after the temperature, and risk by coverage, as plain lists."""
        curve = metrics.risk_coverage(self._sure, self._correct)
        points = len(curve.risk)
        kept = np.unique(np.linspace(0, points - 1, min(points, _CURVE_POINTS)).round().astype(np.int64))
        return {
            "reliability_before": _bins(metrics.reliability(self._sure_before, self._correct)),
            "reliability": _bins(metrics.reliability(self._sure, self._correct)),
            "risk_coverage": {"coverage": plain(curve.coverage[kept]), "risk": plain(curve.risk[kept])},
        }


@dataclass(frozen=True)
class Sampled:
    """Figures and what became of them in each resample: point (names,), resamples (resamples, names)."""

    point: Floats
    resamples: Floats

    def minus(self, other: "Sampled") -> "Sampled":
        """The paired difference; both must come from the same faces and seed."""
        return Sampled(self.point - other.point, self.resamples - other.resamples)

    def intervals(self, least: float = -math.inf) -> list[dict[str, float | None]]:
        """`value`, `low` and `high` of each figure. least: what no figure falls below.

        Percentiles of the resamples, moved by the mean distance between resamples and figure: some figures, ECE above
        all, are larger on a resample than on the faces themselves, and would lie outside their own interval. No
        interval where there is but one photo, or no value.
        """
        found = []
        for value, of_resamples in zip(self.point, self.resamples.T, strict=True):
            drawn = of_resamples[np.isfinite(of_resamples)]
            low = high = math.nan
            if math.isfinite(value) and len(drawn) > 1:
                tail = (1 - LEVEL) / 2
                low, high = np.quantile(drawn, [tail, 1 - tail]) - drawn.mean() + value
            found.append({"value": _number(value), "low": _number(max(low, least)), "high": _number(high)})
        return found


def sample(measure: Measure, photos: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> Sampled:
    """The figures, and those of `resamples` draws of as many photos, with replacement. photos: (faces,), of each."""
    _, place = np.unique(photos, return_inverse=True)
    count = int(place.max(initial=-1)) + 1
    draws = np.random.default_rng(seed)
    drawn = [
        measure(np.bincount(draws.integers(0, count, count), minlength=count)[place].astype(np.float64))
        for _ in range(resamples if count > 1 else 0)
    ]
    point = measure(np.ones(len(photos)))
    return Sampled(point, np.array(drawn).reshape(len(drawn), len(point)))


def evaluate(
    models: Sequence[Scored],
    photos: NDArray[np.int64],
    leaked: NDArray[np.bool_],
    slices: Sequence[Slice],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """All figures of models that scored the same faces, as metrics.json holds them.

    photos: (faces,) photo of each. leaked: (faces,) whether a model may have seen it. The result has `models`, in the
    order given, and `differences`: of every later model from the first. `leak_free` is null where nothing leaks.
    """
    clean = np.flatnonzero(~leaked)
    told, sampled, sampled_clean = [], [], []
    for scored in models:
        measure = Measure(scored, slices)
        sampled.append(sample(measure, photos, seed, resamples))
        values: dict[Any, Any] = dict(zip(measure.names, _within(sampled[-1], measure.names), strict=True))
        matrix = metrics.confusion_matrix(scored.labels, scored.predicted, len(scored.names))
        without = None
        if leaked.any():
            of_clean = Measure(scored.of(clean))
            sampled_clean.append(sample(of_clean, photos[clean], seed, resamples))
            without = _figures(_within(sampled_clean[-1], of_clean.names))
        told.append(
            {
                "figures": {name: values[name] for name in FIGURES},
                "leak_free": without,
                "classes": [
                    {"name": name, "support": int(matrix[number].sum()), "predicted": int(matrix[:, number].sum())}
                    | {figure: values[name, figure] for figure in OF_CLASS}
                    for number, name in enumerate(scored.names)
                ],
                "confusion": matrix.tolist(),
                "slices": [
                    {"measure": one.measure, "name": one.name, "faces": int(one.faces.sum())}
                    | {"accuracy": values[one.measure, one.name]}
                    for one in slices
                ],
            }
            | measure.curves()
        )
    differences = [
        {
            "model": number,
            "from": 0,
            "figures": _figures(_difference(sampled[number], sampled[0])),
            "leak_free": _figures(_difference(sampled_clean[number], sampled_clean[0])) if sampled_clean else None,
        }
        for number in range(1, len(models))
    ]
    return {"models": told, "differences": differences}


def _within(sampled: Sampled, names: Sequence[Any]) -> list[dict[str, float | None]]:
    """Intervals that stay between 0 and 1, or above 0 for what has no upper bound."""
    found = sampled.intervals(least=0.0)
    for name, interval in zip(names, found, strict=True):
        if name not in UNBOUNDED and interval["high"] is not None:
            interval["high"] = min(interval["high"], 1.0)
    return found


def _difference(one: Sampled, other: Sampled) -> list[dict[str, float | None]]:
    """Of the figures only: classes and slices may differ between models."""
    count = len(FIGURES)
    return (
        Sampled(one.point[:count], one.resamples[:, :count])
        .minus(Sampled(other.point[:count], other.resamples[:, :count]))
        .intervals()
    )


def _figures(intervals: Sequence[Mapping[str, float | None]]) -> dict[str, Mapping[str, float | None]]:
    return dict(zip(FIGURES, intervals, strict=False))


def _bins(of: metrics.Reliability) -> dict[str, Any]:
    return {
        "faces": of.faces.astype(int).tolist(),
        "confidence": plain(of.confidence),
        "accuracy": plain(of.accuracy),
    }


def plain(values: Floats) -> list[float | None]:
    """Numbers that JSON can hold: None for one that is none."""
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
