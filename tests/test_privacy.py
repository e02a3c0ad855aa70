"""Differential privacy and secure aggregation: what is added, which noise, what crosses, what it is worth, what is refused."""

import collections
import math
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from test_processes import clients, model_fn

import tff_kit
from tff_kit import __main__ as command_line
from tff_kit import runtime
from tff_kit.algorithm import assembly, privacy
from tff_kit.runtime import sizing
from tff_kit.tasks.emnist import data as emnist
from tff_kit.training import runs

_CLIP = 0.1  # TFF's first clipping norm.


def _next(factory, values, weights=None, rounds=1):
    """Aggregates the same vectors in each round; returns the outputs of all rounds."""
    process = factory.create(tff.types.to_type([(np.float32, [len(values[0])])]), tff.TensorType(np.float32))
    weights = [1.0] * len(values) if weights is None else weights
    state, outputs = process.initialize(), []
    for _ in range(rounds):
        outputs.append(process.next(state, [[np.asarray(value, np.float32)] for value in values], weights))
        state = outputs[-1].state
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_without_noise_it_is_the_mean_of_clipped_updates_and_the_missing_count_as_zero(secure):
    directions = np.random.default_rng(0).normal(size=[4, 50])
    norms = np.array([0.02, 0.05, 0.3, 4.0])
    updates = norms[:, None] * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    first, second = _next(privacy.build_private_mean_process(0, 5, secure), updates, rounds=2)
    for output, clip in ((first, _CLIP), (second, first.measurements["mean_value"]["clipping_norm"])):
        clipped = updates * np.minimum(1, clip / norms)[:, None]
        np.testing.assert_allclose(output.result[0], clipped.sum(axis=0) / 5, atol=1e-8)
        # Half of those that sent lie below, and the missing one counts as one half.
        assert output.measurements["mean_value"]["clipping_norm"] == pytest.approx(clip * math.exp(-0.2 * (2.5 / 5 - 0.5)))


@pytest.mark.slow
@pytest.mark.parametrize(("multiplier", "sampled", "count_noise"), [(2.0, 50, 2.5), (1.0, 10, 1.0)])
@pytest.mark.parametrize("secure", [False, True])
def test_the_noise_is_what_the_multiplier_says_and_new_in_each_round(multiplier, sampled, count_noise, secure):
    coordinates = 20_000
    factory = privacy.build_private_mean_process(multiplier, sampled, secure)
    first, second = (output.result[0] for output in _next(factory, np.zeros([3, coordinates]), rounds=2))
    # Update and count together: 1/z^2 = 1/z_update^2 + 1/(2 z_count)^2, since a count moves by a half either way.
    expected = (multiplier**-2 - (2 * count_noise) ** -2) ** -0.5 * _CLIP / sampled
    assert np.std(first) == pytest.approx(expected, rel=0.03)  # Six standard deviations.
    assert abs(np.mean(first)) < 6 * expected / math.sqrt(coordinates)
    assert abs(np.corrcoef(first, second)[0, 1]) < 6 / math.sqrt(coordinates)
    assert np.mean(np.abs(first) > 2 * expected) == pytest.approx(0.0455, abs=0.01)  # Normal.


