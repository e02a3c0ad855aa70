"""Rate control: the step reaches the rate that is asked for, and follows it when the numbers change."""

import numpy as np
import pytest
import stages
import tensorflow as tf

from tff_kit import encoders


class RateControlTest(stages.StageTest):
    def default_encoding_stage(self):
        return encoders.RateControlStage(1.0)

    def default_input(self):
        return tf.random.normal([200])

    def common_asserts_for_test_data(self, data):
        assert np.abs(data.decoded_x - data.x).max() <= 0.5001 * data.encoded_x["step"]


def _rates(stage, rounds):
    """Returns the entropy of all clients' levels together in each of the rounds, [clients, size] each."""
    state, rates = stage.initial_state(), []
    for clients in rounds:
        params, _ = stage.get_params(state)
        encoded, updates = zip(*(stage.encode(tf.constant(x), params) for x in clients))
        state = stage.update_state(state, {key: sum(u[key] for u in updates) for key in updates[0]})
        rates.append(np.mean([stages.entropy(e["levels"]) for e in encoded]))
    return rates


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0.02, 0.15, 0.5, 1, 2, 4, 7])
def test_normal_numbers_have_the_rate_from_the_first_round_on(bits):
    rates = _rates(encoders.RateControlStage(bits), [stages.normal(3, 100_000, seed=i) for i in range(4)])
    share = bits / 8  # Of numbers that are not 0, or fewer: their number scatters by its root, and the step follows that.
    assert rates == pytest.approx([bits] * 4, rel=0.01 + 4 / np.sqrt(share * 300_000) * (bits < 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"price": 0.1, "unbiased": True}, {"centroids": True}])
@pytest.mark.parametrize("bits", [0.05, 0.3, 2])
def test_other_numbers_come_to_the_rate_and_stay(bits, options):
    generator = np.random.default_rng(0)
    rounds = [(generator.laplace(size=[2, 50_000])).astype(np.float32) for _ in range(14)]
    rates = _rates(encoders.RateControlStage(bits, **options), rounds)
    assert rates[-4:] == pytest.approx([bits] * 4, rel=0.12)


def test_a_client_with_nothing_to_tell_has_no_say():
    stage = encoders.RateControlStage(1)
    params, _ = stage.get_params(stage.initial_state())
    for x in (np.zeros(10), np.full(10, np.nan), np.full(10, np.inf)):
        _, update = stage.encode(tf.constant(x, tf.float32), params)
        state = stage.update_state(stage.initial_state(), update)
        assert state == stage.initial_state()


@pytest.mark.parametrize("bits", [0, 0.001, 9, float("nan")])
def test_rates_that_no_step_has_are_refused(bits):
    with pytest.raises(ValueError, match=r"0\.01 to 8"):
        encoders.RateControlStage(bits)
