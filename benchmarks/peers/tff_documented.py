"""TensorFlow Federated's own federated averaging.

    python -m benchmarks.peers.tff_documented FOLDER

As its documentation writes it: a list of datasets a round, in its own default context.
"""

from __future__ import annotations

import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff

import tff_kit
from benchmarks.peers import rounds
from tff_kit.algorithm import assembly


def main() -> None:
    """Trains what it is told to."""
    task = rounds.open_task()
    experiment = {"emnist": tff_kit.Emnist, "kws": tff_kit.KeywordSpotting}[task.name](**task.settings)
    data = experiment.load_data()
    tff.backends.native.set_sync_local_cpp_execution_context()  # Which loading tff_kit.runtime replaced.
    process = tff.learning.algorithms.build_weighted_fed_avg(
        assembly.build_model_fn(experiment, data),
        client_optimizer_fn=assembly.build_client_optimizer(experiment),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(experiment.server_lr),
    )
    state = process.set_model_weights(process.initialize(), tff.learning.models.ModelWeights(task.initial_weights, []))

    def weights() -> list[np.ndarray]:
        return list(process.get_model_weights(state).trainable)

    for clients in rounds.rounds(f"tensorflow-federated {tff.__version__}", weights):
        datasets = [data.client_dataset(tf.constant(client), tf.constant(seed, tf.int64)) for client, seed in clients]
        state = process.next(state, datasets).state


if __name__ == "__main__":
    try:
        main()
    finally:
        for worker in psutil.Process().children():  # TFF leaves it behind.
            worker.kill()
