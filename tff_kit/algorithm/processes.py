"""Encoders become broadcast and aggregation processes, and these a federated averaging process.

TensorFlow Federated removed the encoded broadcast in 0.38. Its encoded sum still exists, but reports nothing of what it
does, sends every decoding parameter to the clients and back, and starts a minimum over clients at zero. Both are built
here of TFF's own parts, under the names they had, with two measurements each:

* `bits_per_client`, float64: the payload of one client's message, side information included. For the mean, the average
  over clients. The sizing executor counts these bits too, and the few scalars beside them.
* `distortion`, float32: the squared error that encoding made, divided by the squared norm of what was encoded. For the
  mean, over the messages of single clients; the error of their average is smaller.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.algorithm.optimizers import OptimizerFn, as_tff_optimizer
from tff_kit.encoders.collectives import EncodedBroadcast, EncodedSum, make_encoders

ModelFn = Union[Callable[[], tff.learning.models.VariableModel], tff.learning.models.FunctionalModel]


def build_federated_averaging_process(
    model_fn: ModelFn,
    client_optimizer_fn: OptimizerFn,
    server_optimizer_fn: Optional[OptimizerFn] = None,
    broadcast_process: Optional[tff.learning.templates.DistributionProcess] = None,
    aggregation_process: Optional[tff.aggregators.WeightedAggregationFactory] = None,
    weighted: bool = True,
    metrics_aggregator: Optional[Callable[..., tff.Computation]] = None,
) -> tff.learning.templates.LearningProcess:
    """Builds federated averaging, weighted by the clients' numbers of examples, with encoded communication.

    H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep Networks
    from Decentralized Data. AISTATS 2017, arXiv 1602.05629.

    A client whose update is not finite is left out of the mean; the measurement `aggregator/mean_weight/left_out`
    counts such clients. When all are left out the model stays as it is.

    Args:
      model_fn: Returns a new `tff.learning.models.VariableModel` with each call; or a `tff.learning.models.FunctionalModel`.
      client_optimizer_fn: A `tff.learning.optimizers.Optimizer`, or a function that returns one or returns a Keras optimizer of
        which TFF has the equivalent, as `tff_kit.algorithm.optimizers.as_tff_optimizer` explains.
      server_optimizer_fn: Likewise. By default SGD with learning rate 1.
      broadcast_process: From `build_encoded_broadcast_process_from_model`. By default the model is sent as it is.
      aggregation_process: From `build_encoded_mean_process_from_model`, or one of `tff_kit.algorithm.privacy`. By default updates
        are sent as they are.
      weighted: Whether clients count by their numbers of examples, or all the same.
      metrics_aggregator: Sums what clients measure, one of `tff.learning.metrics`; by default `sum_then_finalize`.

    Returns:
      A `tff.learning.templates.LearningProcess`: `initialize()` returns a state, `next(state, client_datasets)` trains a round on
      a list of `tf.data.Dataset`s of batches, one a client, and returns a new state and metrics, `get_model_weights(state)`
      returns the weights. Metrics have `client_work/train`, what the model measures, and the measurements of the
      `distributor` and of the `aggregator`.

    Raises:
      TypeError: If an optimizer is neither of the above, or has an option that TFF's has not.
    """
    weighting = tff.learning.ClientWeighting.NUM_EXAMPLES if weighted else tff.learning.ClientWeighting.UNIFORM
    return tff.learning.algorithms.build_weighted_fed_avg(
        model_fn,
        client_optimizer_fn=as_tff_optimizer(client_optimizer_fn),
        server_optimizer_fn=None if server_optimizer_fn is None else as_tff_optimizer(server_optimizer_fn),
        client_weighting=weighting,
        model_distributor=broadcast_process,
        model_aggregator=aggregation_process or build_mean_factory(),
        metrics_aggregator=metrics_aggregator,
        loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR,  # Faster than a reduction, and equal to the bit.
    )


def build_encoded_broadcast_process_from_model(
    model_fn: ModelFn,
    encoder_fn: Callable[[tf.TensorSpec], te.core.SimpleEncoder],
    change_only: bool = False,
    error_feedback: bool = False,
    initial_weights: Optional[tff.learning.models.ModelWeights] = None,
) -> tff.learning.templates.DistributionProcess:
    """Builds the process that sends the model's weights, encoded, from the server to the clients.

    The server encodes once, all clients receive the same payload and decode it. The encoders' state lives on the server
    and is updated in each round. `metrics["distributor"]` of a round has `bits_per_client`, the payload of a client, and
    `distortion`, the squared error of the encoding over the squared norm of what was encoded.

    With `change_only` the server sends how the weights differ from the initial ones, which a client draws itself or has received
    before. So a client needs no memory of earlier rounds, and the first round costs next to nothing. What is too small to be
    sent stays in the server's weights, and grows there with further updates.

    With `error_feedback` what encoding lost in the round before is added to what is encoded, so that over the rounds all of it is
    sent. That helps an encoder that would never send the small numbers, as coarse rounding. One that always leaves out
    the same directions, as low rank, is better off without: what was lost adds up, and then goes out in excess. Feedback on the
    server's side is due to K. Gruntkowska, A. Tyurin, P. Richtárik: EF21-P and Friends: Improved Theoretical Communication
    Complexity for Distributed Optimization with Bidirectional Compression. ICML 2023, arXiv 2209.15218. There the clients
    keep what they received; here they need not.

    Args:
      model_fn: Returns a `tff.learning.models.VariableModel`, or is a `tff.learning.models.FunctionalModel`; tells which weights
        there are.
      encoder_fn: Returns the `SimpleEncoder` of a variable, trainable or not, given its `tf.TensorSpec`:
        `tff_kit.build_broadcast_encoder_fn("uniform:8")`, or a function of one's own that ends in
        `tensor_encoding`'s `te.encoders.as_simple_encoder(encoder, spec)`.
      change_only: Whether to send the difference from the initial weights.
      error_feedback: Whether to add what the last encoding lost.
      initial_weights: With `change_only`, the weights that every client has, as arrays. How they came there is not counted here:
        `SizingExecutorFactory.add_received` counts it. By default those that `model_fn` draws, which must be the same in every
        call, as those of a model with seeded initializers are.

    Returns:
      A `tff.learning.templates.DistributionProcess`, the `broadcast_process` of `build_federated_averaging_process` and the
      `model_distributor` of TFF's own `tff.learning.algorithms`.

    Raises:
      TypeError: If `encoder_fn` returns something else than a `SimpleEncoder`.
      ValueError: If `model_fn` draws other weights with each call, and no `initial_weights` say which ones clients have.
    """
    weights_type = _weights_type(model_fn)
    specs = tff.types.type_to_tf_tensor_specs(weights_type)
    codec = EncodedBroadcast(specs, encoder_fn, error_feedback)
    if change_only and initial_weights is None and not draws_weights(model_fn):
        raise ValueError(
            "Expected model_fn to draw the same weights in every call, since clients draw the ones whose change they receive; "
            "found others. Give the initializers of its layers a seed, or pass `initial_weights`."
        )

    def of_clients():
        return [tf.convert_to_tensor(x) for x in tf.nest.flatten(initial_weights or _make_weights(model_fn))]

    initial_state = tff.tensorflow.computation(codec.initial_state)

    @tff.tensorflow.computation(initial_state.type_signature.result, weights_type)
    def encode(state, weights):
        flat = tf.nest.flatten(weights)
        if change_only:
            flat = _map_floats(tf.subtract, flat, of_clients())
        return codec.encode(state, flat)

    @tff.tensorflow.computation(encode.type_signature.result[1])
    def decode(encoded):
        flat = codec.decode(encoded)
        if change_only:
            flat = _map_floats(tf.add, flat, of_clients())
        return tf.nest.pack_sequence_as(specs, flat)

    @tff.federated_computation
    def initialize():
        return tff.federated_eval(initial_state, tff.SERVER)

    @tff.federated_computation(initialize.type_signature.result, tff.FederatedType(weights_type, tff.SERVER))
    def send(state, weights):
        state, encoded, measurements = tff.federated_map(encode, (state, weights))
        received = tff.federated_map(decode, tff.federated_broadcast(encoded))
        return tff.templates.MeasuredProcessOutput(state, received, measurements)

    return tff.learning.templates.DistributionProcess(initialize, send)


def build_encoded_mean_process_from_model(
    model_fn: ModelFn, encoder_fn: Callable[[tf.TensorSpec], te.core.GatherEncoder]
) -> tff.aggregators.WeightedAggregationFactory:
    """Builds the process that averages the clients' updates, each encoded on its way to the server.

    Each client multiplies its update by its weight and encodes it; the server decodes, adds, and divides by the sum of
    weights. The encoders' state lives on the server and is updated in each round with what the clients report.

        process = tff_kit.build_federated_averaging_process(
            model_fn,
            client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
            aggregation_process=tff_kit.build_encoded_mean_process_from_model(
                model_fn, tff_kit.build_mean_encoder_fn("uniform:8")
            ),
        )
        state, metrics = process.next(process.initialize(), client_datasets)
        metrics["aggregator"]["mean_value"]  # bits_per_client, distortion

    `bits_per_client` is the payload of a client's message on average over clients, side information included; `distortion` is
    the squared error of the clients' encodings over the squared norm of their updates.

    Args:
      model_fn: Returns a new `tff.learning.models.VariableModel` with each call, or is a `tff.learning.models.FunctionalModel`;
        its weights are checked to fit the encoders.
      encoder_fn: Returns the `GatherEncoder` of a trainable variable, given its `tf.TensorSpec`, so that each may have another:
        `tff_kit.build_mean_encoder_fn("uniform:8")`, or a function of one's own that ends in
        `tensor_encoding`'s `te.encoders.as_gather_encoder(encoder, spec)`.

    Returns:
      A `tff.aggregators.WeightedAggregationFactory`, the `aggregation_process` of `build_federated_averaging_process` and the
      `model_aggregator` of TFF's own `tff.learning.algorithms`.

    Raises:
      TypeError: If `encoder_fn` returns something else than a `GatherEncoder`.
    """
    make_encoders(encoder_fn, tff.types.type_to_tf_tensor_specs(_weights_type(model_fn).trainable), te.core.GatherEncoder)
    return build_mean_factory(_EncodedSumFactory(encoder_fn))


def build_mean_factory(
    value_sum_factory: Optional[tff.aggregators.UnweightedAggregationFactory] = None, secure: bool = False
) -> tff.aggregators.MeanFactory:
    """Builds the weighted mean whose updates `value_sum_factory` sums; `count_left_out` measures it.

    Args:
      value_sum_factory: By default updates are sent as they are.
      secure: Whether to sum weights and counts securely.
    """
    return tff.aggregators.MeanFactory(value_sum_factory, _WeightSumFactory(secure), no_nan_division=True)


def count_left_out(weight: Any, secure: bool = False) -> Any:
    """Counts the clients whose weight is zero: TFF gives such a weight to an update that isn't finite, and makes the update zero.

    Args:
      weight: In a `tff.federated_computation`, the clients' weights.
      secure: Whether to sum securely.
    """

    @tff.tensorflow.computation(weight.type_signature.member)
    def is_zero(weight):
        return tf.cast(tf.equal(weight, 0), tf.int32)

    found = tff.federated_map(is_zero, weight)
    return tff.federated_secure_sum_bitwidth(found, 1) if secure else tff.federated_sum(found)


class _WeightSumFactory(tff.aggregators.UnweightedAggregationFactory):
    """Sums the clients' weights and counts those that are zero."""

    def __init__(self, secure: bool):
        self._secure = secure

    def create(self, value_type):
        # The bounds of `tff.learning.secure_aggregator`: between them, whole numbers nearly stay so when they are rounded.
        sums = tff.aggregators.SecureSumFactory(float(2**20 - 1), 0.0) if self._secure else tff.aggregators.SumFactory()
        inner = sums.create(value_type)

        @tff.federated_computation(inner.initialize.type_signature.result, tff.FederatedType(value_type, tff.CLIENTS))
        def add(state, weight):
            output = inner.next(state, weight)
            measurements = tff.federated_zip(collections.OrderedDict(left_out=count_left_out(weight, self._secure)))
            return tff.templates.MeasuredProcessOutput(output.state, output.result, measurements)

        return tff.templates.AggregationProcess(inner.initialize, add)


