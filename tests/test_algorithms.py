"""Algorithms by name: server optimizers, FedProx, equal weights, clients that drop out or are late."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from test_processes import clients, model_fn
from test_sizing import DOWN_SCALARS, UP_SCALARS
from typing_extensions import get_args

import tff_kit
from tff_kit import __main__ as command_line
from tff_kit import experiment
from tff_kit.algorithm import assembly, proximal
from tff_kit.training import participation, runs


@functools.cache
def _trained(server="sgd", server_lr=1.0, rounds=1, strength=0.0, **algorithm):
    """Returns how all rounds together moved the weights, and each round's loss."""
    client_optimizer = tff.learning.optimizers.build_sgdm(0.5)
    process = tff_kit.build_federated_averaging_process(
        model_fn,
        proximal.ProximalOptimizer(client_optimizer, strength) if strength else client_optimizer,
        assembly._SERVER_OPTIMIZERS[server](server_lr),
        tff_kit.build_encoded_broadcast_process_from_model(model_fn, tff_kit.build_broadcast_encoder_fn("uniform:8", 50)),
        tff_kit.build_encoded_mean_process_from_model(model_fn, tff_kit.build_mean_encoder_fn("uniform:8", 50)),
        **algorithm,
    )
    state = process.initialize()
    initial = process.get_model_weights(state).trainable
    losses = []
    for _ in range(rounds):
        state, metrics = process.next(state, clients(3))
        losses.append(metrics["client_work"]["train"]["loss"])
    moves = [after - before for before, after in zip(initial, process.get_model_weights(state).trainable)]
    return moves, losses


def test_the_names_are_those_of_the_settings():
    assert tuple(assembly._SERVER_OPTIMIZERS) == get_args(experiment.ServerOptimizer)
    assert tuple(assembly._OPTIMIZERS) == get_args(experiment.ClientOptimizer)


@pytest.mark.slow
def test_with_feedback_a_process_keeps_what_its_broadcast_lost():
    settings = {"broadcast": "uniform:4", "broadcast_change": True, "broadcast_feedback": True}
    experiment = tff_kit.Emnist(data="digits", filters=2, threshold=100, **settings)
    process = assembly.build_process(experiment, experiment.load_data())
    kept = tff.structure.flatten(process.initialize.type_signature.result.member.distributor)
    shapes = [tuple(weight.shape) for weight in experiment.build_model().weights]
    assert [tuple(leaf.shape) for leaf in kept] == shapes  # These encoders keep nothing themselves.


@pytest.mark.slow
@pytest.mark.parametrize(("server", "server_lr"), [("sgdm", 1.0), ("adam", 0.05), ("yogi", 0.05), ("adagrad", 0.05)])
def test_server_optimizers_learn_with_encoded_updates(server, server_lr):
    _, losses = _trained(server, server_lr, rounds=6)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_fedprox_keeps_clients_near_the_model_they_received():
    def distance(moves):
        return sum(float(np.square(x).sum()) for x in moves)

    free, _ = _trained()
    held, _ = _trained(strength=1.0)
    assert 0 < distance(held) < 0.9 * distance(free)


def test_fedproxs_steps_are_those_of_its_formula():
    optimizer = proximal.ProximalOptimizer(tff.learning.optimizers.build_sgdm(0.1), 2.0)
    received = weights = tf.constant([1.0, -1.0])
    state = optimizer.initialize(tf.TensorSpec([2], tf.float32))
    for gradient in ([1.0, 2.0], [3.0, -4.0], [0.0, 1.0]):
        expected = weights - 0.1 * (gradient + 2.0 * (weights - received))
        state, weights = optimizer.next(state, weights, tf.constant(gradient))
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert optimizer.get_hparams(state)["learning_rate"] == 0.1


@pytest.mark.slow
def test_equal_weights_are_others_than_those_by_examples():
    weighted, _ = _trained()
    equal, _ = _trained(weighted=False)
    assert max(float(np.abs(a - b).max()) for a, b in zip(weighted, equal)) > 1e-4  # The three have 5, 6 and 7 examples.


@pytest.mark.slow
def test_dropouts_neither_receive_nor_send_stragglers_receive_and_both_are_counted(tmp_path):
    arguments = ["--data", "digits", "--filters", "2", "--clients", "5", "--rounds", "4", "--eval-every", "4"]
    encoded = ["--broadcast", "uniform:8", "--threshold", "100"]
    missing = ["--dropout", "0.3", "--straggling", "1", "--deadline", "1.5"]
    adaptive = ["--server-optimizer", "adam", "--server-lr", "0.01", "--proximal", "0.1", "--no-weighted"]
    settings = [*arguments, *encoded, *missing, *adaptive, "--logdir", str(tmp_path)]
    assert command_line.main(["train", "emnist", *settings]) == 0
    rows = runs.RunDirectory(tmp_path).read_metrics()
    dropped, late = (np.array([row[name] for row in rows]) for name in ("clients_dropped", "clients_late"))
    assert dropped.sum() and late.sum() and (dropped + late).max() < 5
    down, up = (np.diff([0, *(row[name] for row in rows)]) for name in ("broadcast_bits", "aggregate_bits"))
    sizes = [weight.shape.num_elements() for weight in tff_kit.Emnist(filters=2).build_model().weights]
    eight_bits = sum(8 * size + 64 if size > 100 else 32 * size for size in sizes)
    assert eight_bits < 32 * sum(sizes) / 3
    np.testing.assert_array_equal(down, (5 - dropped) * (eight_bits + DOWN_SCALARS))
    np.testing.assert_array_equal(up, (5 - dropped - late) * (32 * sum(sizes) + UP_SCALARS))


def test_as_many_are_late_as_the_deadline_says_and_one_is_always_awaited():
    drawn = [participation.draw_missing(tff_kit.Emnist(dropout=0.2, straggling=0.5), i, 1000) for i in range(20)]
    late = np.mean([late.sum() / (~dropped).sum() for dropped, late in drawn])
    assert late == pytest.approx(0.0828, rel=0.1)  # Normal numbers above log(2) / .5.
    assert np.mean([dropped for dropped, _ in drawn]) == pytest.approx(0.2, rel=0.05)
    assert not any((dropped & late).any() for dropped, late in drawn)
    for dropout in (0.0, 0.999):
        dropped, late = participation.draw_missing(tff_kit.Emnist(dropout=dropout, straggling=2.0, deadline=1e-6), 1, 50)
        assert (dropped | late).sum() == 49
    assert not participation.draw_missing(tff_kit.Emnist(), 1, 50)[1].any()


@pytest.mark.parametrize(
    "arguments", [["--dropout", "1"], ["--dropout", "-0.1"], ["--proximal", "-1"], ["--straggling", "-1"], ["--deadline", "0"]]
)
def test_impossible_settings_are_refused(arguments, capsys):
    assert command_line.main(["train", "emnist", "--data", "digits", *arguments]) == 2
    assert f"error: Expected {arguments[0]} to be" in capsys.readouterr().err
