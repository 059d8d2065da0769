"""What a worker process sets up in TensorFlow before anything else: threads, GPU memory, and the sum over all workers.

MultiWorkerMirroredStrategy is used as the collective alone. It finds the other workers in TF_CONFIG, which the engine
has set, and must be made before any other TensorFlow operation.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def prepare(threads: int | None) -> None:
    """threads: of one operation, None is one per core. A GPU's memory is taken as needed, not all at once."""
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)


def collective(timeout_s: int) -> Callable[[Any], Any]:
    """The sum of a vector over all workers, usable inside a tf.function.

    A worker that waits longer than `timeout_s` for the others raises: without it a lost one would hang all for ever.
    """
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout_s)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)

    def all_reduce(vector: Any) -> Any:
        def summed(one: Any) -> Any:
            # Without the identity: "destinations can not be empty".
            return tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(one))

        return strategy.run(summed, args=(vector,))

    return all_reduce