def test_updates_that_are_not_finite_or_whose_norm_is_not_count_as_zero():
    updates = np.full([4, 10], 0.01)
    updates[1] = 1e30  # Its square is beyond float32.
    updates[2] = 0  # TFF makes it that, and its weight zero, when it is not finite.
    (output,) = _next(privacy.build_private_mean_process(0, 4), updates, [1.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(output.result[0], 0.02 / 4, rtol=1e-5)
    assert output.measurements["mean_weight"]["left_out"] == 2


@pytest.mark.slow
def test_the_secure_mean_is_the_weighted_mean_but_for_its_steps():
    updates = np.random.default_rng(1).normal(size=[4, 1000])
    weights = np.array([3, 1, 0, 7], np.float32)
    (output,) = _next(privacy.build_secure_mean_process(), updates, list(weights))
    expected = np.average(updates, axis=0, weights=weights)
    # Half a step of updates, in [-100, 100], and half a step of weights, in [0, 2^20), for each client.
    steps = 4 * (200 / 2**33 + np.abs(expected) * 2**20 / 2**33) / weights.sum()
    assert (np.abs(output.result[0] - expected) <= steps + 1e-6 * np.abs(expected)).all()
    assert output.measurements["mean_weight"]["left_out"] == 1
    (output,) = _next(privacy.build_secure_mean_process(), np.zeros([2, 3]), [0.0, 0.0])
    np.testing.assert_array_equal(output.result[0], np.zeros(3))


@pytest.mark.slow
def test_a_client_whose_training_fails_is_left_out_and_counted():
    process = tff_kit.build_federated_averaging_process(
        model_fn,
        tff.learning.optimizers.build_sgdm(0.5),
        aggregation_process=privacy.build_private_mean_process(0, 4, secure=True),
        weighted=False,
        metrics_aggregator=tff.learning.metrics.secure_sum_then_finalize,
    )
    initial = process.initialize()
    data = clients(4, bad=(2,))
    state, metrics = process.next(initial, data)
    good, _ = process.next(initial, [data[i] for i in (0, 1, 3)])
    assert metrics["aggregator"]["mean_weight"]["left_out"] == 1
    assert metrics["client_work"]["train"]["num_examples"] == 5 + 6 + 8
    for before, a, b in zip(*(process.get_model_weights(x).trainable for x in (initial, state, good))):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert not np.array_equal(before, a)
    kept, _ = process.next(initial, clients(2, bad=(0, 1)))
    tf.nest.map_structure(np.testing.assert_array_equal, *(process.get_model_weights(x).trainable for x in (initial, kept)))


_WEIGHTS = 6_890  # Of the network with two filters.
_PLAIN_METRICS = 2 * 32 + 2 * 32 + 64 + 64  # Sum and count of loss and accuracy, examples and batches.
# Each tensor of a secure sum is int64; for each group with its own bounds two counts of what they cut are int32, and so are how
# many clients were left out and, three times, how many there are. Metrics are two groups, of float32 and of int64.
_SECURE_METRICS, _SECURE_COUNTS = 6 * 64 + 2 * 2 * 32, 32 + 3 * 32
# Down, the clients' learning rate; for differential privacy the clipping norm, the same for the count, and the count's own; and
# for secure sums each group's bounds, to round by and to count by.
_SECURE_METRICS_BOUNDS = 4 * 32 + 4 * 64
_COSTS = {
    "private": (
        {"noise_multiplier": 1.0, "weighted": False},
        32 * _WEIGHTS + 32 + 3 * 32,
        32 * _WEIGHTS + 32 + 32 + _PLAIN_METRICS,  # The count, and whether it is left out.
    ),
    "secure": (
        {"secure": True},
        32 * _WEIGHTS + 32 + _SECURE_METRICS_BOUNDS + (4 * 32 + 32) + 4 * 32,  # Updates, whose bounds are estimated, and weights.
        64 * _WEIGHTS + 2 * 32 + 2 * 64 + (64 + 2 * 32) + _SECURE_METRICS + _SECURE_COUNTS,
    ),
    "private and secure": (
        {"noise_multiplier": 1.0, "secure": True, "weighted": False},
        32 * _WEIGHTS + 32 + 3 * 32 + _SECURE_METRICS_BOUNDS + 4 * 32,
        64 * (_WEIGHTS + 1) + 2 * 32 + _SECURE_METRICS + _SECURE_COUNTS,
    ),
}


@pytest.fixture(scope="module")
def digits():
    return emnist.load("digits")


@pytest.mark.slow
@pytest.mark.parametrize("kind", _COSTS)
def test_what_crosses_is_counted_exactly_and_secure_means_secure(kind, digits):
    settings, down, up = _COSTS[kind]
    process = assembly.build_process(tff_kit.Emnist(data="digits", filters=2, **settings), digits)
    sizes = sizing.set_sizing_environment()
    try:
        process.next(process.initialize(), [(client, 1) for client in digits.client_ids[:3]])
    finally:
        runtime.set_default_context()
    assert sizes.get_size_info().broadcast_bits[-1] == 3 * down
    assert sizes.get_size_info().aggregate_bits[-1] == 3 * up
    is_secure = tff.test.assert_not_contains_unsecure_aggregation
    (is_secure if "secure" in settings else tff.test.assert_contains_unsecure_aggregation)(process.next)


@pytest.mark.slow
@pytest.mark.usefixtures("built_once")
def test_a_run_goes_on_with_its_clipping_norm_counts_bits_and_tells_epsilon(tmp_path, capsys):
    settings = ["--data", "digits", "--filters", "2", "--clients", "5", "--broadcast", "uniform:8", "--dropout", "0.3"]
    private = ["--noise-multiplier", "0.5", "--no-weighted", "--secure", "--eval-every", "1"]
    assert command_line.main(["train", "emnist", *settings, *private, "--rounds", "1", "--logdir", str(tmp_path)]) == 0
    assert command_line.main(["train", "emnist", "--resume", "--rounds", "2", "--logdir", str(tmp_path)]) == 0
    rows = runs.RunDirectory(tmp_path).read_metrics()
    accountant = privacy.Accountant(0.5, 5, 14)
    assert [row["epsilon"] for row in rows] == pytest.approx([accountant.epsilon(1), accountant.epsilon(2)])
    assert f"After 2 rounds the model has epsilon {accountant.epsilon(2):.3g} at delta 0.055" in capsys.readouterr().out
    norms = [row["clipping_norm"] for row in rows]
    assert abs(math.log(norms[0] / _CLIP)) <= 0.1 + 1e-6 and 0 < abs(math.log(norms[1] / norms[0])) <= 0.1 + 1e-6
    sent = 5 - np.array([row["clients_dropped"] for row in rows])
    np.testing.assert_array_equal(np.diff([0, *(row["aggregate_bits"] for row in rows)]), sent * _COSTS["private and secure"][2])
    assert rows[-1]["aggregate_distortion"] is None and rows[-1]["broadcast_distortion"] == 0  # All variables are small.


def _exact_delta(epsilon, moved):
    """The delta of normal noise of standard deviation 1 on what moves by `moved`: Balle and Wang, arXiv 1805.06530, theorem 8."""
    below = lambda x: (1 + math.erf(x / math.sqrt(2))) / 2  # noqa: E731
    return below(moved / 2 - epsilon / moved) - math.exp(epsilon) * below(-moved / 2 - epsilon / moved)


@pytest.mark.parametrize(("multiplier", "rounds"), [(8.0, 1), (20.0, 50)])
def test_epsilon_is_true_and_not_much_more_where_it_is_known_exactly(multiplier, rounds):
    accountant = privacy.Accountant(multiplier, 1000, 1000)  # All clients take part.
    epsilon, moved = accountant.epsilon(rounds), 2 * math.sqrt(rounds) / multiplier
    assert _exact_delta(epsilon, moved) <= accountant.delta < _exact_delta(0.8 * epsilon, moved)


@pytest.mark.slow
def test_epsilon_grows_with_rounds_and_with_the_part_that_is_sampled():
    few, many = privacy.Accountant(1.0, 10, 700), privacy.Accountant(1.0, 100, 700)
    assert 0 < few.epsilon(1) < few.epsilon(100) < many.epsilon(100)
    assert privacy.Accountant(2.0, 10, 700).epsilon(100) < few.epsilon(100)
    assert privacy.Accountant(1.0, 600, 700).epsilon(2) <= privacy.Accountant(1.0, 700, 700).epsilon(2)
    assert few.delta == pytest.approx(700**-1.1)


def test_a_round_of_all_clients_there_are_is_what_noise_and_epsilon_count_on(digits):
    FewClients = collections.namedtuple("FewClients", "client_ids")
    experiment = tff_kit.KeywordSpotting(noise_multiplier=1.0, weighted=False)
    found = assembly.build_accountant(experiment, FewClients(list("abcdefg")))
    assert found.epsilon(3) == privacy.Accountant(1.0, 7, 7).epsilon(3)
    assert assembly.build_accountant(tff_kit.KeywordSpotting(), FewClients([])) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise-multiplier", "-1"], "Expected --noise-multiplier to be 0 or more, found -1.0."),
        (["--noise-multiplier", "1"], "Expected equal weights with --noise-multiplier.*Add --no-weighted."),
        (
            ["--noise-multiplier", "1", "--no-weighted", "--mean", "uniform:8"],
            "Expected --mean identity with --noise-multiplier, found 'uniform:8'.*The broadcast may be encoded.",
        ),
        (["--secure", "--mean", "rotate+uniform:4"], "Expected --mean identity with --secure, found 'rotate.uniform:4'.*decoded"),
    ],
)
def test_what_does_not_compose_is_refused_with_the_reason(arguments, message, capsys):
    assert command_line.main(["train", "emnist", "--data", "digits", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
