"""Encoded broadcast, encoded mean, and federated averaging made of them."""

import collections
import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

import tff_kit
from tff_kit import encoders
from tff_kit.algorithm import processes

SPEC = (tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([None], tf.int32))
_Modes = te.core.StateAggregationMode


def model_fn():
    initializer = tf.keras.initializers.GlorotUniform(seed=1)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer(input_shape=[3]),
            tf.keras.layers.Dense(40, activation="relu", kernel_initializer=initializer),
            tf.keras.layers.Dense(2, activation="softmax", kernel_initializer=initializer),
        ]
    )
    loss = tf.keras.losses.SparseCategoricalCrossentropy()
    return tff.learning.models.from_keras_model(
        model, loss=loss, input_spec=SPEC, metrics=[tf.keras.metrics.SparseCategoricalAccuracy()]
    )


def clients(count=4, bad=()):
    generator = np.random.default_rng(0)
    data = []
    for client in range(count):
        x = generator.normal(size=[5 + client, 3]).astype(np.float32)
        x[0] = np.nan if client in bad else x[0]
        data.append(tf.data.Dataset.from_tensor_slices((x, (x.sum(axis=1) > 0).astype(np.int32))).batch(4))
    return data


def _process(broadcast=None, mean=None):
    sgd = tff.learning.optimizers.build_sgdm
    return tff_kit.build_federated_averaging_process(
        model_fn,
        sgd(0.5),
        sgd(1.0),
        broadcast and tff_kit.build_encoded_broadcast_process_from_model(model_fn, broadcast),
        mean and tff_kit.build_encoded_mean_process_from_model(model_fn, mean),
    )


def _encoder_fns(spec):
    return tff_kit.build_broadcast_encoder_fn(spec, 0), tff_kit.build_mean_encoder_fn(spec, 0)


@functools.cache
def _encoded(spec):
    """Returns the process that encodes both ways by `spec`; TFF compiles it once for all tests."""
    return _process(*_encoder_fns(spec))


def _run(process, data, rounds=2):
    state = process.initialize()
    for _ in range(rounds):
        state, metrics = process.next(state, data)
    return process.get_model_weights(state), metrics, state


@pytest.mark.slow
def test_identity_trains_as_tff_does_bit_for_bit():
    ours, _, _ = _run(_encoded("identity"), clients())
    sgd = tff.learning.optimizers.build_sgdm
    theirs, _, _ = _run(tff.learning.algorithms.build_weighted_fed_avg(model_fn, sgd(0.5), sgd(1.0)), clients())
    tf.nest.map_structure(np.testing.assert_array_equal, ours.trainable, theirs.trainable)


@pytest.mark.slow
def test_sixteen_bits_train_nearly_as_none():
    exact, _, _ = _run(_process(), clients())
    coarse, metrics, _ = _run(_encoded("uniform:16"), clients())
    for a, b in zip(exact.trainable, coarse.trainable):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert 0 < metrics["distributor"]["distortion"] < 1e-8
    assert 0 < metrics["aggregator"]["mean_value"]["distortion"] < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broadcast", "mean"),
    [
        ("step:0.1,dithered+rice", "topk:0.5+uniform:8/identity"),
        ("uniform:8,dithered,16", "eden:1.5"),
    ],
)
def test_every_kind_of_encoder_runs_on_the_worker_also_where_its_size_is_known_only_there(broadcast, mean):
    process = _process(_encoder_fns(broadcast)[0], _encoder_fns(mean)[1])
    weights, metrics, _ = _run(process, clients(2), rounds=1)
    assert all(np.isfinite(w).all() for w in weights.trainable)
    elements = sum(w.size for w in weights.trainable)
    for measured in (metrics["distributor"], metrics["aggregator"]["mean_value"]):
        assert 0 < measured["distortion"] < 1
        assert 2 * elements < measured["bits_per_client"] < 32 * elements


