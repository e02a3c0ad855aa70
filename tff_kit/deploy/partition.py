"""One client's data in a folder, to be copied to its device.

    client.json    the client's id, what the data is, how many examples
    examples.npz   inputs and labels, in the order in which the simulation has them

A task whose data is in files of its own writes these instead (`FederatedDataset.write_client`).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tff_kit.datasets import DataError, FederatedDataset
from tff_kit.deploy import written

_EXAMPLES = "examples.npz"
_SEED, _OTHER_SEED = 1, 2  # Two draws of a client's examples, one to read them and one to check them.


def write(data: FederatedDataset, client: str, folder: pathlib.Path) -> None:
    """Writes one client's data to a new folder.

    Args:
      data: Of an experiment with one local epoch.
      client: Its id.
      folder: Where.

    Raises:
      DataError: If the folder is in use, there is no such client, or a device could not draw the same batches from a folder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"Expected a new or empty folder for client {client}, found {folder} in use.")
    if client not in data.client_ids:
        raise DataError(f"Expected clients of {data.name}, such as {', '.join(data.client_ids[:3])}; found {client!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    if data.write_client is not None:
        data.write_client(client, folder)
        return
    inputs, labels = _in_order(data, client)
    _check_same_batches(data, client, inputs, labels)
    np.savez(folder / _EXAMPLES, inputs=inputs, labels=labels)
    description = {"client": client, "name": data.name, "examples": len(labels)}
    (folder / written.DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def is_written(folder: pathlib.Path) -> bool:
    """Returns whether `folder` holds a client's examples."""
    return (folder / written.DESCRIPTION).is_file()


def load(folder: pathlib.Path, batch_size: int, local_epochs: int) -> FederatedDataset:
    """Returns the data of the one client in `folder`, without held-out examples; raises `DataError` where it is damaged."""
    try:
        description = json.loads((folder / written.DESCRIPTION).read_text())
        with np.load(folder / _EXAMPLES) as file:
            inputs, labels = file["inputs"], file["labels"]
        if not len(inputs) == len(labels) == description["examples"] > 0:
            raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels")
        client, name = str(description["client"]), str(description["name"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"Expected a client's data in {folder}, found it damaged: {error}. Copy the folder again.") from error

    def client_dataset(_: Any, seed: tf.Tensor) -> tf.data.Dataset:
        shuffled = _shuffled(tf.data.Dataset.from_tensor_slices((inputs, labels)), len(labels), seed)
        return shuffled.repeat(local_epochs).batch(batch_size)

    nobody = tf.data.Dataset.from_tensor_slices((inputs[:0], labels[:0])).batch(batch_size)
    return FederatedDataset(name, (client,), client_dataset, nobody)


def _shuffled(dataset: tf.data.Dataset, count: int, seed: Any) -> tf.data.Dataset:
    return dataset.shuffle(count, seed=seed)


def _in_order(data: FederatedDataset, client: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a client's examples in the order that its shuffling starts from."""
    inputs, labels = _drawn(data, client, _SEED)
    places = np.array([*_shuffled(tf.data.Dataset.range(len(labels)), len(labels), _SEED).as_numpy_iterator()])
    order = np.argsort(places)
    return inputs[order], labels[order]


def _drawn(data: FederatedDataset, client: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    batches = data.client_dataset(tf.constant(client), tf.constant(seed, tf.int64))
    inputs, labels = (np.concatenate(column) for column in zip(*batches.as_numpy_iterator()))
    return inputs, labels


def _check_same_batches(data: FederatedDataset, client: str, inputs: np.ndarray, labels: np.ndarray) -> None:
    again = _shuffled(tf.data.Dataset.from_tensor_slices((inputs, labels)), len(labels), _OTHER_SEED)
    pairs = zip(again.batch(len(labels)).get_single_element(), _drawn(data, client, _OTHER_SEED))
    if not all(np.array_equal(x, y) for x, y in pairs):
        raise DataError(
            f"Expected clients of {data.name} that shuffle their examples whole and take each once in an epoch, found others: a "
            "device could not draw the same batches. Give the dataset a write_client of its own."
        )


def write_all(data: FederatedDataset, clients: Sequence[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes each client to a folder of its id in `folder`, and returns these.

    Raises:
      DataError: As `write`, and if an id can't be a folder's name.
    """
    for client in clients:
        if client != pathlib.Path(client).name:
            raise DataError(f"Expected ids of clients that can be a folder's name, found {client!r}.")
    places = [folder / client for client in clients]
    for client, place in zip(clients, places):
        write(data, client, place)
    return places
