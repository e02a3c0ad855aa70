"""The updates that clients would send after local training, to look at and to try encoders on."""

from __future__ import annotations

from tff_kit.requirements import require_tff

require_tff()

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_kit import runtime
from tff_kit.algorithm import assembly
from tff_kit.experiment import Experiment
from tff_kit.training import runs


def client_updates(experiment: Experiment, run: runs.RunDirectory, clients: int) -> list[list[np.ndarray]]:
    """Returns the updates of the first `clients` clients that start from the final model of `run`.

    Args:
      experiment: The settings that `run` was trained with; its encoders, its noise and its server's optimizer do not matter.
      run: A finished run.
      clients: Number of clients.

    Returns:
      For each client an array a trainable variable, float32: the weights after its local training minus those before.
    """
    data = experiment.load_data()
    process = assembly.build_process(experiment.plain(), data)
    model = experiment.build_model()
    run.load_weights(model)
    weights = tff.learning.models.ModelWeights.from_model(model)
    before = tf.nest.map_structure(lambda variable: variable.numpy(), weights)
    worker = runtime.Worker()
    updates = []
    try:
        with tff.framework.get_context_stack().install(runtime.create_context(runtime.worker_executor_factory(worker))):
            state = process.set_model_weights(process.initialize(), before)
            for client in data.client_ids[:clients]:
                # The server adds the mean update of all clients; here there is one.
                after = process.get_model_weights(process.next(state, [(client.encode(), 0)]).state).trainable
                updates.append([np.asarray(y - x, np.float32) for x, y in zip(before.trainable, after)])
    finally:
        worker.stop()
    return updates
