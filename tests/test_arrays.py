"""Clients' data from arrays."""

import numpy as np
import pytest
import tensorflow as tf

from tff_kit import datasets
from tff_kit.datasets import batches

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


LONG = np.array([2**32 + 7] * 12)
WORDS = np.array(["ja", "no"] * 6)


@pytest.mark.parametrize(
    ("clients", "test", "dtypes"),
    [
        # What would change a value in silence: shorter strings, halves of the test, small integers.
        ((WORDS, Y), (np.array(["jamais", "nobody"]), Y[:2]), ("string", "int32")),
        ((np.array(["\0x", "y"] * 6, object), Y), (np.array(["x\0", "ö"], object), Y[:2]), ("string", "int32")),
        ((X, Y), (X / 2, Y), ("float32", "int32")),
        ((X.astype(np.uint8), Y > 3), (X + 1000, Y > 2), ("int64", "int32")),
        ((X.astype(np.uint64), Y), (X - 3, Y), ("int64", "int32")),
        ((X.astype(np.float16), Y.tolist()), (X.tolist(), Y), ("float32", "int32")),
        # Labels of a regression, of several classes at once, and of both kinds.
        ((X, Y / 4), (X, Y / 8), ("int64", "float32")),
        ((X, np.eye(12)), (X, np.eye(12)), ("int64", "float32")),
        ((X, X), (X, X / 2), ("int64", "float32")),
        # Several inputs, several outputs.
        (({"a": X, "b": X / 2}, Y), ({"b": X / 4, "a": X}, Y), ("int64", "float32", "int32")),
        (((X, WORDS), (Y, Y / 2)), ((X, WORDS), (Y, Y)), ("int64", "string", "int32", "float32")),
    ],
)
def test_clients_and_test_have_one_dtype_that_keeps_every_value(clients, test, dtypes):
    data = datasets.from_arrays("numbers", {"a": clients}, test)
    assert tuple(spec.dtype.name for spec in tf.nest.flatten(data.element_spec)) == dtypes
    assert data.test.element_spec == data.element_spec
    (batch,) = data.test.as_numpy_iterator()
    for found, given in zip(tf.nest.flatten(batch), tf.nest.flatten(_sorted(test))):
        given = [x.encode() if isinstance(x, str) else x for x in np.asarray(given).ravel()]
        assert found.ravel().tolist() == given


def _sorted(examples):
    inputs, labels = examples
    return tuple(np.asarray(part) if isinstance(part, list) else part for part in (inputs, labels))


def test_each_client_has_its_own_rows_of_all_inputs():
    inputs = {"a": X, "words": WORDS}
    clients = {key: ({k: v[rows] for k, v in inputs.items()}, Y[rows]) for key, rows in (("p", slice(4)), ("q", slice(4, 9)))}
    data = datasets.from_arrays("numbers", clients, (inputs, Y))
    for client, (of, labels) in clients.items():
        ((found, found_labels),) = _batches(data, client)
        order = np.argsort(found_labels)
        np.testing.assert_array_equal(found_labels[order], labels)
        np.testing.assert_array_equal(found["a"][order], of["a"])
        assert [word.decode() for word in found["words"][order]] == of["words"].tolist()