class _EncodedSumFactory(tff.aggregators.UnweightedAggregationFactory):
    """Sums encoded values and measures them."""

    def __init__(self, encoder_fn: Callable[[tf.TensorSpec], te.core.GatherEncoder]):
        self._encoder_fn = encoder_fn

    def create(self, value_type):
        codec = EncodedSum(tff.types.type_to_tf_tensor_specs(value_type), self._encoder_fn)
        initial_state = tff.tensorflow.computation(codec.initial_state)
        state_type = initial_state.type_signature.result
        params = tff.tensorflow.computation(codec.params, state_type)
        params_type = params.type_signature.result
        encode = tff.tensorflow.computation(codec.encode, (value_type, params_type))
        message_type = encode.type_signature.result
        part = tff.tensorflow.computation(codec.decode, message_type)
        part_specs = tff.types.type_to_tf_tensor_specs(part.type_signature.result)
        zero = tff.tensorflow.computation(lambda: codec.zero(part_specs))
        total_type = tff.types.tensorflow_to_type(codec.total_specs(part_specs))
        accumulate = tff.tensorflow.computation(
            lambda total, message: codec.merge(total, codec.decode(message)), (total_type, message_type)
        )
        merge = tff.tensorflow.computation(codec.merge, (total_type, total_type))
        report = tff.tensorflow.computation(lambda total: total, total_type)
        finish = tff.tensorflow.computation(codec.finish, (state_type, params_type, total_type))

        @tff.federated_computation
        def initialize():
            return tff.federated_eval(initial_state, tff.SERVER)

        @tff.federated_computation(initialize.type_signature.result, tff.FederatedType(value_type, tff.CLIENTS))
        def add(state, value):
            server_params = tff.federated_map(params, state)
            messages = tff.federated_map(encode, (value, tff.federated_broadcast(server_params)))
            total = tff.federated_aggregate(messages, zero(), accumulate, merge, report)
            state, result, measurements = tff.federated_map(finish, (state, server_params, total))
            return tff.templates.MeasuredProcessOutput(state, result, measurements)

        return tff.templates.AggregationProcess(initialize, add)


