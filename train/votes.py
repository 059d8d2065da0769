"""What the votes of several annotators say of a label: soft targets for training, made of both.

Where the votes are another jury's, as FER+ is for FER-2013, their words are not the label's: of the faces that FER-2013
calls fear, most FER+ annotators see surprise. Such votes are translated first: into how often training faces with votes
like these have each label.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset_tools.metrics import softmax

_ROUNDS = 500
_RATE = 2.0
"""Half of what would diverge: shares add up to 1, which bounds the curvature by 1/2."""


def soft_targets(
    shares: NDArray[Any], labels: NDArray[np.int64], part: float, *, translate: bool
) -> NDArray[np.float32]:
    """(faces, classes) targets. shares: of the votes, for each face and class; all 0 is a face without votes, whose
    target is its label. part: of the votes in the target, the label has the rest."""
    own = np.eye(shares.shape[1])[labels]
    voted = shares.sum(1) > 0
    said = shares[voted]
    if translate and voted.any():
        said = _translated(said, own[voted])
    targets = own.copy()
    targets[voted] = (1 - part) * own[voted] + part * said
    return targets.astype(np.float32)


def _translated(shares: NDArray[Any], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chance of each label, given the votes: multinomial regression on these faces, by plain descent."""
    # Ten votes make few different rows, so that the faces are counted once and not gone through in every round.
    rows, which = np.unique(shares.astype(np.float64), axis=0, return_inverse=True)
    counts = np.zeros((len(rows), own.shape[1]))
    np.add.at(counts, which, own)
    faces = counts.sum(1, keepdims=True)
    weights = np.zeros((shares.shape[1], own.shape[1]))
    for _ in range(_ROUNDS):
        weights -= _RATE * rows.T @ (softmax(rows @ weights) * faces - counts) / len(shares)
    return softmax(rows @ weights)[which]