def test_ids_are_any_strings():
    ids = ["", "a/b", "../a", "a", "a\0", "a\0\0", "Köln", "日本", "𝄞", "x" * 100_000, " ", "a\nb", 7]
    data = datasets.from_arrays("numbers", {key: (X[i : i + 1], Y[i : i + 1]) for i, key in enumerate(ids[:12])}, (X, Y))
    assert data.client_ids == tuple(ids[:12])
    for i, key in enumerate(data.client_ids):
        assert [int(labels) for _, labels in _batches(data, key)] == [i]
    assert datasets.from_arrays("numbers", {7: (X, Y)}, (X, Y)).client_ids == ("7",)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({}, "Expected a dict of clients in numbers, found none"),
        ([("a", (X, Y))], "found one of type list"),
        ({7: (X, Y), "7": (X, Y)}, "found '7' twice"),
        ({"\ud800": (X, Y)}, "Expected ids of clients in numbers to be strings in UTF-8"),
        ({"a": X}, "Expected a pair of inputs and labels in numbers, client a, found one of type ndarray"),
        ({"a": (X, Y[:3])}, r"client a; found shapes \[12, 2\] and \[3\]"),
        ({"a": (X[:0], Y[:0])}, "at least one"),
        ({"a": (np.float32(3), Y)}, r"found shapes \[\] and \[12\]"),
        ({"a": ({}, Y)}, r"found shapes \[12\]"),
        ({"a": (X, Y), "b": (X[:, :1], Y)}, r"inputs of numbers, found int64 \[2\] of client a and int64 \[1\] of client b"),
        ({"a": (X, Y), "b": (X, Y[:, None])}, r"labels of numbers, found int64 \[\] of client a and int64 \[1\] of client b"),
        ({"a": (X[:, 0], Y)}, r"found int64 \[\] of client a and int64 \[2\] of the test"),
        ({"a": (WORDS, Y)}, r"found strings \[\] of client a and int64 \[2\] of the test"),
        ({"a": (X, WORDS)}, r"labels of numbers, found strings \[\] of client a"),
        ({"a": (X, LONG)}, "Expected numbers that int32 holds as labels of numbers, client a, found 4294967303"),
        ({"a": (X, Y.astype(np.uint32) + 3_000_000_000)}, "that int32 holds as labels of numbers, client a, found 3000000000"),
        ({"a": (X, Y), "b": (X * 1e300, Y)}, "that float32 holds as inputs of numbers, client b, found 1e.300"),
        ({"a": (X + 2**24 + 1, Y), "b": (X / 2, Y)}, "that float32 holds as inputs of numbers, client a, found 16777217"),
        ({"a": (X.astype(np.uint64) + 2**63, Y)}, "that int64 holds as inputs of numbers, client a, found 9223372036854775808"),
        ({"a": ({"p": X}, Y)}, r"Expected arrays of the same names .* \(\{p: array\}, array\) of client a and \(array, array\)"),
        (
            {"a": (X.astype(complex), Y)},
            "numbers, booleans or strings, examples of one shape, in numbers, client a; found complex128",
        ),
        ({"a": (X.astype("M8[s]"), Y)}, "found datetime64"),
        ({"a": ([[1, 2], [3]], Y[:2])}, "Expected examples of one shape in numbers, client a"),
        ({"a": (np.ma.masked_array(X, X > 3), Y)}, "found a masked array"),
    ],
)
def test_what_does_not_fit_is_refused(clients, message):
    with pytest.raises(datasets.DataError, match=message):
        datasets.from_arrays("numbers", clients, (X, Y))


def test_strings_are_no_labels():
    with pytest.raises(datasets.DataError, match="Number the classes from 0"):
        datasets.from_arrays("numbers", {"a": (X, WORDS)}, (X, WORDS))


@pytest.mark.parametrize(("ids", "message"), [((), "found none"), ((1,), "found 1"), (("a", "b", "a"), "found 'a' twice")])
def test_ids_of_any_dataset_are_different_strings(ids, message):
    with pytest.raises(datasets.DataError, match=message):
        datasets.FederatedDataset("numbers", ids, None, None)


SLICES = tf.data.Dataset.from_tensor_slices
MADE_BEFORE = SLICES((X, Y)).batch(4)
PAIR = (tf.TensorSpec([2], tf.int64), tf.TensorSpec([], tf.int64))


