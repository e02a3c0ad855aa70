"""Checks of a user's own `FederatedDataset`, before anything is trained: pairs in batches, and what a worker can run."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tff_kit.datasets.federated import DataError, FederatedDataset
from tff_kit.errors import UserError, first_line

_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
"""Operations that call Python in the process that made them, so no other process can run them."""


def check_clients(data: FederatedDataset) -> None:
    """Raises `DataError` if clients' data is not batches of pairs, or is not made of TensorFlow operations only.

    No examples are read: `client_dataset` is called once in a graph, as TFF calls it for the worker.
    """
    what = f"client_dataset of {data.name}"
    with tf.Graph().as_default() as graph:
        client, seed = (tf.compat.v1.placeholder(dtype, []) for dtype in (tf.string, tf.int64))
        try:
            batches = data.client_dataset(client, seed)
            if isinstance(batches, tf.data.Dataset):
                batches.with_options(tf.data.Options())  # Refuses a dataset that was made outside of the graph.
            made = graph.as_graph_def()
        except UserError:
            raise
        except Exception as error:  # Whatever TensorFlow and the user's own code raise there.
            raise DataError(
                f"Expected {what} to make its dataset anew of TensorFlow operations only, since the worker runs it; found "
                f"{type(error).__name__}: {first_line(error)}. Make the dataset inside of it, or use tff_kit.from_arrays."
            ) from error
        _check_pairs(what, batches)
    operations = {node.op for node in made.node}.union(node.op for of in made.library.function for node in of.node_def)
    if operations & _PYTHON:
        raise DataError(
            f"Expected {what} to be of TensorFlow operations only, since the worker runs it; found Python code in it, as from "
            "from_generator, py_function or numpy_function. Use from_tensor_slices, files that TensorFlow reads, or "
            "tff_kit.from_arrays."
        )


def check_held_out(data: FederatedDataset) -> None:
    """Raises `DataError` if the held-out data is not batches of pairs, or has none. The first batch is read."""
    what = f"the held-out test of {data.name}"
    _check_pairs(what, data.test)
    try:
        first = next(iter(data.test), None)
    except tf.errors.OpError as error:
        raise DataError(f"Expected {what} to be examples that can be read, found: {first_line(error.message)}.") from error
    if first is None or not len(tf.nest.flatten(first)[-1]):
        raise DataError(f"Expected examples in {what}, found none. Hold some out from training.")


def _check_pairs(what: str, batches: Any) -> None:
    if not isinstance(batches, tf.data.Dataset):
        raise DataError(f"Expected {what} to be a tf.data.Dataset, found one of type {type(batches).__name__}.")
    spec = batches.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        found = f"a tuple of {len(spec)}" if isinstance(spec, tuple) else f"one of type {type(spec).__name__}"
        raise DataError(f"Expected batches of (inputs, labels) in {what}, found {found}. Add map(lambda ...: (inputs, labels)).")
    shapes = [one.shape for one in tf.nest.flatten(spec) if isinstance(one, tf.TensorSpec)]
    known = [shape for shape in shapes if shape.rank is not None]
    lengths = {shape[0] for shape in known if shape.rank} - {None}
    if len(lengths) > 1 or any(shape.rank == 0 for shape in known):
        found = " and ".join(map(str, known))
        raise DataError(f"Expected batches in {what}, of [examples, ...] each; found shapes {found}. Add batch(...).")
