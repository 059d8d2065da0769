"""Soft targets: label and votes in the parts that were asked for, and another jury's words put into the set's own."""

import numpy as np
import pytest

from tests import train_toy
from train.data import DataError, _shares, describe, read_rows
from train.votes import soft_targets

SHARES = np.array([[0.8, 0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]], np.float32)
LABELS = np.array([0, 2, 1])


def test_a_target_is_made_of_label_and_votes():
    targets = soft_targets(SHARES, LABELS, 0.25, translate=False)
    assert targets.dtype == np.float32
    assert targets == pytest.approx(np.array([[0.95, 0.05, 0.0], [0.0, 0.0, 1.0], [0.0, 0.875, 0.125]]))


def test_a_face_without_votes_keeps_its_label():
    assert soft_targets(SHARES, LABELS, 1.0, translate=True)[1].tolist() == [0.0, 0.0, 1.0]


def test_votes_of_another_jury_become_what_the_labels_of_such_faces_are():
    shares = np.repeat(np.eye(3), [80, 20, 100], axis=0)  # the jury says 0, 0, 1, 2 where the set says 0, 1, 1, 2
    labels = np.repeat([0, 1, 2], [60, 40, 100])
    found = soft_targets(shares, labels, 1.0, translate=True)
    assert found[0] == pytest.approx([0.75, 0.25, 0.0], abs=0.02)
    assert found[199].argmax() == 2
    assert np.allclose(found.sum(1), 1)


def test_translation_never_looks_at_faces_without_votes():
    more = np.concatenate([SHARES, np.zeros((50, 3), np.float32)])
    labels = np.concatenate([LABELS, np.zeros(50, int)])
    with_more = soft_targets(more, labels, 1.0, translate=True)
    assert np.array_equal(with_more[:3], soft_targets(SHARES, LABELS, 1.0, translate=True))


def test_without_soft_labels_no_votes_are_read(tmp_path):
    rows = read_rows(describe(train_toy.build(str(tmp_path / "set"))), "train")
    assert np.array_equal(rows.targets, np.eye(3, dtype=np.float32)[rows.labels])


def test_votes_are_shares_of_those_that_were_given():
    assert _shares([[3, 1, 0], None, [0, 0, 0]], 3, "set").tolist() == [[0.75, 0.25, 0.0], [0.0] * 3, [0.0] * 3]
    with pytest.raises(DataError, match="set has 2 votes for 3 classes: set soft_labels = 0"):
        _shares([[1, 1]], 3, "set")
