"""Temperature scaling: validation logits and labels in, one number out that makes confidence mean what it says.

Dividing all logits by one temperature changes no prediction, only how sure it is. (Guo et al. 2017, "On Calibration of
Modern Neural Networks".)
"""

import numpy as np
from numpy.typing import ArrayLike

from dataset_tools.metrics import softmax

LOWEST, HIGHEST = 0.05, 20.0
_STEPS = 60


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature of the least log loss on (faces, classes) logits and (faces,) class ids, from 0.05 to 20.

    The loss is convex in 1 / temperature, so its slope rises, and halving the interval in which the slope changes its
    sign finds the minimum. No faces give 1; faces that are all right by a margin give the lowest bound, as any smaller
    temperature would fit them better.
    """
    scores, true = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if not len(true):
        return 1.0
    of_true = scores[np.arange(len(true)), true]
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        # The slope of the mean loss in 1 / temperature: the expected logit less that of the true class.
        slope = ((softmax(scores, 1 / middle) * scores).sum(1) - of_true).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(2 / (low + high))