def _map_floats(function: Callable, values: Sequence[tf.Tensor], others: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Maps pairs of floats; of counters, states and flags, which travel as they are, it returns the first."""
    return [function(x, y) if x.dtype.is_floating else x for x, y in zip(values, others)]


def draws_weights(model_fn: ModelFn, weights: Optional[tff.learning.models.ModelWeights] = None) -> bool:
    """Returns whether each call of `model_fn` inside TFF draws the same weights, and where `weights` are given, just those.

    It does where all initializers have a seed or are constant; not where weights are drawn without one, or are loaded into the
    model after it was made.
    """
    drawn = [_draw_weights(model_fn) for _ in range(2)]
    expected = drawn[0] if weights is None else tf.nest.flatten(weights)
    return all(np.array_equal(x, y) for found in drawn for x, y in zip(expected, found))


def _draw_weights(model_fn: ModelFn) -> list[np.ndarray]:
    with tf.Graph().as_default() as graph:
        weights = tf.nest.flatten(_make_weights(model_fn))
        with tf.compat.v1.Session(graph=graph) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            return session.run(weights)


def _make_weights(model_fn: ModelFn) -> tff.learning.models.ModelWeights:
    if not isinstance(model_fn, tff.learning.models.FunctionalModel):
        return tff.learning.models.ModelWeights.from_model(model_fn())
    trainable, non_trainable = model_fn.initial_weights
    return tff.learning.models.ModelWeights(*(tuple(map(tf.convert_to_tensor, part)) for part in (trainable, non_trainable)))


def _weights_type(model_fn: ModelFn) -> tff.Type:
    return tff.tensorflow.computation(lambda: _make_weights(model_fn)).type_signature.result
