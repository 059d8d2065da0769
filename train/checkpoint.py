"""Where a training run stands, after each epoch: all that the next epoch hangs on, in one folder, and back.

Arrays in state.npz and the rest in state.json. The optimizer's moments are part of it, since a run that resumed without
them would take another path. Plain arrays, not a saved model: the recipe builds the model again, and neither Keras'
version nor a frozen layer's flag stands between a checkpoint and its run. The model itself is written at the end.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[Any]]
_LISTS = ("weights", "optimizer", "averaged", "best")


@dataclass
class State:
    """stage, epoch: what comes next. weights: of the model, all. averaged: those that weight averaging follows, if it
    does. best: weights of the best epoch, best_value: its monitored value (higher is better), stale: epochs since."""

    weights: Arrays
    stage: int = 0
    epoch: int = 0
    optimizer: Arrays = field(default_factory=list)
    averaged: Arrays = field(default_factory=list)
    best: Arrays = field(default_factory=list)
    best_value: float | None = None
    stale: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def write_state(folder: str, state: State) -> None:
    """Fill a local folder."""
    arrays = {f"{name}-{at:04d}": one for name in _LISTS for at, one in enumerate(getattr(state, name))}
    np.savez(Path(folder) / "state.npz", **arrays)
    values = {name: getattr(state, name) for name in ("stage", "epoch", "best_value", "stale", "history")}
    (Path(folder) / "state.json").write_text(json.dumps(values))


def read_state(folder: str) -> State:
    """What `write_state` left in a local folder."""
    values = json.loads((Path(folder) / "state.json").read_text())
    with np.load(Path(folder) / "state.npz", allow_pickle=False) as arrays:
        lists: dict[str, Any] = {
            name: [arrays[key] for key in sorted(arrays.files) if key.startswith(f"{name}-")] for name in _LISTS
        }
    return State(**lists, **values)