def _pass_through(x, y):
    return tf.numpy_function(lambda z: z, [x], tf.int64), y


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SLICES((X, Y, Y)).batch(4), r"Expected batches of \(inputs, labels\) in .* found a tuple of 3"),
        (lambda: SLICES(X).batch(4), "found one of type TensorSpec"),
        (lambda: SLICES({"x": X, "y": Y}).batch(4), "found one of type dict"),
        (lambda: SLICES((X, Y)), r"Expected batches in .* found shapes \(2,\) and \(\)\. Add batch"),
        (lambda: SLICES(({"a": X, "b": Y}, Y)), r"found shapes \(2,\) and \(\) and \(\)"),
        (lambda: SLICES((np.ones([4, 8]), np.ones([4, 3]))), r"found shapes \(8,\) and \(3,\)"),
        (lambda: (X, Y), "to be a tf.data.Dataset, found one of type tuple"),
    ],
)
def test_batches_that_are_no_pairs_or_no_batches_are_refused(make, message):
    with pytest.raises(datasets.DataError, match=message) as refused:
        batches.check_clients(datasets.FederatedDataset("numbers", ("a",), lambda client, seed: make(), None))
    assert "client_dataset of numbers" in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(datasets.DataError, match=message) as refused:
        batches.check_held_out(datasets.FederatedDataset("numbers", ("a",), None, make()))
    assert "the held-out test of numbers" in str(refused.value)


@pytest.mark.parametrize(
    ("client_dataset", "message"),
    [
        (
            lambda client, seed: tf.data.Dataset.from_generator(lambda: iter([]), output_signature=PAIR).batch(2),
            "found Python code",
        ),
        (lambda client, seed: SLICES((X, Y)).map(_pass_through).batch(2), "found Python code"),
        (lambda client, seed: MADE_BEFORE, "make its dataset anew .* found ValueError: Encountered an Eager-defined Tensor"),
        (
            lambda client, seed: SLICES(CLIENTS[client.numpy().decode()]).batch(2),
            "found AttributeError: .* object has no attribute 'numpy'",
        ),
        (lambda client: SLICES((X, Y)).batch(2), "found TypeError: .* takes 1 positional argument"),
        (None, "found TypeError: 'NoneType' object is not callable"),
    ],
)
def test_what_a_worker_can_not_run_is_refused(client_dataset, message):
    with pytest.raises(datasets.DataError, match=f"Expected client_dataset of numbers to .*{message}") as refused:
        batches.check_clients(datasets.FederatedDataset("numbers", ("a",), client_dataset, None))
    assert "\n" not in str(refused.value) and "tff_kit.from_arrays" in str(refused.value)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (SLICES((X[:0], Y[:0])).batch(4), "found none. Hold some out"),
        (SLICES((X, Y)).filter(lambda x, y: y > 100).batch(4), "found none. Hold some out"),
        (tf.data.Dataset.from_tensors((X[:0], Y[:0])), "found none. Hold some out"),
        (tf.data.TextLineDataset("missing").batch(4).map(lambda x: (x, x)), "can be read, found: missing; No such file"),
        (None, "to be a tf.data.Dataset, found one of type NoneType"),
    ],
)
def test_a_test_without_examples_is_refused(test, message):
    with pytest.raises(datasets.DataError, match=f"the held-out test of numbers.*{message}"):
        batches.check_held_out(datasets.FederatedDataset("numbers", ("a",), None, test))


@pytest.mark.parametrize("clients", [CLIENTS, {"a": ({"x": X, "words": WORDS}, (Y, Y / 2))}])
def test_pairs_in_batches_are_taken_from_arrays_and_from_python_where_it_can_run(clients):
    data = datasets.from_arrays("numbers", clients, next(iter(clients.values())))
    batches.check_clients(data)
    batches.check_held_out(data)
    rows = tf.data.Dataset.from_generator(lambda: iter([(X[0], 1)]), output_signature=PAIR).batch(2, drop_remainder=False)
    batches.check_held_out(datasets.FederatedDataset("numbers", ("a",), None, rows))  # Tested where it was made.
