"""Dropout and other random layers, which a run repeats bit for bit."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import tff_kit
from tff_kit.algorithm import randomness

K, L = tf.keras, tf.keras.layers
X = np.random.default_rng(0).normal(size=[60, 8]).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int32)
SPEC = (tf.TensorSpec([None, 8], tf.float32), tf.TensorSpec([None], tf.int32))


class Task(tff_kit.Experiment):
    """Three clients, so that some share a worker's session, and a network that drops half of its inputs."""

    task = "random"
    clients: int = 3
    client_lr: float = 0.1
    batch_size: int = 5
    eval_every: int = 2

    def load_data(self):
        return tff_kit.from_arrays("random", {f"c{i}": (X[i::4], Y[i::4]) for i in range(3)}, (X[3::4], Y[3::4]), self.batch_size)

    def build_model(self):
        return K.Sequential([L.Dropout(0.5, input_shape=(8,)), L.Dense(2, "softmax", kernel_initializer="zeros")])

    def build_loss(self):
        return K.losses.SparseCategoricalCrossentropy()


def _losses(run):
    return [row["train_loss"] for row in run.read_metrics()]


@pytest.mark.slow
def test_a_run_with_dropout_is_repeated_bit_for_bit_also_when_it_goes_on(tmp_path):
    whole = _losses(tff_kit.train(Task(rounds=4), tmp_path / "whole"))
    tff_kit.train(Task(rounds=2), tmp_path / "parts")
    assert _losses(tff_kit.train(Task(rounds=4), tmp_path / "parts", resume=True)) == whole
    assert _losses(tff_kit.train(dataclasses.replace(Task(rounds=4), seed=1), tmp_path / "other")) != whole


def _draws(layer, batches, seed=0):
    """Returns what a model that puts out what `layer` draws from zeros puts out for each batch, from a new session."""
    with tf.Graph().as_default() as graph:
        model = K.Sequential([L.Lambda(lambda x: 0 * x, input_shape=(8,)), layer()])
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = randomness.draw_from_examples(tff.learning.models.from_keras_model(model, loss, SPEC), seed)
        outputs = []
        for batch in batches:
            with tf.control_dependencies(outputs):
                outputs.append(model.forward_pass(tuple(map(tf.constant, batch)), training=True).predictions)
        with tf.compat.v1.Session(graph=graph) as session:
            session.run([tf.compat.v1.global_variables_initializer(), [x.initializer for x in model.local_variables]])
            return session.run(outputs)


LAYERS = {
    "uniform": lambda: L.Lambda(lambda x: x + tf.random.uniform(tf.shape(x))),
    "normal": lambda: L.GaussianNoise(1.0),
    "truncated normal": lambda: L.Lambda(lambda x: x + tf.random.truncated_normal(tf.shape(x))),
    "integers": lambda: L.Lambda(lambda x: x + tf.cast(tf.random.uniform(tf.shape(x), 0, 100, tf.int32), tf.float32)),
    "categories": lambda: L.Lambda(lambda x: x + tf.cast(tf.random.categorical(x, 8), tf.float32)),
    "shuffle": lambda: L.Lambda(lambda x: x + tf.random.shuffle(tf.range(8.0))),
    "with a seed": lambda: L.Lambda(lambda x: x + tf.random.uniform(tf.shape(x), seed=3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_drawn_follows_from_the_seed_the_examples_and_how_often_it_was_drawn(name):
    a, b = (X[:4], Y[:4]), (X[4:8], Y[4:8])
    first = _draws(LAYERS[name], [a, a, b])
    np.testing.assert_array_equal(first, _draws(LAYERS[name], [a, a, b]))
    others = [first[1], _draws(LAYERS[name], [b])[0], _draws(LAYERS[name], [a], seed=1)[0]]
    assert all((first[0] != other).any() for other in others)


def test_uniform_numbers_are_uniform_and_normal_ones_normal():
    batch = (np.tile(X, [100, 1]), np.tile(Y, 100))
    (uniform,), (normal,) = (_draws(LAYERS[name], [batch]) for name in ("uniform", "normal"))
    n = uniform.size  # 48,000; five standard errors.
    assert abs(uniform.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n) and uniform.min() >= 0 and uniform.max() < 1
    assert abs(normal.mean()) < 5 / np.sqrt(n) and abs(normal.var() - 1) < 5 * np.sqrt(2 / n)


@pytest.mark.slow
def test_dropout_drops_its_share_and_other_units_in_each_step():
    batch = (X[:4], Y[:4])
    layer = lambda: K.Sequential([L.Lambda(lambda x: x + 1), L.Dropout(0.5)])  # noqa: E731
    masks = np.array(_draws(layer, [batch] * 50))
    assert set(np.unique(masks)) == {0.0, 2.0}
    assert abs((masks == 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(masks.size)
    assert (masks == 0).any(axis=(0, 1)).all() and (masks != 0).any(axis=(0, 1)).all()
