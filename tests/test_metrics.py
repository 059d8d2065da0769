"""Metrics against scikit-learn, against counting by hand, and at the edges where there is nothing to divide by."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from dataset_tools import metrics
from train.calibration import HIGHEST, LOWEST, fit_temperature

EXACT = 1e-12
CLASSES = 7


def scores(faces=2000, seed=0):
    """Labels and logits in which the labelled class is often, and not always, the highest."""
    draws = np.random.default_rng(seed)
    labels = draws.choice(CLASSES, faces, p=[0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    return labels, draws.normal(size=(faces, CLASSES)) + 1.2 * np.eye(CLASSES)[labels]


def close(found, expected):
    assert found == pytest.approx(expected, abs=EXACT)


def test_counts_by_true_class_down_and_predicted_class_across():
    matrix = metrics.confusion_matrix([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0], 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert matrix.dtype == np.int64


def test_everything_from_the_confusion_matrix_agrees_with_scikit_learn():
    labels, logits = scores()
    predicted = logits.argmax(1)
    matrix = metrics.confusion_matrix(labels, predicted, CLASSES)
    np.testing.assert_array_equal(matrix, reference.confusion_matrix(labels, predicted))
    close(metrics.accuracy(matrix), reference.accuracy_score(labels, predicted))
    close(metrics.balanced_accuracy(matrix), reference.balanced_accuracy_score(labels, predicted))
    close(metrics.macro_f1(matrix), reference.f1_score(labels, predicted, average="macro"))
    close(metrics.weighted_f1(matrix), reference.f1_score(labels, predicted, average="weighted"))
    found = metrics.per_class(matrix)
    expected = reference.precision_recall_fscore_support(labels, predicted)
    for one, other in zip((found.precision, found.recall, found.f1, found.support), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=EXACT)


def test_what_comes_from_scores_agrees_with_scikit_learn():
    labels, logits = scores()
    probabilities = metrics.softmax(logits, 1.7)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=EXACT)
    for k in (1, 2, 3):
        close(metrics.top_k_accuracy(labels, logits, k), reference.top_k_accuracy_score(labels, logits, k=k))
    close(metrics.log_loss(labels, probabilities), reference.log_loss(labels, probabilities))
    weights = np.arange(len(labels)) % 4
    expected = reference.log_loss(labels, probabilities, sample_weight=weights)
    close(metrics.log_loss(labels, probabilities, weights), expected)


def test_classes_without_faces_do_not_count_in_the_means():
    labels, predicted = [0, 0, 1, 1], [0, 3, 1, 1]
    matrix = metrics.confusion_matrix(labels, predicted, 5)
    close(metrics.macro_f1(matrix), reference.f1_score(labels, predicted, labels=[0, 1], average="macro"))
    close(metrics.balanced_accuracy(matrix), 0.75)
    found = metrics.per_class(matrix)
    np.testing.assert_array_equal(np.isnan(found.recall), [False, False, True, True, True])
    np.testing.assert_array_equal(np.isnan(found.precision), [False, False, True, False, True])
    np.testing.assert_array_equal(np.isnan(found.f1), [False, False, True, False, True])


def test_a_single_class_that_is_always_right_is_1():
    matrix = metrics.confusion_matrix([2, 2], [2, 2], 4)
    for figure in (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.weighted_f1):
        assert figure(matrix) == 1


def test_no_faces_give_nan_and_no_warning():
    matrix = metrics.confusion_matrix([], [], 3)
    for figure in (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.weighted_f1):
        assert math.isnan(figure(matrix))
    nothing = np.zeros((0, 3))
    assert metrics.softmax(nothing).shape == (0, 3)
    assert math.isnan(metrics.top_k_accuracy([], nothing, 2))
    assert math.isnan(metrics.log_loss([], nothing))
    assert math.isnan(metrics.ece(metrics.reliability([], [])))
    assert math.isnan(metrics.risk_coverage([], []).aurc)


def test_a_stack_of_matrices_gives_what_each_gives_alone():
    stack = np.random.default_rng(1).integers(0, 9, (5, 4, 4))
    for figure in (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.weighted_f1):
        np.testing.assert_allclose(figure(stack), [figure(one) for one in stack], atol=EXACT)


def test_an_id_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match="ids must be from 0 to 2, not 0 to 3"):
        metrics.confusion_matrix([0, 3], [0, 0], 3)
    with pytest.raises(ValueError, match="not -1 to 1"):
        metrics.confusion_matrix([0, 1], [-1, 1], 3)


def test_of_equal_scores_the_lower_id_comes_first():
    tied = np.array([[1.0, 1.0, 1.0]] * 3)
    assert metrics.in_top([0, 1, 2], tied, 1).tolist() == [True, False, False]
    assert metrics.in_top([0, 1, 2], tied, 2).tolist() == [True, True, False]
    assert metrics.in_top([0, 1, 2], tied, 9).tolist() == [True, True, True]


def test_a_true_class_of_probability_0_costs_36_nats_and_not_infinity():
    assert metrics.log_loss([0], [[0.0, 1.0]]) == pytest.approx(36.0436533891)


def test_large_logits_do_not_overflow():
    np.testing.assert_array_equal(metrics.softmax([[1e4, 0.0], [-1e4, 0.0]]), [[1, 0], [0, 1]])


def test_a_bin_holds_its_upper_edge_and_the_first_one_0():
    edge = 1 / metrics.BINS
    assert metrics.bin_of([0, edge, np.nextafter(edge, 1), 1]).tolist() == [0, 0, 1, 14]


def test_ece_is_the_distance_of_promise_and_truth_weighted_by_faces():
    confidence, correct = [0.95, 0.95, 0.95, 0.95, 0.55, 0.55], [1, 1, 1, 0, 1, 0]
    found = metrics.reliability(confidence, correct)
    assert found.faces[[8, 14]].tolist() == [2, 4]
    assert np.isnan(found.accuracy).sum() == 13
    close(found.accuracy[14], 0.75)
    close(metrics.ece(found), (4 * 0.20 + 2 * 0.05) / 6)


def test_risk_by_coverage_answers_faces_of_equal_confidence_together():
    found = metrics.risk_coverage([0.9, 0.8, 0.8, 0.5], [1, 0, 1, 0])
    np.testing.assert_allclose(found.coverage, [0.25, 0.75, 1.0], atol=EXACT)
    np.testing.assert_allclose(found.risk, [0, 1 / 3, 0.5], atol=EXACT)
    close(found.aurc, (0 + 1 / 3 + 1 / 3 + 1 / 2) / 4)


def test_a_model_that_is_equally_unsure_of_all_has_its_error_rate_as_aurc():
    close(metrics.risk_coverage([0.3] * 4, [1, 0, 0, 0]).aurc, 0.75)


def test_a_weight_of_n_is_the_face_n_times():
    labels, logits = scores(200)
    weights = np.random.default_rng(3).integers(0, 4, 200)
    again = np.repeat(np.arange(200), weights)
    probabilities, predicted = metrics.softmax(logits), logits.argmax(1)
    sure, correct = probabilities.max(1), (predicted == labels).astype(float)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(labels, predicted, CLASSES, weights),
        metrics.confusion_matrix(labels[again], predicted[again], CLASSES),
    )
    close(metrics.top_k_accuracy(labels, logits, 2, weights), metrics.top_k_accuracy(labels[again], logits[again], 2))
    close(metrics.log_loss(labels, probabilities, weights), metrics.log_loss(labels[again], probabilities[again]))
    close(
        metrics.ece(metrics.reliability(sure, correct, weights)),
        metrics.ece(metrics.reliability(sure[again], correct[again])),
    )
    one, other = metrics.risk_coverage(sure, correct, weights), metrics.risk_coverage(sure[again], correct[again])
    close(one.aurc, other.aurc)


# --- Temperature ------------------------------------------------------------------------------------------------------


def test_the_temperature_is_the_one_of_least_log_loss():
    labels, logits = scores()
    logits *= 3
    found = fit_temperature(logits, labels)
    best = min(np.arange(0.5, 6, 0.001), key=lambda t: metrics.log_loss(labels, metrics.softmax(logits, t)))
    assert found == pytest.approx(best, abs=0.001)
    assert fit_temperature(logits * 2, labels) == pytest.approx(2 * found, rel=1e-9)


def test_labels_drawn_from_the_probabilities_themselves_give_a_temperature_of_1():
    logits = np.random.default_rng(5).normal(size=(50_000, 4)) * 2
    drawn = (metrics.softmax(logits).cumsum(1) < np.random.default_rng(6).random((50_000, 1))).sum(1)
    assert fit_temperature(logits, drawn) == pytest.approx(1, abs=0.02)


def test_temperatures_at_the_edges():
    assert fit_temperature(np.zeros((0, 3)), []) == 1
    assert fit_temperature([[9.0, 0.0], [0.0, 9.0]], [0, 1]) == pytest.approx(LOWEST)
    assert fit_temperature([[9.0, 0.0], [0.0, 9.0]], [1, 0]) == pytest.approx(HIGHEST)
