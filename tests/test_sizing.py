"""The sizing executor: every bit that crosses, by formula."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import tff_kit
from tff_kit import runtime
from tff_kit.algorithm import assembly
from tff_kit.runtime import sizing
from tff_kit.tasks.emnist import data as emnist

LARGE, SMALL = 51_200 + 1_605_632, 800 + 32 + 64 + 512 + 5_120 + 10  # The CNN's elements in large and in small variables.

# What else crosses, in bits a client. Down: the clients' learning rate. Up: the client's weight, whether it is left out,
# squared error and norm of its encoding, and its metrics: sum and count of loss and accuracy, examples and batches.
DOWN_SCALARS = 32
UP_SCALARS = 32 + 32 + 2 * 32 + (2 * 32 + 2 * 32 + 64 + 64)

WEIGHTS = {
    "identity": 32 * (LARGE + SMALL),
    "tensor_encoding:8": 32 * (-(-51_200 * 8 // 28) + -(-1_605_632 * 8 // 28)) + 32 * SMALL + 2 * 64,
    "uniform:8": 8 * LARGE + 32 * SMALL + 2 * 64,
}


@pytest.fixture
def environment():
    yield sizing.set_sizing_environment()
    runtime.set_default_context()


@pytest.fixture(scope="module")
def digits():
    return emnist.load("digits")


@pytest.mark.slow
@pytest.mark.parametrize("spec", WEIGHTS)
def test_a_round_of_the_cnn_costs_what_the_formula_says(spec, digits, environment):
    assert LARGE + SMALL == 1_663_370
    experiment = tff_kit.Emnist(data="digits", broadcast=spec, mean=spec)
    process = assembly.build_process(experiment, digits)
    output = process.next(process.initialize(), [(client, 1) for client in digits.client_ids[:2]])
    sizes = environment.get_size_info()
    assert sizes.broadcast_bits[-1] == 2 * (WEIGHTS[spec] + DOWN_SCALARS)
    assert sizes.aggregate_bits[-1] == 2 * (WEIGHTS[spec] + UP_SCALARS)
    assert output.metrics["distributor"]["bits_per_client"] == WEIGHTS[spec]
    assert output.metrics["aggregator"]["mean_value"]["bits_per_client"] == WEIGHTS[spec]


def test_the_formulas_are_the_tutorials_figures():
    ten_clients = {spec: 10 * bits for spec, bits in WEIGHTS.items()}
    assert ten_clients["identity"] == 532_278_400
    assert ten_clients["tensor_encoding:8"] == 153_575_360
    assert [tff_kit.format_size(bits) for bits in ten_clients.values()] == ["507.62 Mibit", "146.46 Mibit", "128.40 Mibit"]
    assert tff_kit.format_size(10 * ten_clients["identity"]) == "4.96 Gibit"
    assert tff_kit.format_size(10 * ten_clients["tensor_encoding:8"]) == "1.43 Gibit"


@pytest.mark.parametrize(
    ("bits", "text"),
    [(0, "0.00 bit"), (1023, "1023.00 bit"), (1024, "1.00 Kibit"), (2**30, "1.00 Gibit"), (2**50, "1024.00 Tibit")],
)
def test_format_size(bits, text):
    assert tff_kit.format_size(bits) == text


@tff.tensorflow.computation(np.float32, np.float32)
def _is_over(temperature, threshold):
    return tf.cast(temperature > threshold, tf.float32)


@tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS), tff.FederatedType(np.float32, tff.SERVER))
def _mean_over(temperatures, threshold):
    return tff.federated_mean(tff.federated_map(_is_over, (temperatures, tff.federated_broadcast(threshold))))


def test_history_is_as_tff_had_it(environment):
    # As in TFF's own test of its sizing executor: each client receives a float and sends two, value and weight.
    assert _mean_over([10.0, 20.0, 30.0], 15.0) == pytest.approx(2 / 3)
    sizes = environment.get_size_info()
    assert sizes.broadcast_bits == [3 * 32]
    assert sizes.aggregate_bits == [3 * 32 * 2]
    assert sizes.broadcast_history == {(("CLIENTS", 3),): [[1, tf.float32]] * 3}
    assert sizes.aggregate_history == {(("CLIENTS", 3),): [[1, tf.float32]] * 6}


def test_totals_run_over_calls_and_clients(environment):
    _mean_over([1.0], 0.0)
    _mean_over([1.0, 2.0], 0.0)
    sizes = environment.get_size_info()
    assert sizes.broadcast_bits == [32, 32 + 2 * 32]
    assert sizes.aggregate_bits == [64, 64 + 2 * 64]
    assert sizes.broadcast_history == {(("CLIENTS", 1),): [[1, tf.float32]], (("CLIENTS", 2),): [[1, tf.float32]] * 2}


def test_who_only_receives_counts_down_and_not_up(environment):
    @tff.tensorflow.computation(np.str_)
    def length(text):
        return tf.strings.length(text)

    @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS), tff.FederatedType(np.str_, tff.SERVER))
    def total(numbers, text):
        return tff.federated_sum(numbers), tff.federated_sum(tff.federated_map(length, tff.federated_broadcast(text)))

    total([1.0, 2.0, 3.0], "abcde")
    environment.add_received(2, [np.zeros([3, 4], np.float32), np.int64(1), np.zeros([2], np.bool_)])
    environment.add_receivers(2)
    environment.add_receivers(0)
    total([1.0], "abc")
    sizes = environment.get_size_info()
    beside = 2 * (12 * 32 + 64 + 2 * 8)
    assert sizes.broadcast_bits == [(3 + 2) * 5 * 8 + beside, (3 + 2) * 5 * 8 + beside + 3 * 8]
    assert sizes.aggregate_bits == [3 * 64, 3 * 64 + 64]
    of_one = [[12, tf.float32], [1, tf.int64], [2, tf.bool]]
    assert sorted(sizes.broadcast_history[(("CLIENTS", 2),)], key=str) == sorted([*2 * of_one, *2 * [[5, tf.string]]], key=str)
    assert sizes.aggregate_history[(("CLIENTS", 2),)] == []


def _aggregate_anything(value):
    """Aggregates any clients' value into the number of clients."""
    member = value.type_signature.member
    zero = tff.tensorflow.computation(lambda: 0)
    accumulate = tff.tensorflow.computation(lambda total, value: total + 1, (np.int32, member))
    merge = tff.tensorflow.computation(lambda a, b: a + b, (np.int32, np.int32))
    report = tff.tensorflow.computation(lambda total: total, np.int32)
    return tff.federated_aggregate(value, zero(), accumulate, merge, report)


