"""Differential privacy and secure aggregation of the clients' updates, made of TFF's own parts.

Differential privacy limits what the model tells about any one client. Each client's update is clipped to a norm C. The server
adds the updates, and adds normal noise of standard deviation z C to each coordinate of the sum; z is the noise multiplier. C
follows the median of the clients' norms, which the server estimates from noisy counts. The noise on the updates is a little
more than z C, so that counts and updates together have the privacy of z:

    H. B. McMahan, D. Ramage, K. Talwar, L. Zhang: Learning Differentially Private Recurrent Language Models. ICLR 2018,
    arXiv 1710.06963.
    G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy: Differentially Private Learning with Adaptive Clipping. NeurIPS 2021,
    arXiv 1905.03871.

The sum is divided by the number of clients that a round samples, even if some of them drop out, are late or are left out. A
divisor that followed them would reveal them. A missing client counts as an update of zero and weakens no guarantee.

Secure aggregation shows the server sums over clients, and no update, weight or metric of a single client. Numbers are rounded
to one of 2^32 steps between two bounds and added as integers:

    K. Bonawitz, V. Ivanov, B. Kreuter, A. Marcedone, H. B. McMahan, S. Patel, D. Ramage, A. Segal, K. Seth: Practical Secure
    Aggregation for Privacy-Preserving Machine Learning. CCS 2017.

TFF's runtime has no such protocol. It adds the same integers in plain.
"""

from __future__ import annotations

import collections
from typing import Any

import dp_accounting
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from dp_accounting import rdp

from tff_kit.algorithm import processes

# TFF leaves an assertion of its secure sums unused. TensorFlow would log a long message for each one.
tf.get_logger().addFilter(lambda record: "assert_less_equal" not in record.getMessage())

_COORDINATE_BOUND = 1.0  # Coordinates of updates stay below this. The counts, which are halves, must fit too.


def build_private_mean_process(
    noise_multiplier: float, clients_per_round: int, secure: bool = False
) -> tff.aggregators.WeightedAggregationFactory:
    """Builds the process that averages the clients' updates with differential privacy. All clients have equal weight.

    It measures `mean_value/clipping_norm`, the norm to which the next round clips. It also measures `mean_weight/left_out`, the
    number of clients whose update or its norm is not finite. These clients count as an update of zero.

    Args:
      noise_multiplier: Standard deviation of the noise on the sum, in units of the clipping norm. 0 only clips.
      clients_per_round: Number of clients that a round samples. The noisy sum is divided by it.
      secure: Whether to add the clipped updates by secure sums. Rounding to their steps adds less than 4e-7 to the norm of an
        update of two million weights, which the noise does not cover.

    Returns:
      A `tff.aggregators.WeightedAggregationFactory`: the `aggregation_process` of `build_federated_averaging_process` with
      `weighted=False`. A client's weight only matters in whether it is zero.
    """
    clients, multiplier = float(clients_per_round), float(noise_multiplier)
    # A twentieth of the clients, as Andrew et al. recommend. With few clients that is too little: below half of the multiplier,
    # the counts alone would reveal more than the multiplier allows.
    count_stddev = max(clients / 20, multiplier) if multiplier else None
    kind = _SecurelySummed if secure else tff.aggregators.DifferentiallyPrivateFactory
    return _PrivateMeanFactory(kind.gaussian_adaptive(multiplier, clients, clipped_count_stddev=count_stddev), secure)


def build_secure_mean_process() -> tff.aggregators.WeightedAggregationFactory:
    """Builds the process that averages the clients' updates by secure sums.

    It is `tff.learning.secure_aggregator` without zeroing and clipping. Coordinates are cut to bounds that follow twice the
    largest coordinate of 95 % of the clients. Weights are cut to 0 to 2^20 - 1. A client whose update is not finite is left out
    and counted. If all clients are left out, the model stays as it is.

    Returns:
      A `tff.aggregators.WeightedAggregationFactory`: the `aggregation_process` of `build_federated_averaging_process`. Pass
      `metrics_aggregator=tff.learning.metrics.secure_sum_then_finalize` there too, so that no plain sum is left.
    """
    bound = tff.aggregators.PrivateQuantileEstimationProcess.no_noise(
        initial_estimate=50.0, target_quantile=0.95, learning_rate=1.0, multiplier=2.0, secure_estimation=True
    )
    return processes.build_mean_factory(tff.aggregators.SecureSumFactory(bound), secure=True)


