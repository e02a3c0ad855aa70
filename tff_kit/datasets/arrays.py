"""Client data of your own, from arrays in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

import numpy as np
import tensorflow as tf

from tff_kit.datasets.federated import DataError, FederatedDataset

_TEST_BATCH_SIZE = 500
Arrays = Union[np.ndarray, Mapping[str, Any], tuple]
Examples = tuple[Arrays, Arrays]


def from_arrays(
    name: str, clients: Mapping[str, Examples], test: Examples, batch_size: int = 20, local_epochs: int = 1
) -> FederatedDataset:
    """Returns clients' data for `Experiment.load_data` from arrays.

    All of it travels to TFF's worker once, as part of the program, so it should be some hundred megabytes at most; larger data
    is read by the worker from files, as `tff_kit.datasets.emnist` does.

    Inputs and labels are each one array [examples, ...], or a dict or tuple of such arrays, for a model with several inputs or
    outputs. An array has one dtype for all clients and the test: float32 where one of them has floats, int32 for integer and
    boolean labels, else what holds the integers of all, or strings.

    Args:
      name: The data, in a few words.
      clients: Inputs and labels of each client by its id, any string. A list of arrays is one array, with one of them an example.
      test: Held-out inputs and labels, in the same form.
      batch_size: Examples in a training batch; a client's last one is smaller.
      local_epochs: How often a client goes through its examples in a round.

    Raises:
      DataError: If there is no client, or one without examples; if inputs and labels, or clients and test, differ in their
        numbers, shapes, kinds or names; or if a number does not fit the dtype.
    """
    if not isinstance(clients, Mapping) or not clients:
        found = "none" if isinstance(clients, Mapping) else f"one of type {type(clients).__name__}"
        raise DataError(f"Expected a dict of clients in {name}, found {found}.")
    places = [*(f"client {client}" for client in clients), "the test"]
    examples = [_as_arrays(f"{name}, {place}", of) for place, of in zip(places, (*clients.values(), test))]
    _check_same_structure(name, places, examples)
    *of_clients, held_out = _in_common_dtypes(name, places, examples)
    together = tf.nest.map_structure(lambda *rows: np.concatenate(rows), *of_clients)
    lengths = [len(tf.nest.flatten(of)[0]) for of in of_clients]
    ends = np.cumsum(lengths)
    ids = tuple(map(str, clients))

    def client_dataset(client: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        place = tf.argmax(tf.equal([of.encode() for of in ids], client))
        rows = slice(tf.gather([0, *ends[:-1]], place), tf.gather(ends, place))
        own = tf.nest.map_structure(lambda array: tf.constant(array)[rows], together)
        return tf.data.Dataset.from_tensor_slices(own).shuffle(max(lengths), seed=seed).repeat(local_epochs).batch(batch_size)

    tested = tf.data.Dataset.from_tensor_slices(held_out).batch(_TEST_BATCH_SIZE)
    return FederatedDataset(name, ids, client_dataset, tested)


def _as_arrays(what: str, examples: Any) -> Examples:
    """Returns inputs and labels as structures of NumPy arrays, all of the same length."""
    if not isinstance(examples, (tuple, list)) or len(examples) != 2:
        raise DataError(f"Expected a pair of inputs and labels in {what}, found one of type {type(examples).__name__}.")
    arrays = tuple(_map_arrays(lambda array: _as_array(what, array), part) for part in examples)
    shapes = [array.shape for array in tf.nest.flatten(arrays)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(shapes) < 2 or len(lengths) > 1 or not next(iter(lengths)):
        found = " and ".join(str(list(shape)) for shape in shapes)
        raise DataError(
            f"Expected inputs [examples, ...] and as many labels [examples, ...], at least one, in {what}; found shapes {found}."
        )
    return arrays


def _map_arrays(function: Any, part: Any) -> Any:
    """Maps the arrays of a dict or a tuple of arrays. A list is an array: of numbers, or of an array an example."""
    if isinstance(part, Mapping):
        return {str(key): _map_arrays(function, value) for key, value in part.items()}
    if isinstance(part, tuple) and any(isinstance(value, (np.ndarray, tf.Tensor, Mapping)) for value in part):
        return tuple(_map_arrays(function, value) for value in part)
    return function(part)


def _as_array(what: str, values: Any) -> np.ndarray:
    if np.ma.is_masked(values):
        raise DataError(f"Expected examples without gaps in {what}, found a masked array. Fill it.")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"Expected examples of one shape in {what}, found others: {str(error).rstrip('.')}.") from error
    if array.dtype == object and array.size and all(isinstance(x, (str, bytes)) for x in array.flat):
        return array
    if array.dtype.kind in "US":
        return array.astype(object)  # NumPy's strings are of one length, and lose zeros at their end.
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(f"Expected numbers, booleans or strings, examples of one shape, in {what}; found {array.dtype}.")
    return array


def _describe(array: np.ndarray) -> str:
    return f"{'strings' if array.dtype == object else array.dtype} {list(array.shape[1:])}"


def _names(what: str, structure: Any) -> list[str]:
    """Returns a name for each array of a structure, in the order of `tf.nest.flatten`."""
    if isinstance(structure, dict):
        return [name for key in sorted(structure) for name in _names(f"{what} {key!r}", structure[key])]
    if isinstance(structure, tuple):
        return [name for i, value in enumerate(structure) for name in _names(f"{what} {i}", value)]
    return [what]


def _check_same_structure(name: str, places: list[str], examples: list[Examples]) -> None:
    for place, of in zip(places, examples):
        try:
            tf.nest.assert_same_structure(examples[0], of)
        except (ValueError, TypeError) as error:
            found = " and ".join(f"{_outline(part)} of {where}" for where, part in ((places[0], examples[0]), (place, of)))
            raise DataError(f"Expected arrays of the same names in all of {name}, found {found}.") from error


def _outline(structure: Any) -> str:
    if isinstance(structure, dict):
        return "{" + ", ".join(f"{key}: {_outline(value)}" for key, value in structure.items()) + "}"
    return f"({', '.join(map(_outline, structure))})" if isinstance(structure, tuple) else "array"


def _in_common_dtypes(name: str, places: list[str], examples: list[Examples]) -> list[Examples]:
    inputs, labels = examples[0]
    names = [*_names(f"inputs of {name}", inputs), *_names(f"labels of {name}", labels)]
    columns = [
        _of_one_dtype(what, places, what.startswith("labels"), arrays)
        for what, arrays in zip(names, zip(*map(tf.nest.flatten, examples)))
    ]
    return [tf.nest.pack_sequence_as(examples[0], list(row)) for row in zip(*columns)]


def _of_one_dtype(what: str, places: list[str], is_label: bool, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the arrays in one dtype that holds all of their values, or raises `DataError`."""
    first = arrays[0]
    for place, array in zip(places, arrays):
        if (array.dtype == object) != (first.dtype == object) or array.shape[1:] != first.shape[1:]:
            raise DataError(
                f"Expected examples of one dtype and shape as {what}, found {_describe(first)} of {places[0]} and "
                f"{_describe(array)} of {place}."
            )
    if first.dtype == object:
        if is_label:
            raise DataError(f"Expected numbers as {what}, found strings. Number the classes from 0.")
        return list(arrays)
    dtype = np.dtype(np.int32) if is_label else np.result_type(*arrays)
    if any(array.dtype.kind == "f" for array in arrays):
        dtype = np.dtype(np.float32)
    elif dtype.kind == "f":  # What NumPy takes for signed and unsigned integers of 64 bits together.
        dtype = np.dtype(np.int64)
    return [_cast(f"{what}, {place}", array, dtype) for place, array in zip(places, arrays)]


def _cast(what: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Casts exactly, except that float64 is rounded; raises `DataError` where a number does not fit."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
        if array.dtype.kind == "f":
            fits = np.isfinite(cast) | ~np.isfinite(array)
        else:
            fits = (cast.astype(array.dtype) == array) & ((cast < 0) == (array < 0))
    if not np.all(fits):
        raise DataError(
            f"Expected numbers that {dtype} holds as {what}, found {array[~fits].flat[0]}. Scale them or number them anew."
        )
    return cast
