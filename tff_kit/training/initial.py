"""Initial weights that clients know: drawn by each from the seed, or sent to each once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_kit.algorithm import assembly, processes
from tff_kit.datasets import FederatedDataset
from tff_kit.encoders.size import format_size
from tff_kit.experiment import Experiment
from tff_kit.runtime import sizing
from tff_kit.training import participation, runs


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
        kept = tff.program.FileProgramStateManager(self._run.checkpoints, prefix="initial_")
        if asyncio.run(kept.get_versions()):
            return tf.nest.pack_sequence_as(weights, self._load(kept, tf.nest.flatten(weights)))
        asyncio.run(kept.save(tf.nest.flatten(weights), version=0))
        return weights

    def _load(self, kept: tff.program.FileProgramStateManager, expected: list[np.ndarray]) -> list[np.ndarray]:
        return asyncio.run(kept.load(0, expected))
