"""Tensors to bytes and back, for the two ends of a real link."""

import collections

import numpy as np
import pytest
import stages
import tensorflow as tf

from tff_kit import encoders
from tff_kit.encoders.message import HEADER_BYTES

SPECS = collections.OrderedDict(kernel=tf.TensorSpec([40, 30], tf.float32, "kernel"), bias=tf.TensorSpec([30], tf.float32))
OPEN_SIZES = {
    "identity": 0,
    "uniform:8": 0,
    "topk:0.1+uniform:6/uniform:8": 1,
    "rate:2+rice": 2,
}  # Bytes they take here: 1 or 2 each.


def _values(seed=0):
    return collections.OrderedDict(kernel=stages.normal(40, 30, seed=seed), bias=stages.normal(30, seed=seed + 1))


@pytest.fixture(scope="module", params=OPEN_SIZES)
def codecs(request):
    return request.param, encoders.BroadcastCodec(SPECS, request.param, 100), encoders.MeanCodec(SPECS, request.param, 100)


@pytest.mark.slow
def test_a_broadcast_arrives_as_the_encoder_decodes_it(codecs):
    spec, codec, _ = codecs
    sent = codec.encode(_values(), codec.initial_state())
    received = codec.decode(sent.payload)
    bits = 0
    for name, x in _values().items():
        encoder = encoders.build_broadcast_encoder_fn(spec, 100)(tf.TensorSpec(x.shape, tf.float32))
        encoded, _ = encoder.encode(x)
        bits += int(encoders.payload_bits(encoded))
        decoded = encoder.decode(encoded).numpy()
        # The last digits differ, since Grappler rewrites divisions of the encoder alone.
        np.testing.assert_allclose(received[name], decoded, rtol=0, atol=4 * np.finfo(np.float32).eps * np.abs(decoded).max())
    assert sent.bits == bits
    assert 0 <= len(sent.payload) - HEADER_BYTES - bits / 8 <= 2 * OPEN_SIZES[spec]


def test_the_mean_of_clients_is_weighted(codecs):
    _, _, codec = codecs
    state, total = codec.initial_state(), codec.zero()
    params = codec.params(state)
    weights = (1.0, 2.0, 5.0)
    for client, weight in enumerate(weights):
        sent = codec.encode(_values(client), weight, params)
        total = codec.merge(total, codec.decode(sent.payload))
    _, mean, measured = codec.finish(state, params, total, sum(weights))
    exact = sum(w * _values(c)["kernel"] for c, w in enumerate(weights)) / sum(weights)
    assert stages.nmse(mean["kernel"].numpy(), exact) <= 2 * measured["distortion"] + 1e-12
    assert measured["bits_per_client"] == pytest.approx(sent.bits, rel=0.02)


def test_a_rate_is_the_servers_state_and_follows_the_clients():
    codec = encoders.MeanCodec(SPECS, "rate:2+rice", 100)
    state, steps = codec.initial_state(), []
    for _ in range(3):
        params, total = codec.params(state), codec.zero()
        total = codec.merge(total, codec.decode(codec.encode(_values(), 1.0, params).payload))
        state, _, _ = codec.finish(state, params, total, 1.0)
        steps.append(float(tf.nest.flatten(state)[0]))
    assert len(set(steps)) == 3
    np.testing.assert_allclose(steps, np.log2(1.07), atol=0.03)  # Normal numbers take 2 bits at a step of about 1.07.


def test_what_feedback_keeps_is_in_the_state():
    codec = encoders.BroadcastCodec(SPECS, "uniform:1,nearest/uniform:1,nearest", 0, error_feedback=True)
    sent = codec.encode(_values(), codec.initial_state())
    received = codec.decode(sent.payload)
    for x, y, lost in zip(*map(tf.nest.flatten, (_values(), received)), sent.state[1]):
        np.testing.assert_array_equal(lost, x - y.numpy())


def test_no_client_makes_a_mean_of_zero():
    codec = encoders.MeanCodec(SPECS, "uniform:8", 100)
    state = codec.initial_state()
    _, mean, _ = codec.finish(state, codec.params(state), codec.zero(), 0.0)
    np.testing.assert_array_equal(mean["kernel"], np.zeros([40, 30]))


@pytest.mark.slow
@pytest.mark.parametrize("other", ["uniform:7", "uniform:8/uniform:8"])
def test_a_message_of_another_spec_is_refused(other):
    sender, receiver = (encoders.BroadcastCodec(SPECS, spec, 100) for spec in (other, "uniform:8"))
    payload = sender.encode(_values(), sender.initial_state()).payload
    with pytest.raises(encoders.PayloadError, match="Expected a broadcast by uniform:8 .*, found digest"):
        receiver.decode(payload)


def test_a_message_of_another_model_is_refused():
    sender = encoders.BroadcastCodec([tf.TensorSpec([10])], "uniform:8", 0)
    with pytest.raises(encoders.PayloadError, match="both sides need the same SPEC, threshold and model"):
        encoders.BroadcastCodec([tf.TensorSpec([2, 5])], "uniform:8", 0).decode(
            sender.encode([stages.normal(10)], sender.initial_state()).payload
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(codecs, bad):
    _, broadcast, mean = codecs
    values = _values()
    values["kernel"][3, 4] = bad
    with pytest.raises(encoders.PayloadError, match="of finite numbers, found one with NaN or infinity"):
        broadcast.decode(broadcast.encode(values, broadcast.initial_state()).payload)
    params = mean.params(mean.initial_state())
    with pytest.raises(encoders.PayloadError, match="of finite numbers"):
        mean.decode(mean.encode(values, 1.0, params).payload)


def test_params_of_another_spec_are_refused():
    codec, other = (encoders.MeanCodec(SPECS, spec, 100) for spec in ("rate:2+rice", "rate:3+rice"))
    with pytest.raises(encoders.PayloadError, match="Expected a message of parameters by rate:2"):
        codec.encode(_values(), 1.0, other.params(other.initial_state()))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["uniform:8/uniform:8", "step:1+rice/topk:0.5"])
def test_what_is_no_float_travels_as_it_is(spec):
    numbers = {"count": tf.constant(2**40 + 1, tf.int64), "mask": tf.constant([True, False]), "ids": tf.range(500)}
    values = {**numbers, "mean": tf.constant(stages.normal(30, 10))}
    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, values)
    codec = encoders.BroadcastCodec(specs, spec, 100, error_feedback=True)
    state = codec.initial_state()
    for _ in range(2):
        sent = codec.encode(values, state)
        received, state = codec.decode(sent.payload), sent.state
        for name, x in numbers.items():
            assert received[name].dtype == x.dtype
            np.testing.assert_array_equal(received[name], x)
    only_floats = encoders.BroadcastCodec([specs["mean"]], spec, 100)
    sent_alone = only_floats.encode([values["mean"]], only_floats.initial_state())
    first = codec.encode(values, codec.initial_state())
    assert first.bits == sent_alone.bits + 64 + 16 + 500 * 32
    assert first.distortion == sent_alone.distortion