class Accountant:
    """Computes the (epsilon, delta) of a training with differential privacy, for replacing one client by any other.

    It assumes that each round samples a fixed number of clients without replacement, as `tff_kit.train` does, and that nobody
    knows which ones. Y.-X. Wang, B. Balle, S. P. Kasiviswanathan: Subsampled Rényi Differential Privacy and Analytical Moments
    Accountant. AISTATS 2019, arXiv 1808.00087, theorem 27, as `dp_accounting` implements it. Replacing an update of norm C
    moves the sum by up to 2 C, so the multiplier counts half. Papers often state a smaller epsilon: for adding or removing one
    client, with a random number of clients a round.

    Args:
      noise_multiplier: As in `build_private_mean_process`; more than 0.
      clients_per_round: Number of clients that a round samples. Some may be missing if that does not depend on their data.
      clients: Number of all clients.

    Attributes:
      delta: `clients**-1.1`, as in McMahan et al.
    """

    def __init__(self, noise_multiplier: float, clients_per_round: int, clients: int):
        self.delta = float(clients) ** -1.1
        noise = dp_accounting.GaussianDpEvent(noise_multiplier / 2)
        sampled = dp_accounting.SampledWithoutReplacementDpEvent(clients, clients_per_round, noise)
        # The theorem's bound is loose if most clients take part. Sampling reveals no more than taking all clients does.
        bounds = [_one_round(sampled), _one_round(noise)]
        self._orders, self._one_round = bounds[0].orders, np.minimum(*(bound.rdp for bound in bounds))

    def epsilon(self, rounds: int) -> float:
        """Returns epsilon at `delta` for the models of `rounds` rounds."""
        return float(rdp.compute_epsilon(self._orders, rounds * self._one_round, self.delta)[0])

    def describe(self, rounds: int) -> str:
        """Returns sentences that state the privacy of a training of `rounds` rounds."""
        return (
            f"After {rounds} rounds the model has epsilon {self.epsilon(rounds):.3g} at delta {self.delta:.2g}, for replacing "
            "one client by another, if nobody knows the seed that samples them. Metrics have no noise and are not covered."
        )


def _one_round(event: dp_accounting.DpEvent) -> rdp.RdpAccountant:
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    return accountant.compose(event)


class _SecurelySummed(tff.aggregators.DifferentiallyPrivateFactory):
    """Adds clipped updates by secure sums, between bounds that do not depend on any client's data."""

    def __init__(self, query: Any):
        super().__init__(query, tff.aggregators.SecureSumFactory(_COORDINATE_BOUND))


class _PrivateMeanFactory(tff.aggregators.WeightedAggregationFactory):
    """Gives an unweighted mean the interface that federated averaging expects, and the measurements of the other means."""

    def __init__(self, factory: tff.aggregators.UnweightedAggregationFactory, secure: bool):
        self._factory, self._secure = factory, secure

    def create(self, value_type, weight_type):
        inner = self._factory.create(value_type)

        @tff.tensorflow.computation(value_type, weight_type)
        def leave_out(value, weight):
            # Finite numbers with infinite squares would clip to NaN and spoil the whole round.
            keep = tf.math.is_finite(tf.linalg.global_norm(tf.nest.flatten(value)))
            return tf.nest.map_structure(lambda x: tf.where(keep, x, tf.zeros_like(x)), (value, weight))

        @tff.federated_computation(
            inner.initialize.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS),
            tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def average(state, value, weight):
            value, weight = tff.federated_map(leave_out, (value, weight))
            output = inner.next(state, value)
            measurements = collections.OrderedDict(
                mean_value=collections.OrderedDict(clipping_norm=output.measurements["dp_query_metrics"]["clip"]),
                mean_weight=collections.OrderedDict(left_out=processes.count_left_out(weight, self._secure)),
            )
            return tff.templates.MeasuredProcessOutput(output.state, output.result, tff.federated_zip(measurements))

        return tff.templates.AggregationProcess(inner.initialize, average)
