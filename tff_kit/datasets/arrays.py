"""Client data of one's own, from arrays in memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tff_kit.datasets.federated import DataError, FederatedDataset

_TEST_BATCH_SIZE = 500
Examples = tuple[np.ndarray, np.ndarray]


def from_arrays(
    name: str, clients: Mapping[str, Examples], test: Examples, batch_size: int = 20, local_epochs: int = 1
) -> FederatedDataset:
    """Returns clients' data for `Experiment.load_data` from arrays.

    All of it travels to TFF's worker once, as part of the program, so it should be some hundred megabytes at most; larger data
    is read by the worker from files, as `tff_kit.datasets.emnist` does.

    Args:
      name: What the data is, in a few words.
      clients: Inputs [examples, ...] and integer labels [examples] of each client by its id. Floats become float32.
      test: Held-out inputs and labels likewise.
      batch_size: Examples in a training batch; a client's last one is smaller.
      local_epochs: How often a client goes through its examples in a round.

    Raises:
      DataError: If there is no client, or one without examples, or inputs and labels do not fit each other.
    """
    if not clients:
        raise DataError(f"Expected clients in {name}, found none.")
    arrays = {client: _checked(f"{name}, client {client}", *examples) for client, examples in clients.items()}
    ends = np.cumsum([len(labels) for _, labels in arrays.values()])
    try:
        inputs, labels = (np.concatenate(column) for column in zip(*arrays.values()))
    except ValueError as error:
        raise DataError(f"Expected inputs of one shape in all clients of {name}, found others: {error}.") from error
    if np.issubdtype(inputs.dtype, np.floating):
        inputs = inputs.astype(np.float32)
    ids, largest = tuple(arrays), max(len(labels) for _, labels in arrays.values())

    def client_dataset(client: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        place = tf.argmax(tf.equal(ids, client))
        rows = slice(tf.gather([0, *ends[:-1]], place), tf.gather(ends, place))
        examples = tf.data.Dataset.from_tensor_slices((tf.constant(inputs)[rows], tf.constant(labels)[rows]))
        return examples.shuffle(largest, seed=seed).repeat(local_epochs).batch(batch_size)

    test_inputs, test_labels = _checked(f"{name}, test", *test)
    held_out = tf.data.Dataset.from_tensor_slices((test_inputs.astype(inputs.dtype), test_labels))
    return FederatedDataset(name, ids, client_dataset, held_out.batch(_TEST_BATCH_SIZE))


def _checked(what: str, inputs: np.ndarray, labels: np.ndarray) -> Examples:
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if labels.ndim != 1 or len(inputs) != len(labels) or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"Expected inputs [examples, ...] and as many integer labels [examples], at least one, in {what}; "
            f"found shapes {list(inputs.shape)} and {list(labels.shape)}, labels of {labels.dtype}."
        )
    return inputs, labels.astype(np.int32)
