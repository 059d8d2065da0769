"""How good predictions are: labels, scores and, if wanted, a weight for each face in; plain numbers out, numpy only.

Training and evaluation both call these, so a validation figure and a test figure mean the same. Weights count a face
several times or not at all, which is all that a bootstrap needs. What follows from a confusion matrix takes a stack of
them as well. A figure of no faces is nan, never 0 and never a warning.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

BINS = 15
"""Equal-width bins of confidence, (lower, upper], for reliability and ECE; 0 belongs to the first."""


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities of logits (…, classes): exp(logits / temperature), which add up to 1; nan if one is infinite."""
    scaled = np.asarray(logits, np.float64) / temperature
    with np.errstate(invalid="ignore"):
        powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


# --- From a confusion matrix ------------------------------------------------------------------------------------------


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, classes: int, weights: ArrayLike | None = None
) -> NDArray[np.int64] | Floats:
    """(classes, classes): faces by true class (row) and predicted class (column); int64, or float64 with weights.

    Raises ValueError for an id that is no class.
    """
    true, predicted = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    for ids in (true, predicted):
        if ids.size and not 0 <= ids.min() <= ids.max() < classes:
            raise ValueError(f"ids must be from 0 to {classes - 1}, not {ids.min()} to {ids.max()}")
    counts = np.bincount(true * classes + predicted, weights, classes * classes)
    return counts.reshape(classes, classes)


def accuracy(matrix: ArrayLike) -> Floats:
    """The share on the diagonal, of matrices (…, classes, classes)."""
    counts = np.asarray(matrix, np.float64)
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


@dataclass(frozen=True)
class PerClass:
    """Each (…, classes), nan where a class has nothing to divide by: recall without faces, precision without
    predictions, F1 without either. support: faces of the class."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Floats


def per_class(matrix: ArrayLike) -> PerClass:
    """Precision, recall, F1 and support of matrices (…, classes, classes)."""
    counts = np.asarray(matrix, np.float64)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    support, predicted = counts.sum(-1), counts.sum(-2)
    return PerClass(_ratio(hits, predicted), _ratio(hits, support), _ratio(2 * hits, support + predicted), support)


def balanced_accuracy(matrix: ArrayLike) -> Floats:
    """The mean recall of the classes that have faces."""
    found = per_class(matrix)
    return _mean(found.recall, found.support > 0)


def macro_f1(matrix: ArrayLike) -> Floats:
    """The mean F1 of the classes that have faces: a class that the data lack cannot be tested, so it does not count."""
    found = per_class(matrix)
    return _mean(found.f1, found.support > 0)


def weighted_f1(matrix: ArrayLike) -> Floats:
    """The mean F1, weighted by support."""
    found = per_class(matrix)
    return _mean(found.f1, found.support)


# --- From scores ------------------------------------------------------------------------------------------------------


def in_top(labels: ArrayLike, scores: ArrayLike, k: int) -> NDArray[np.bool_]:
    """(faces,): whether the true class is among the k highest scores (faces, classes); of equal ones the lower id."""
    order = np.argsort(-np.asarray(scores, np.float64), axis=-1, kind="stable")[:, :k]
    return np.asarray((order == np.asarray(labels)[:, None]).any(axis=1))


def top_k_accuracy(labels: ArrayLike, scores: ArrayLike, k: int, weights: ArrayLike | None = None) -> float:
    """The share of faces whose class is among the k highest scores."""
    return mean(in_top(labels, scores, k), weights)


def losses(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """(faces,): -ln of the true class's probability (faces, classes), which is held above 2.2e-16."""
    true = np.asarray(labels, np.int64)
    given = np.asarray(probabilities, np.float64)[np.arange(len(true)), true]
    return -np.log(np.clip(given, np.finfo(np.float64).eps, 1.0))


def log_loss(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The mean of `losses`, in nats."""
    return mean(losses(labels, probabilities), weights)


def mean(values: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The weighted mean, nan of nothing."""
    numbers = np.asarray(values, np.float64)
    if weights is None:
        return float(numbers.mean()) if numbers.size else float("nan")
    shares = np.asarray(weights, np.float64)
    return float(_ratio((shares * numbers).sum(), shares.sum()))  # `@` would wake all threads of BLAS for microseconds


# --- Confidence: of the top class ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """By bin of confidence, each (bins,): faces, and their mean confidence and accuracy, nan in an empty bin."""

    faces: Floats
    confidence: Floats
    accuracy: Floats


def reliability(
    confidence: ArrayLike, correct: ArrayLike, weights: ArrayLike | None = None, bins: int = BINS
) -> Reliability:
    """What was promised and what was kept. confidence: (faces,) top-1 probabilities; correct: (faces,) of 0 or 1."""
    promised, kept = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    shares = np.ones(len(promised)) if weights is None else np.asarray(weights, np.float64)
    place = bin_of(promised, bins)
    faces, sums, hits = (
        np.bincount(place, values, bins).astype(np.float64) for values in (shares, shares * promised, shares * kept)
    )
    return Reliability(faces, _ratio(sums, faces), _ratio(hits, faces))


def bin_of(confidence: ArrayLike, bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each confidence: bin i holds (i / bins, (i + 1) / bins], bin 0 also 0."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, np.asarray(confidence, np.float64), side="left") - 1, 0, bins - 1)


def ece(of: Reliability) -> float:
    """Expected calibration error: |accuracy - confidence| of the bins, weighted by their faces."""
    filled = of.faces > 0
    return mean(np.abs(of.accuracy - of.confidence)[filled], of.faces[filled])


@dataclass(frozen=True)
class RiskCoverage:
    """The errors among the most confident faces. coverage: share of the faces that are answered, rising to 1; risk:
    share of errors among those. One point for each different confidence, since no threshold parts faces of an equal
    one. aurc: the mean risk over all faces, each at its own confidence as threshold."""

    coverage: Floats
    risk: Floats
    aurc: float


def risk_coverage(confidence: ArrayLike, correct: ArrayLike, weights: ArrayLike | None = None) -> RiskCoverage:
    """The curve of answering only above a threshold. confidence: (faces,); correct: (faces,) of 0 or 1."""
    sure = np.asarray(confidence, np.float64)
    shares = np.ones(len(sure)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(-sure, kind="stable")
    sure, shares, wrong = sure[order], shares[order], 1 - np.asarray(correct, np.float64)[order]
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True)) if len(sure) else np.array([], np.int64)
    answered, errors = np.cumsum(shares)[last], np.cumsum(shares * wrong)[last]
    # With weights a threshold may have nobody above it yet: such points say nothing.
    last_of_all = answered[-1] if len(answered) else 0.0
    steps, risk = np.diff(answered, prepend=0.0), _ratio(errors, answered)
    told = answered > 0
    area = float(_ratio((steps[told] * risk[told]).sum(), last_of_all))
    return RiskCoverage(_ratio(answered[told], last_of_all), risk[told], area)


def _ratio(above: ArrayLike, below: ArrayLike) -> Floats:
    """above / below, nan where below is 0."""
    numerator, denominator = np.asarray(above, np.float64), np.asarray(below, np.float64)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


def _mean(values: Floats, weights: ArrayLike) -> Floats:
    """The mean over the last axis; a nan of weight 0 does not spoil it."""
    shares = np.asarray(weights, np.float64)
    return _ratio((np.where(shares > 0, values, 0.0) * shares).sum(-1), shares.sum(-1))