def test_lengths_known_only_at_run_time_and_strings_are_counted_exactly(environment):
    @tff.tensorflow.computation(np.int32)
    def make(n):
        return collections.OrderedDict(
            z=tf.range(tf.cast(n, tf.int64)),
            a=tf.fill([n, 2], True),
            text=tf.strings.reduce_join(tf.fill([n], "ä")),
            one=tf.constant(1.0),
        )

    @tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS), tff.FederatedType(np.int32, tff.SERVER))
    def run(numbers, number):
        sent = tff.federated_broadcast(tff.federated_map(make, number))
        return _aggregate_anything(tff.federated_map(make, numbers)), _aggregate_anything(sent)

    lengths, sent = [0, 5, 12], 7
    assert run(lengths, sent) == (3, 3)

    def bits(n):
        return n * 64 + 2 * n * 8 + 8 * 2 * n + 32  # int64, two bools, a string of two-byte letters, a float.

    sizes = environment.get_size_info()
    assert sizes.broadcast_bits == [3 * bits(sent)]
    assert sizes.aggregate_bits == [sum(map(bits, lengths)) + 3 * bits(sent)]
    up = sizes.aggregate_history[("CLIENTS", 3),]
    assert up[:3] == [[0, tf.int64], [5, tf.int64], [12, tf.int64]]
    assert up[6:9] == [[0, tf.string], [10, tf.string], [24, tf.string]]


def test_sums_extrema_and_secure_sums_are_counted(environment):
    clients = tff.FederatedType(tff.TensorType(np.int32, [5]), tff.CLIENTS)

    @tff.federated_computation(clients)
    def run(x):
        return (
            tff.federated_sum(x),
            tff.federated_max(x),
            tff.federated_min(x),
            tff.federated_secure_sum(x, 100),
            tff.federated_secure_sum_bitwidth(x, 8),
        )

    results = run([np.arange(5, dtype=np.int32), np.full(5, 2, np.int32)])
    np.testing.assert_array_equal(results[3], [2, 3, 4, 5, 6])
    assert environment.get_size_info().aggregate_bits == [5 * 2 * 5 * 32]


def test_what_no_client_sees_is_not_counted(environment):
    @tff.federated_computation(
        tff.FederatedType(tff.SequenceType(np.int64), tff.CLIENTS), tff.FederatedType(np.int32, tff.SERVER)
    )
    def run(datasets, number):
        local = tff.federated_map(
            tff.tensorflow.computation(lambda data: data.reduce(tf.constant(0, tf.int64), tf.add), tff.SequenceType(np.int64)),
            datasets,
        )
        return (
            local,
            tff.federated_map(tff.tensorflow.computation(lambda x: x + 1, np.int32), number),
            tff.federated_value(3, tff.CLIENTS),
        )

    run([tf.data.Dataset.range(5)] * 2, 1)
    tff.tensorflow.computation(lambda: 3)()
    sizes = environment.get_size_info()
    assert sizes.broadcast_bits == [0, 0]
    assert sizes.aggregate_bits == [0, 0]
    assert sizes.broadcast_history == {}


def test_a_call_that_fails_is_not_counted(environment):
    @tff.tensorflow.computation(np.int32)
    def fail(n):
        with tf.control_dependencies([tf.debugging.assert_less(n, 2)]):
            return tf.range(n)

    @tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
    def run(numbers):
        return _aggregate_anything(tff.federated_map(fail, numbers))

    with pytest.raises(Exception, match="assertion failed|Condition x < y"):
        run([1, 5])
    assert environment.get_size_info().aggregate_bits == []
    assert run([1, 1]) == 2
    assert environment.get_size_info().aggregate_bits == [2 * 32]


def test_select_is_named_as_not_counted(environment, caplog):
    @tff.federated_computation(
        tff.FederatedType(tff.TensorType(np.int32, [1]), tff.CLIENTS),
        tff.FederatedType(tff.TensorType(np.int32, [3]), tff.SERVER),
    )
    def run(keys, table):
        pick = tff.tensorflow.computation(lambda table, key: table[key], (tff.TensorType(np.int32, [3]), np.int32))
        return tff.federated_select(keys, tff.federated_value(3, tff.SERVER), table, pick)

    run([np.array([1], np.int32)], np.array([7, 8, 9], np.int32))
    assert "federated_select sends are not counted" in caplog.text


def test_an_environment_counts_from_its_own_beginning(environment):
    _mean_over([1.0], 0.0)
    assert sizing.set_sizing_environment().get_size_info().broadcast_bits == []