def _send_to_one_client(process, state, weights):
    """Runs a broadcast process; returns its new state, what the client received, and the measurements."""
    state_type, weights_type = process.next.type_signature.parameter

    @tff.tensorflow.computation(weights_type.member)
    def as_numbers(weights):
        return tf.nest.map_structure(lambda x: tf.cast(x, tf.int32) if x.dtype == tf.bool else x, weights)

    @tff.federated_computation(state_type, weights_type, tff.FederatedType(np.int32, tff.CLIENTS))
    def send(state, weights, clients):
        output = process.next(state, weights)
        return output.state, tff.federated_sum(tff.federated_map(as_numbers, output.result)), output.measurements

    return send(state, weights, [0])


def _initial_weights():
    return tf.nest.map_structure(lambda v: v.numpy() + 1, tff.learning.models.ModelWeights.from_model(model_fn()))


@pytest.mark.slow
def test_measured_distortion_and_bits_are_the_encoders():
    process = tff_kit.build_encoded_broadcast_process_from_model(model_fn, tff_kit.build_broadcast_encoder_fn("uniform:2", 0))
    weights = _initial_weights()
    _, received, measurements = _send_to_one_client(process, process.initialize(), weights)
    error = sum(np.sum(np.square(a - b)) for a, b in zip(weights.trainable, received.trainable))
    norm = sum(np.sum(np.square(a)) for a in weights.trainable)
    assert measurements["distortion"] == pytest.approx(error / norm, rel=1e-4)
    assert measurements["bits_per_client"] == sum(8 * -(-2 * a.size // 8) + 64 for a in weights.trainable)


def test_the_encoded_mean_is_the_weighted_mean_of_what_was_decoded():
    factory = tff_kit.build_encoded_mean_process_from_model(model_fn, tff_kit.build_mean_encoder_fn("uniform:8", 0))
    process = factory.create(tff.types.to_type([(np.float32, [1000])]), tff.TensorType(np.float32))
    generator = np.random.default_rng(1)
    values, weights = generator.normal(size=[3, 1000]).astype(np.float32), np.array([1, 2, 5], np.float32)
    output = process.next(process.initialize(), [[value] for value in values], list(weights))
    step = np.ptp(values * weights[:, None], axis=1).sum() / 255 / weights.sum()
    np.testing.assert_allclose(output.result[0], np.average(values, axis=0, weights=weights), atol=step)
    assert output.measurements["mean_value"]["bits_per_client"] == 8 * 1000 + 64


class _CountingStage(te.core.AdaptiveEncodingStageInterface):
    """Adds the number of the round to the tensor, and gathers a number of every client in each way there is."""

    name = "counting"
    compressible_tensors_keys = ["x"]
    commutes_with_sum = False
    decode_needs_input_shape = False
    state_update_aggregation_modes = {"sum": _Modes.SUM, "min": _Modes.MIN, "max": _Modes.MAX, "stack": _Modes.STACK}

    def initial_state(self):
        return {
            "round": tf.constant(0.0),
            "sum": tf.constant(0.0),
            "min": tf.constant(0.0),
            "max": tf.constant(0.0),
            "clients": tf.constant(0),
        }

    def update_state(self, state, state_update_tensors):
        return {
            "round": state["round"] + 1,
            **{key: tf.reshape(state_update_tensors[key], []) for key in ("sum", "min", "max")},
            "clients": tf.size(state_update_tensors["stack"]),
        }

    def get_params(self, state):
        return {"add": state["round"]}, {"add": state["round"]}

    def encode(self, x, encode_params):
        seen = tf.reduce_max(x)
        return {"x": x + encode_params["add"]}, dict.fromkeys(self.state_update_aggregation_modes, seen)

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        return encoded_tensors["x"] - decode_params["add"]


def _counting_encoder():
    return te.core.EncoderComposer(te.core.tf_style_adaptive_encoding_stage(_CountingStage)()).make()


def test_the_state_of_a_mean_encoder_lives_on_the_server_and_follows_the_clients():
    factory = tff_kit.build_encoded_mean_process_from_model(
        model_fn, lambda value: te.encoders.as_gather_encoder(_counting_encoder(), tf.TensorSpec(value.shape, value.dtype))
    )
    process = factory.create(tff.types.to_type([(np.float32, [2])]), tff.TensorType(np.float32))
    state = process.initialize()
    for number in range(1, 4):
        values = [[np.array([5.0, 7.0], np.float32)], [np.array([1.0, 3.0], np.float32)]]
        output = process.next(state, values, [1.0, 1.0])
        state = output.state
        np.testing.assert_allclose(output.result[0], [3.0, 5.0])
        (found,) = [tf.nest.flatten(part) for part in state["value_sum_process"]]
        assert sorted(map(float, found)) == sorted([number, 10.0, 3.0, 7.0, 2.0])  # Round, sum, min, max, clients.


@pytest.mark.slow
def test_the_state_of_a_broadcast_encoder_lives_on_the_server():
    def encoder_fn(value):
        return te.encoders.as_simple_encoder(te.core.EncoderComposer(te.testing.PlusOneOverNEncodingStage()).make(), value)

    process = tff_kit.build_encoded_broadcast_process_from_model(model_fn, encoder_fn)
    weights, state = _initial_weights(), process.initialize()
    first = tf.nest.flatten(state)
    for _ in range(3):
        state, received, _ = _send_to_one_client(process, state, weights)
        for a, b in zip(received.trainable, weights.trainable):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert [float(b - a) for a, b in zip(first, tf.nest.flatten(state))] == [3.0] * 4


def _sending_changes(spec):
    return tff_kit.build_encoded_broadcast_process_from_model(
        model_fn, tff_kit.build_broadcast_encoder_fn(spec, 0), change_only=True
    )


@pytest.mark.slow
def test_a_change_sent_exactly_arrives_as_the_weights():
    process, weights = _sending_changes("identity"), _initial_weights()  # One more than the initial ones.
    _, received, measurements = _send_to_one_client(process, process.initialize(), weights)
    for a, b in zip(received.trainable, weights.trainable):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert measurements["distortion"] == 0


@pytest.mark.slow
def test_initial_weights_arrive_however_coarse_the_encoder():
    weights = tf.nest.map_structure(lambda x: x - 1, _initial_weights())
    process = _sending_changes("uniform:1")
    _, received, _ = _send_to_one_client(process, process.initialize(), weights)
    for a, b in zip(received.trainable, weights.trainable):
        np.testing.assert_allclose(a, b, atol=1e-6)


def _random_model_fn():
    model = tf.keras.Sequential([tf.keras.layers.Dense(2, "softmax", input_shape=[3])])
    return tff.learning.models.from_keras_model(model, tf.keras.losses.SparseCategoricalCrossentropy(), SPEC)


def _pretrained_model_fn():
    model = tf.keras.Sequential([tf.keras.layers.Dense(2, "softmax", input_shape=[3], kernel_initializer="zeros")])
    model.set_weights([np.ones([3, 2]), np.ones([2])])
    return tff.learning.models.from_keras_model(model, tf.keras.losses.SparseCategoricalCrossentropy(), SPEC)


def test_weights_are_drawn_again_where_there_is_a_seed():
    drawn = tf.nest.map_structure(lambda v: v.numpy(), tff.learning.models.ModelWeights.from_model(model_fn()))
    assert processes.draws_weights(model_fn)
    assert processes.draws_weights(model_fn, drawn)
    assert not processes.draws_weights(model_fn, _initial_weights())
    assert not processes.draws_weights(_random_model_fn)
    assert not processes.draws_weights(_pretrained_model_fn, _pretrained())


def _pretrained():
    return tff.learning.models.ModelWeights([np.ones([3, 2], np.float32), np.ones([2], np.float32)], [])


def test_a_change_of_weights_that_nobody_can_draw_again_is_refused():
    encoder_fn = tff_kit.build_broadcast_encoder_fn("identity", 0)
    with pytest.raises(ValueError, match="Expected model_fn to draw the same weights in every call"):
        tff_kit.build_encoded_broadcast_process_from_model(_random_model_fn, encoder_fn, change_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("make", [_random_model_fn, _pretrained_model_fn])
def test_a_change_of_given_weights_arrives(make):
    encoder_fn = tff_kit.build_broadcast_encoder_fn("uniform:1", 0)
    process = tff_kit.build_encoded_broadcast_process_from_model(
        make, encoder_fn, change_only=True, initial_weights=_pretrained()
    )
    _, received, measurements = _send_to_one_client(process, process.initialize(), _pretrained())
    tf.nest.map_structure(np.testing.assert_array_equal, list(received.trainable), _pretrained().trainable)
    assert measurements["distortion"] == 0
    halves = tf.nest.map_structure(lambda x: x + np.float32(0.5), _pretrained())  # One bit a weight tells as much.
    _, received, measurements = _send_to_one_client(process, process.initialize(), halves)
    tf.nest.map_structure(np.testing.assert_array_equal, list(received.trainable), halves.trainable)
    assert measurements["bits_per_client"] == 8 * 1 + 64 + 8 * 1 + 64


def _changes_received(rounds, error_feedback):
    """Sends weights that lie .3 above the initial ones, through an encoder that loses all below one half."""

    def encoder_fn(value):
        return te.encoders.as_simple_encoder(te.core.EncoderComposer(_RoundingStage()).make(), value)

    process = tff_kit.build_encoded_broadcast_process_from_model(model_fn, encoder_fn, True, error_feedback)
    initial = tf.nest.map_structure(lambda x: x - 1, _initial_weights())
    weights, state = tf.nest.map_structure(lambda x: x + np.float32(0.3), initial), process.initialize()
    sent = []
    for _ in range(rounds):
        state, received, _ = _send_to_one_client(process, state, weights)
        sent.append(received.trainable[0] - initial.trainable[0])
    return sent, state


def test_without_feedback_every_broadcast_is_of_the_change_alone():
    sent, _ = _changes_received(3, error_feedback=False)
    np.testing.assert_allclose(sent, np.zeros_like(sent), atol=1e-6)


@pytest.mark.slow
def test_with_feedback_what_encoding_lost_is_sent_later():
    sent, state = _changes_received(10, error_feedback=True)
    assert np.max(np.abs(sent[0])) < 1e-6
    np.testing.assert_allclose(np.sum(sent, axis=0) + state[1][0], 10 * 0.3, rtol=1e-4)  # Nothing is ever lost for good.
    np.testing.assert_allclose(np.mean(sent, axis=0), 0.3, atol=0.5 / 10)


def test_what_is_no_float_travels_as_it_is_also_as_a_change():
    def counting_model_fn():
        layer = tf.keras.layers.Normalization(mean=2.0, variance=4.0)
        model = tf.keras.Sequential(
            [tf.keras.Input([3]), layer, _Counting(), tf.keras.layers.Dense(2, "softmax", False, "zeros")]
        )
        return tff.learning.models.from_keras_model(model, tf.keras.losses.SparseCategoricalCrossentropy(), SPEC)

    process = tff_kit.build_encoded_broadcast_process_from_model(
        counting_model_fn, tff_kit.build_broadcast_encoder_fn("identity", 0), change_only=True, error_feedback=True
    )
    weights = tff.learning.models.ModelWeights([np.ones([3, 2], np.float32)], [np.int64(7), np.bool_(True)])
    state = process.initialize()
    for _ in range(2):
        state, received, measurements = _send_to_one_client(process, state, weights)
    assert measurements["distortion"] == 0
    assert [received.non_trainable[0], received.non_trainable[1]] == [7, True]


class _Counting(tf.keras.layers.Layer):
    """Has a counter and a flag, as layers that preprocess do."""

    def build(self, shape):
        self.count = self.add_weight("count", [], tf.int64, "zeros", trainable=False)
        self.flag = self.add_weight("flag", [], tf.bool, tf.zeros, trainable=False)

    def call(self, inputs):
        return inputs


@te.core.tf_style_encoding_stage
class _RoundingStage(te.core.EncodingStageInterface):
    name, compressible_tensors_keys = "rounding", ["rounded"]
    commutes_with_sum = decode_needs_input_shape = False

    def get_params(self):
        return {}, {}

    def encode(self, x, encode_params):
        return {"rounded": tf.round(x)}

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        return encoded_tensors["rounded"]


@pytest.mark.slow
def test_a_client_whose_update_is_not_finite_is_left_out_and_counted():
    data = clients(4, bad=(2,))
    with_bad, metrics, _ = _run(_encoded("uniform:16"), data, rounds=1)
    without, _, _ = _run(_encoded("uniform:16"), [data[i] for i in (0, 1, 3)], rounds=1)
    assert metrics["aggregator"]["mean_weight"]["left_out"] == 1
    assert np.isfinite(metrics["client_work"]["train"]["loss"])
    for a, b in zip(with_bad.trainable, without.trainable):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_when_all_clients_are_left_out_the_model_stays():
    process = _encoded("uniform:8")
    state = process.initialize()
    before = process.get_model_weights(state)
    state, metrics = process.next(state, clients(2, bad=(0, 1)))
    assert metrics["aggregator"]["mean_weight"]["left_out"] == 2
    tf.nest.map_structure(np.testing.assert_array_equal, before.trainable, process.get_model_weights(state).trainable)


@pytest.mark.slow
def test_gradients_are_clipped_as_the_keras_optimizer_says():
    process = tff_kit.build_federated_averaging_process(model_fn, lambda: tf.keras.optimizers.SGD(0.1, clipnorm=1e-6))
    state = process.initialize()
    before, (after, _, _) = process.get_model_weights(state).trainable, _run(process, clients(3), rounds=1)
    for x, y in zip(before, after.trainable):
        # Two batches or fewer, each of which moves a variable by at most 0.1 * 1e-6; float32 rounds weights of up to 0.4.
        assert 0 < np.linalg.norm(y - x) < 2 * 0.1 * 1e-6 + 2**-25 * np.sqrt(x.size)


@pytest.mark.parametrize("wrong", [tf.keras.optimizers.Ftrl, lambda: tf.keras.optimizers.SGD(nesterov=True), "sgd"])
def test_other_optimizers_are_refused(wrong):
    with pytest.raises(TypeError, match=r"Expected an optimizer of tff\.learning\.optimizers"):
        tff_kit.build_federated_averaging_process(model_fn, wrong)


def test_the_wrong_kind_of_encoder_is_refused():
    broadcast, mean = _encoder_fns("uniform:8")
    with pytest.raises(TypeError, match="Expected encoder_fn to return a SimpleEncoder, found GatherEncoder"):
        tff_kit.build_encoded_broadcast_process_from_model(model_fn, mean)
    with pytest.raises(TypeError, match="Expected encoder_fn to return a GatherEncoder, found SimpleEncoder"):
        tff_kit.build_encoded_mean_process_from_model(model_fn, broadcast)


@pytest.mark.slow
def test_processes_have_tffs_types():
    broadcast, mean = _encoder_fns("uniform:8")
    process = tff_kit.build_encoded_broadcast_process_from_model(model_fn, broadcast)
    assert isinstance(process, tff.learning.templates.DistributionProcess)
    weights = tff.learning.models.weights_type_from_model(model_fn)
    expected = tff.types.to_type(collections.OrderedDict(bits_per_client=np.float64, distortion=np.float32))
    tff.types.FederatedType(expected, tff.SERVER).check_equivalent_to(process.next.type_signature.result.measurements)
    process.next.type_signature.result.result.member.check_equivalent_to(weights)
    assert isinstance(_process(broadcast, mean), tff.learning.templates.LearningProcess)


@pytest.mark.slow
def test_a_deployments_codecs_send_the_bits_of_the_simulation_and_decode_its_values():
    spec = "rate:2+rice/uniform:4,dithered"
    broadcast_fn, mean_fn = tff_kit.build_broadcast_encoder_fn(spec, 50), tff_kit.build_mean_encoder_fn(spec, 50)
    weights = _initial_weights()
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in weights.trainable]
    process = tff_kit.build_encoded_broadcast_process_from_model(model_fn, broadcast_fn)
    _, received, measured = _send_to_one_client(process, process.initialize(), weights)
    codec = encoders.BroadcastCodec(specs, spec, 50)
    sent = codec.encode(list(weights.trainable), codec.initial_state())
    tf.nest.map_structure(np.testing.assert_array_equal, list(received.trainable), codec.decode(sent.payload))
    assert (sent.bits, sent.distortion) == (measured["bits_per_client"], pytest.approx(measured["distortion"]))

    updates, counts = [[x * c for x in weights.trainable] for c in (1, 2, 4)], [3.0, 1.0, 7.0]
    process = tff_kit.build_encoded_mean_process_from_model(model_fn, mean_fn).create(
        tff.types.tensorflow_to_type(specs), tff.TensorType(np.float32)
    )
    codec = encoders.MeanCodec(specs, spec, 50)
    tff_state, state = process.initialize(), codec.initial_state()
    for _ in range(2):
        output = process.next(tff_state, updates, counts)
        params, total = codec.params(state), codec.zero()
        for update, count in zip(updates, counts):
            total = codec.merge(total, codec.decode(codec.encode(update, count, params).payload))
        state, mean, measured = codec.finish(state, params, total, sum(counts))
        tff_state = output.state
        assert measured["bits_per_client"] == output.measurements["mean_value"]["bits_per_client"]
        for theirs, ours in zip(output.result, mean):
            np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-6)  # Sums may be in another order.
        for theirs, ours in zip(tf.nest.flatten(tff_state["value_sum_process"]), tf.nest.flatten(state)):
            np.testing.assert_allclose(theirs, ours, rtol=1e-6)


@functools.cache
def _functional_model():
    def build():
        initializer = tf.keras.initializers.GlorotUniform(seed=1)
        return tf.keras.Sequential([tf.keras.layers.Dense(2, kernel_initializer=initializer, input_shape=[3])])

    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tff.learning.models.functional_model_from_keras(build, loss, SPEC)


@functools.cache
def _exact_functional_weights():
    process = tff.learning.algorithms.build_weighted_fed_avg(_functional_model(), tff.learning.optimizers.build_sgdm(0.5))
    return _run(process, clients())[0].trainable


@pytest.mark.slow
@pytest.mark.parametrize("change_only", [False, True])
def test_a_functional_model_is_sent_and_averaged_like_another(change_only):
    model = _functional_model()
    broadcast, mean = _encoder_fns("uniform:16")
    process = tff_kit.build_federated_averaging_process(
        model,
        tff.learning.optimizers.build_sgdm(0.5),
        broadcast_process=tff_kit.build_encoded_broadcast_process_from_model(model, broadcast, change_only),
        aggregation_process=tff_kit.build_encoded_mean_process_from_model(model, mean),
    )
    coarse, metrics, _ = _run(process, clients())
    assert metrics["distributor"]["bits_per_client"] == 16 * (6 + 2) + 2 * 64
    for a, b in zip(_exact_functional_weights(), coarse.trainable):
        np.testing.assert_allclose(a, b, atol=1e-3)
