"""Initial weights that clients know: drawn by each from the seed, or sent to each once."""

from __future__ import annotations

from tff_kit.requirements import require_tff

require_tff()

from collections.abc import Iterable
from typing import Optional

import tensorflow as tf
import tensorflow_federated as tff

from tff_kit.algorithm import assembly, processes
from tff_kit.datasets import FederatedDataset
from tff_kit.encoders.size import format_size
from tff_kit.experiment import Experiment
from tff_kit.runtime import sizing
from tff_kit.training import checkpoints, participation, runs


class InitialWeights:
    """What a broadcast of changes starts from, where clients can't draw it: weights without a seed, or trained before.

    The server draws or loads them once, keeps them in the run directory, and sends them to each client with the first broadcast
    that it receives. Clients keep them, so later broadcasts are of the change alone.

    Attributes:
      weights: Arrays that every client receives once; `None` where clients draw the weights, or receive all of them each time.
    """

    def __init__(self, experiment: Experiment, data: FederatedDataset, run: runs.RunDirectory):
        self._experiment, self._data, self._run = experiment, data, run
        self._received: set[str] = set()
        self.weights = self._find() if experiment.broadcast_change else None

    def describe(self) -> str:
        """Returns a sentence on what they cost."""
        bits = sum(8 * x.dtype.itemsize * x.size for x in tf.nest.flatten(self.weights))
        return (
            "The initial weights are not drawn from the seed, so a client receives them once, before the changes: "
            f"{format_size(bits)} a client, counted in the round of its first broadcast."
        )

    def count(self, sizes: sizing.SizingExecutorFactory, receivers: Iterable[str]) -> None:
        """Counts them in the last call for those of `receivers` who receive a broadcast for the first time."""
        new = set(receivers) - self._received
        if self.weights is not None and new:
            sizes.add_received(len(new), tf.nest.flatten(self.weights))
        self._received |= new

    def go_on_after(self, rounds: int) -> None:
        """Remembers who received a broadcast in the first `rounds` rounds."""
        experiment = self._experiment
        count = experiment.clients_per_round(self._data)
        for round_num in range(1, rounds + 1):
            clients = participation.sample_clients(self._data.client_ids, count, round_num, experiment.seed)
            dropped, _ = participation.draw_missing(experiment, round_num, count)
            self._received.update(client for client, is_dropped in zip(clients, dropped) if not is_dropped)

    def _find(self) -> Optional[tff.learning.models.ModelWeights]:
        weights = tff.learning.models.ModelWeights.from_model(self._experiment.build_model())
        weights = tf.nest.map_structure(lambda variable: variable.numpy(), weights)
        if processes.draws_weights(assembly.build_model_fn(self._experiment, self._data), weights):
            return None
        kept = checkpoints.Checkpoints(self._run.checkpoints, prefix="initial_", kept=1)
        if not kept.versions():
            kept.save(tf.nest.flatten(weights), version=0)
            return weights
        try:
            found = kept.load(0, tf.nest.flatten(weights))
        except checkpoints.DamagedError as error:
            raise runs.RunError(f"Expected the initial weights, which clients have, but {error} Use another --logdir.") from error
        if found is None:
            raise runs.RunError(f"Expected initial weights of {self._experiment.task}'s model in {kept.path(0)}, found others.")
        return tf.nest.pack_sequence_as(weights, found)
