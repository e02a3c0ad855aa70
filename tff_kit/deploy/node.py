"""A client's side: the long-lived process with its data and graphs, which answers the server's messages.

Flower starts a new app process for every message. TensorFlow would have to be imported in each, which takes longer than the
training of a small client. So the app only carries a message to this process, through a Unix socket, and its answer back;
`client_process.py` runs it.
"""

from __future__ import annotations

import pathlib
import platform
from typing import Optional

import numpy as np
import tensorflow as tf

from tff_kit.datasets import DataError, FederatedDataset
from tff_kit.deploy import layouts, messages, partition
from tff_kit.deploy.client_work import ClientWork, model_variables
from tff_kit.deploy.codecs import build_broadcast_codec, build_mean_codec
from tff_kit.deploy.optimizers import build_client_optimizer
from tff_kit.encoders import PayloadError
from tff_kit.errors import UserError
from tff_kit.experiment import Experiment, SettingsError
from tff_kit.tasks import TASKS, find_task
from tff_kit.training import settings

_FAULTS = (UserError, PayloadError, messages.MessageError, tf.errors.OpError, OSError)


class Node:
    """Answers one server's messages, one at a time.

    Args:
      task: The settings class of the task that this node takes part in, and no other.
      data: Where the client's data is, in the place of the server's setting.
      client: The client's id; `None` where the data is of one client.
    """

    def __init__(self, task: type[Experiment], data: str, client: Optional[str] = None):
        self._task, self._where, self._client = task, data, client
        self._key: Optional[bytes] = None
        self._session: Optional[_Session] = None

    def answer(self, data: bytes) -> bytes:
        """Returns the answer to a message. What can't be done becomes a refusal, in a sentence."""
        try:
            return self._answer(messages.unpack(data)).pack()
        except _FAULTS as error:
            return messages.Refusal(str(error)).pack()

    def _answer(self, message: messages.Message) -> messages.Message:
        if isinstance(message, messages.Settings):
            return self._open(message)
        if not isinstance(message, messages.Train):
            raise messages.MessageError(f"Expected settings or a model to train, found {type(message).__name__}.")
        if self._session is None or message.key != self._key:
            return messages.Unknown()
        return self._session.train(message)

    def _open(self, message: messages.Settings) -> messages.Hello:
        experiment = self._read_experiment(message)
        data = self._load_data(experiment)
        client = self._own_client(data)
        if message.key != self._key:
            self._session = _Session(experiment, data, client, message.initial)
            self._key = message.key
        versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "machine": platform.machine()}
        return messages.Hello(client, versions)

    def _read_experiment(self, message: messages.Settings) -> Experiment:
        if message.task != self._task.task:
            raise SettingsError(f"Expected the task {self._task.task}, found a server that trains {message.task}.")
        try:
            return settings.from_plain(self._task, {**message.settings, "data": self._where})
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(
                f"Expected the settings of {self._task.task}, found others: {error}. Both sides need the same tff_kit."
            ) from error

    def _load_data(self, experiment: Experiment) -> FederatedDataset:
        folder = pathlib.Path(self._where)
        if partition.is_written(folder):
            return partition.load(folder, experiment.batch_size, experiment.local_epochs)
        return experiment.load_data()

    def _own_client(self, data: FederatedDataset) -> str:
        if self._client is None and len(data.client_ids) == 1:
            return data.client_ids[0]
        if self._client in data.client_ids:
            return str(self._client)
        asked = f"client {self._client}" if self._client else "one client"
        raise DataError(
            f"Expected {asked} in {data.name}, found {len(data.client_ids)} clients: {', '.join(data.client_ids[:5])} and so on. "
            "Name one by --client."
        )


def find_federated_task(name: str) -> type[Experiment]:
    """Returns the settings class of a task that clients train together; raises `SettingsError` for another name."""
    found = find_task(name) if name in TASKS else None
    if found is None or not issubclass(found, Experiment):
        raise SettingsError(f"Expected a task that clients train together, one of {', '.join(TASKS)}; found {name!r}.")
    return found


class _Session:
    """What a node keeps from round to round: model, graphs and data, but nothing that it has learned."""

    def __init__(self, experiment: Experiment, data: FederatedDataset, client: str, initial: str):
        self._work = ClientWork(experiment, data, client)
        model = self._work.model
        self._broadcast, self._mean = build_broadcast_codec(experiment, model), build_mean_codec(experiment, model)
        self._numbers = layouts.numbers_layout(build_client_optimizer(experiment))
        self._scalars = layouts.scalars_layout(self._work.metrics)
        self._initial = [x.numpy() for x in model_variables(model)] if experiment.broadcast_change else None
        if self._initial and layouts.weights_digest(self._initial) != initial:
            raise SettingsError(
                "Expected the server's initial weights to be drawn here too, as --broadcast-change needs it; found others. "
                f"TensorFlow {tf.__version__} draws differently from the server's. Leave --broadcast-change out."
            )

    def train(self, message: messages.Train) -> messages.Trained:
        weights = self._broadcast.decode(message.model)
        if self._initial:
            weights = [x0 + x for x0, x in zip(self._initial, weights)]
        update = self._work.train(weights, message.seed, self._numbers.unpack(message.numbers))
        sent = self._mean.encode(update.values, update.weight, message.params)
        scalars = [np.float32(update.weight), np.int32(not update.is_finite), *update.measured]
        return messages.Trained(message.round_num, self._scalars.pack(scalars), sent.payload)
