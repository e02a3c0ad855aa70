"""Keras optimizers that become TFF's: the same steps, or a refusal."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_kit.algorithm import optimizers

K = tf.keras.optimizers
START = ([1.0, 2.0, -3.0], [[0.5], [-4.0]])
_RTOL = 1e-4  # 1 - beta_2 in float32 is rounded by up to 6e-5.
GRADIENTS = [([0.5, -3.0, 1e-4], [[2.0], [-0.1]]), ([1.0, 0.2, -0.3], [[-7.0], [0.4]]), ([-0.5, 0.0, 2.0], [[0.1], [0.1]])]


def _tensors(values):
    return tuple(map(tf.constant, values))


def _keras_steps(optimizer):
    variables = [tf.Variable(x) for x in START]
    for gradients in GRADIENTS:
        optimizer.apply_gradients(zip(map(tf.constant, gradients), variables))
    return [v.numpy() for v in variables]


def _tff_steps(optimizer):
    weights = _tensors(START)
    state = optimizer.initialize(tuple(tf.TensorSpec(x.shape, x.dtype) for x in weights))
    state = optimizer.set_hparams(state, optimizer.get_hparams(state))
    for gradients in GRADIENTS:
        state, weights = optimizer.next(state, weights, _tensors(gradients))
    return weights


@pytest.mark.parametrize("kind", [K.SGD, K.Adam, K.AdamW, K.Adagrad, K.legacy.SGD, K.legacy.Adam])
@pytest.mark.parametrize("clipping", [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.1}, {"clipvalue": 100.0}])
def test_steps_are_those_of_keras_clipped_or_not(kind, clipping):
    found = _tff_steps(optimizers.as_tff_optimizer(lambda: kind(0.25, **clipping)))
    for a, b in zip(found, _keras_steps(kind(0.25, **clipping))):
        np.testing.assert_allclose(a, b, rtol=_RTOL)


@pytest.mark.parametrize(
    "make",
    [
        lambda: K.SGD(0.25, momentum=0.5),
        lambda: K.SGD(0.25, jit_compile=True, name="mine"),
        lambda: K.Adam(0.25, beta_1=0.5, beta_2=0.6, epsilon=0.1),
        lambda: K.Adam(0.25, weight_decay=0.3),
        lambda: K.AdamW(0.25, weight_decay=0.3, clipnorm=0.2),
        lambda: K.Adagrad(0.25, initial_accumulator_value=0.7, epsilon=0.1),
        lambda: K.legacy.SGD(0.25, momentum=0.5),
        lambda: K.legacy.Adam(0.25, epsilon=0.1),
        lambda: K.legacy.SGD(0.25, clipvalue=1.0, clipnorm=0.5),
    ],
)
def test_options_that_tff_has_are_honoured(make):
    for a, b in zip(_tff_steps(optimizers.as_tff_optimizer(make)), _keras_steps(make())):
        np.testing.assert_allclose(a, b, rtol=_RTOL)


def test_a_variable_without_a_gradient_stays():
    optimizer = optimizers.as_tff_optimizer(lambda: K.SGD(1.0, global_clipnorm=1.0))
    weights = _tensors(START)
    state = optimizer.initialize(tuple(tf.TensorSpec(x.shape, x.dtype) for x in weights))
    _, moved = optimizer.next(state, weights, (tf.constant([3.0, 0.0, 4.0]), None))
    np.testing.assert_allclose(moved[0], [1 - 0.6, 2, -3 - 0.8], rtol=1e-6)
    np.testing.assert_array_equal(moved[1], START[1])


def _excluding():
    optimizer = K.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


class _OwnSteps(K.SGD):
    pass


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: K.SGD(nesterov=True), "nesterov=True"),
        (lambda: K.SGD(weight_decay=0.1), "weight_decay=0.1"),
        (lambda: K.SGD(use_ema=True), "use_ema=True"),
        (lambda: K.SGD(K.schedules.ExponentialDecay(0.1, 10, 0.5)), "learning_rate='ExponentialDecay'"),
        (lambda: K.Adam(K.schedules.CosineDecay(0.1, 10)), "learning_rate='CosineDecay'"),
        (lambda: K.Adam(amsgrad=True), "amsgrad=True"),
        (_excluding, "exclude_from_weight_decay"),
        (lambda: K.legacy.SGD(nesterov=True), "nesterov=True"),
        (lambda: K.legacy.SGD(decay=0.1), "decay=0.1"),
        (lambda: K.legacy.SGD(lr=0.1, decay=0.2), "decay="),
        (lambda: K.legacy.SGD(lambda: 0.1), "learning_rate=<function"),
        (lambda: K.legacy.Adam(K.schedules.ExponentialDecay(0.1, 10, 0.5)), "learning_rate="),
        (lambda: K.legacy.Adam(gradient_transformers=[lambda pairs: pairs]), "gradient_transformers="),
        (lambda: K.legacy.SGD(clipnorm=0.0), "clipnorm=0.0"),
        (lambda: K.Adam(beta_1=lambda: 0.9), "beta_1=<function"),
        (K.Ftrl, "Ftrl"),
        (K.RMSprop, "RMSprop"),
        (K.legacy.Adagrad, "Adagrad"),
        (_OwnSteps, "_OwnSteps"),
        (lambda: tf.keras.mixed_precision.LossScaleOptimizer(K.SGD()), "LossScaleOptimizer"),
        ("sgd", "'sgd'"),
        (lambda: None, "None"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(make, found):
    with pytest.raises(TypeError, match=r"Expected an optimizer of tff\.learning\.optimizers") as refused:
        optimizers.as_tff_optimizer(make)
    assert found in str(refused.value)


def test_tffs_own_optimizers_stay():
    optimizer = tff.learning.optimizers.build_adam(0.5)
    assert optimizers.as_tff_optimizer(optimizer) is optimizer
    assert optimizers.as_tff_optimizer(lambda: optimizer) is optimizer
