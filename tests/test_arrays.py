"""Clients' data from arrays."""

import numpy as np
import pytest
import tensorflow as tf

from tff_kit import datasets

X, Y = np.arange(24).reshape(12, 2), np.arange(12)
CLIENTS = {"a": (X[:5], Y[:5]), "b": (X[5:6], Y[5:6]), "c": (X[6:9] / 2, Y[6:9])}


def _batches(data, client, seed=0):
    return list(data.client_dataset(tf.constant(client), tf.constant(seed, tf.int64)).as_numpy_iterator())


def test_each_client_has_its_own_examples_shuffled_by_the_seed():
    data = datasets.from_arrays("numbers", CLIENTS, (X[9:], Y[9:]), batch_size=2, local_epochs=2)
    assert data.client_ids == ("a", "b", "c")
    assert data.element_spec[0].dtype == tf.float32
    for client, (inputs, labels) in CLIENTS.items():
        batches = _batches(data, client)
        assert [len(y) for _, y in batches[:-1]] == [2] * (len(labels) - 1)
        seen = sorted((int(y), tuple(x)) for xs, ys in batches for x, y in zip(xs, ys))
        assert seen == sorted(2 * [(int(y), tuple(x)) for x, y in zip(inputs, labels)])
    orders = {tuple(np.concatenate([y for _, y in _batches(data, "a", seed)])) for seed in (1, 1, 2, 3)}
    assert 1 < len(orders) <= 3
    ((inputs, labels),) = data.test.as_numpy_iterator()
    np.testing.assert_array_equal(inputs, X[9:])
    assert labels.dtype == np.int32


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({}, "Expected clients in numbers, found none"),
        ({"a": (X, Y[:3])}, r"client a; found shapes \[12, 2\] and \[3\]"),
        ({"a": (X[:0], Y[:0])}, "at least one"),
        ({"a": (X, Y / 2)}, "labels of float64"),
        ({"a": (X, Y), "b": (X[:, :1], Y)}, "inputs of one shape"),
    ],
)
def test_what_does_not_fit_is_refused(clients, message):
    with pytest.raises(datasets.DataError, match=message):
        datasets.from_arrays("numbers", clients, (X, Y))
