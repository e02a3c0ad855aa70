"""Bits and error as measured, beside theory; updates as clients make them; stages of one's own by name."""

import dataclasses

import numpy as np
import pytest
import stages
import tensorflow as tf

import tff_kit
from tff_kit import encoders
from tff_kit.encoders import measurement


def test_sent_tensors_have_the_bits_and_the_error_of_their_encoder():
    x = [stages.normal(50, 40), stages.normal(7)]
    sent = measurement.send("uniform:4,dithered", x, threshold=10)
    assert sent.bits == 2000 * 4 + 64 + 64 + 7 * 32
    assert [y.shape for y in sent.decoded] == [(50, 40), (7,)]
    step = (x[0].max() - x[0].min()) / 15
    assert measurement.nmse([x], [sent.decoded]) == pytest.approx(2000 * step**2 / 12 / measurement.squared_norm(x), rel=0.1)
    assert min(sent.encode_seconds, sent.decode_seconds) > 0


def test_the_error_of_a_mean_is_that_of_the_mean():
    clients = [[np.array([1.0, 0.0])], [np.array([3.0, 0.0])]]
    decoded = [[np.array([2.0, 0.0])], [np.array([2.0, 1.0])]]
    assert measurement.nmse(clients, decoded) == pytest.approx(0.25 / 5)
    assert measurement.nmse(clients[:1], decoded[:1]) == pytest.approx(1)


def test_limits_are_those_of_the_literature():
    assert measurement.shannon([0, 1, 2]).tolist() == [1, 0.25, 0.0625]
    assert measurement.shannon_unbiased(np.array([1])) == pytest.approx(1 / 3)
    bits, errors = measurement.fixed_length()
    np.testing.assert_allclose(errors[:4], [0.3634, 0.1175, 0.03454, 0.009497], rtol=1e-3)  # Max, 1960, table I.
    bits, errors = measurement.entropy_coded_uniform()
    gap = bits - np.log2(1 / errors) / 2
    assert gap[0] == pytest.approx(np.log2(np.pi * np.e / 6) / 2, abs=2e-3)  # Gish and Pierce, 1968.
    assert np.all(gap > 0)


@pytest.mark.slow
def test_updates_are_what_one_client_alone_changes(tmp_path):
    # A client trains on one batch, so that the order of its digits does not matter.
    task = tff_kit.Emnist(
        data="digits",
        rounds=1,
        clients=1,
        client_lr=0.1,
        batch_size=500,
        mean="uniform:4",
        server_optimizer="adam",
        server_lr=0.001,
    )
    run = tff_kit.train(task, tmp_path)
    (first, second) = tff_kit.client_updates(task, run, 2)
    assert [x.shape for x in first] == [tuple(w.shape) for w in task.build_model().trainable_weights]
    assert not np.allclose(first[0], second[0])
    weights = [w.numpy() for w in run.load_model().trainable_weights]
    model, data = task.build_model(), task.load_data()
    model.set_weights(weights)
    model.compile(tf.keras.optimizers.SGD(0.1), task.build_loss())
    model.fit(data.client_dataset(tf.constant(data.client_ids[0]), tf.constant(0, tf.int64)), verbose=0)
    for update, before, after in zip(first, weights, model.trainable_weights):
        np.testing.assert_allclose(update, after.numpy() - before, atol=1e-5)


@pytest.fixture
def _own_stages(monkeypatch):
    monkeypatch.setattr(encoders.registry, "STAGES", dict(encoders.registry.STAGES))


@pytest.mark.slow
@pytest.mark.usefixtures("_own_stages")
def test_a_stage_of_ones_own_has_a_name_arguments_and_followers():
    def steps(size: float, dithered: bool = False):
        return encoders.StepQuantizationStage(size, rounding="dithered" if dithered else "nearest")

    encoders.add_stage("mine", steps, key="levels", integers=True)
    x = [stages.normal(100, 100)]
    (ours, theirs) = (measurement.send(f"{name}+entropy", x, 0) for name in ("mine:1,dithered=yes", "step:1,dithered"))
    assert ours.bits == theirs.bits
    np.testing.assert_array_equal(ours.decoded[0], theirs.decoded[0])
    assert dataclasses.replace(tff_kit.Emnist(), mean="mine:2+rice").mean == "mine:2+rice"
    for spec, message in {
        "mine": "Expected size, found none",
        "mine:1": "need a coder",
        "mine:1+uniform:2": "where there are numbers",
    }.items():
        with pytest.raises(encoders.SpecError, match=message):
            encoders.parse_spec(spec)


@pytest.mark.parametrize("name", ["entropy", "Mine", "a+b", ""])
def test_a_name_that_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match="Expected a name of lower-case letters"):
        encoders.add_stage(name, encoders.RotationStage)
