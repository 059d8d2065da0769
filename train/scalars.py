"""History rows as TensorBoard scalars, written as the epochs come, so that a long run can be watched."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_SHOWN = ("rate", "loss", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1", "images_per_s")


def scalar_writer(folder: str) -> Callable[[dict[str, Any]], None]:
    """A function that takes history rows. folder: local; a run that is continued adds another file to it."""
    writer = tf.summary.create_file_writer(folder)

    def write(row: dict[str, Any]) -> None:
        with writer.as_default(step=row["epoch"]):
            for name in _SHOWN:
                tf.summary.scalar(f"{row['stage']}/{name}", row[name])
        writer.flush()

    return write
