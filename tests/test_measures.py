"""What TFF trains and measures of a user's model, loss and metrics is what Keras would, or it is refused before a training."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tff_kit
from tff_kit.errors import UserError
from tff_kit.metrics import Metric, MetricError, build_metrics, keras_names

K, L = tf.keras, tf.keras.layers
ACCURACY = K.metrics.SparseCategoricalAccuracy
_DRAWN = np.random.default_rng(3)
SIZES = {"a": 7, "b": 12, "c": 3}
X = _DRAWN.normal(size=[30, 4]).astype(np.float32)
Y = (X @ [1, -1, 2, 0.5] > 0).astype(np.int32)
STARTS = dict(zip(SIZES, (0, 7, 19)))
TEST = slice(22, 30)
LR = 0.1


def initial(*shape):
    return K.initializers.Constant(np.random.default_rng(5).normal(size=shape))


class Task(tff_kit.Experiment):
    """Three clients, each of which takes one step on all of its examples."""

    task = "measured"
    clients: int = 3
    rounds: int = 1
    batch_size: int = 100
    client_lr: float = LR

    def load_data(self):
        clients = {name: (X[i : i + SIZES[name]], self.labels[i : i + SIZES[name]]) for name, i in STARTS.items()}
        return tff_kit.from_arrays("drawn", clients, (X[TEST], self.labels[TEST]), self.batch_size)

    labels = Y

    def build_model(self):
        return K.Sequential([L.Dense(2, "softmax", kernel_initializer=initial(4, 2), input_shape=(4,))])

    def build_loss(self):
        return K.losses.SparseCategoricalCrossentropy()


class DoubleOnes(K.losses.Loss):
    """Counts examples of class 1 five times, or those of all other classes."""

    def __init__(self, others=False, **kwargs):
        super().__init__(**kwargs)
        self._others = others

    def call(self, y_true, y_pred):
        loss = K.losses.sparse_categorical_crossentropy(y_true, y_pred)
        y_true = tf.reshape(y_true, [-1])
        return tf.where(y_true != 1 if self._others else y_true == 1, 5 * loss, loss)


class LossThatCompares(Task):
    def build_loss(self):
        return DoubleOnes()

    def metrics(self):
        return [Metric("accuracy", K.metrics.SparseCategoricalAccuracy)]


class LossThatComparesOthers(LossThatCompares):
    def build_loss(self):
        return DoubleOnes(others=True)


class Compares(L.Layer):
    def call(self, x):
        return tf.where(tf.round(x) == 1.0, 3 * x, x)


class LayerThatCompares(Task):
    def build_model(self):
        return K.Sequential([Compares(input_shape=(4,)), L.Dense(2, "softmax", kernel_initializer=initial(4, 2))])


class GraphThatCompares(Task):
    def build_model(self):
        x = L.Input((4,))
        compared = tf.where(tf.round(x) == 1.0, 3 * x, x)
        return K.Model(x, L.Dense(2, "softmax", kernel_initializer=initial(4, 2))(compared))


class FlatLabels(Task):
    """Labels of shape [n] where predictions are [n, 1]."""

    labels = (X @ np.array([1, 2, -1, 0.5], np.float32)).astype(np.float32)

    def build_model(self):
        return K.Sequential([L.Dense(1, kernel_initializer=initial(4, 1), input_shape=(4,))])

    def build_loss(self):
        return K.losses.MeanSquaredError()


class Subclassed(K.Model):
    def __init__(self):
        super().__init__()
        self.layer = L.Dense(1, kernel_initializer=initial(4, 1))

    def call(self, x):
        return self.layer(x)


class FlatLabelsOfSubclassed(FlatLabels):
    def build_model(self):
        model = Subclassed()
        model.build([None, 4])
        return model


class Bounded(Task):
    """Weights with a regularizer, which the gradient has."""

    def build_model(self):
        kernel = {"kernel_initializer": initial(4, 2), "kernel_regularizer": K.regularizers.L2(0.3)}
        return K.Sequential([L.Dense(2, "softmax", input_shape=(4,), **kernel)])


def train_by_keras(task):
    """Returns the weights, loss and first metric of one step of federated averaging, computed without TFF."""
    model, loss, (metric, *_) = task.build_model(), task.build_loss(), build_metrics(task.metrics())
    total, mean_loss, changes = sum(SIZES.values()), 0.0, [np.zeros(x.shape) for x in model.trainable_variables]
    for name, size in SIZES.items():
        own = slice(STARTS[name], STARTS[name] + size)
        labels = task.labels[own]
        with tf.GradientTape() as tape:
            predictions = model(X[own], training=True)
            labels = labels[:, np.newaxis] if predictions.shape[-1] == 1 else labels
            own_loss = loss(labels, predictions)
            regularized = tf.add_n([own_loss, *model.losses])
        metric.update_state(labels, predictions)
        mean_loss += float(own_loss) * size / total
        for change, gradient in zip(changes, tape.gradient(regularized, model.trainable_variables)):
            change += gradient.numpy() * size / total
    weights = [x.numpy() - LR * change for x, change in zip(model.trainable_variables, changes)]
    return weights, mean_loss, float(metric.result())


KINDS = [
    Task,
    LossThatCompares,
    LossThatComparesOthers,
    LayerThatCompares,
    GraphThatCompares,
    FlatLabels,
    FlatLabelsOfSubclassed,
    Bounded,
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_step_loss_and_metric_are_those_of_keras(kind, tmp_path):
    task = kind()
    weights, loss, measured = train_by_keras(task)
    run = tff_kit.train(task, tmp_path / "run")
    [row] = run.read_metrics()
    assert row["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert row[f"train_{task.metrics()[0].name}"] == pytest.approx(measured, rel=1e-5)
    model = task.build_model()
    run.load_weights(model)
    for ours, theirs in zip(model.get_weights(), weights):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert tff_kit.evaluate(task, str(run.path))["loss"] == pytest.approx(row["test_loss"], rel=1e-5)


class ReadsById(Task):
    """Data of the client named b is shifted by what its own reader compares."""

    def load_data(self):
        data = super().load_data()

        def read(client, seed):
            return data.client_dataset(client, seed).map(lambda x, y: (tf.where(client == "b", x + 1, x), y))

        return dataclasses.replace(data, client_dataset=read)


@pytest.mark.slow
def test_a_reader_may_compare_client_ids(tmp_path):
    [row] = tff_kit.train(ReadsById(), tmp_path / "run").read_metrics()
    model, loss, expected = Task().build_model(), Task().build_loss(), 0.0
    for name, size in SIZES.items():
        own = slice(STARTS[name], STARTS[name] + size)
        expected += float(loss(Y[own], model(X[own] + (name == "b")))) * size / sum(SIZES.values())
    assert row["train_loss"] == pytest.approx(expected, rel=1e-5)


class Counted(Task):
    """Metrics whose names Keras numbers, and two of one name."""

    def build_model(self):
        return K.Sequential([L.Dense(1, "sigmoid", kernel_initializer=initial(4, 1), input_shape=(4,))])

    def build_loss(self):
        return K.losses.BinaryCrossentropy()

    def metrics(self):
        return [
            Metric("precision", K.metrics.Precision),
            Metric("recall", K.metrics.Recall),
            Metric("at_half", K.metrics.BinaryAccuracy),
            Metric("at_most", lambda: K.metrics.BinaryAccuracy(threshold=0.9)),
        ]


@pytest.mark.slow
def test_metrics_that_keras_numbers_are_measured_by_their_own_names(tmp_path):
    [row] = tff_kit.train(Counted(), tmp_path / "run").read_metrics()
    known = slice(0, TEST.start)
    p, y = Counted().build_model()(X[known]).numpy()[:, 0], Y[known]
    assert row["train_precision"] == pytest.approx(y[p > 0.5].mean())
    assert row["train_recall"] == pytest.approx((p[y == 1] > 0.5).mean())
    assert row["train_at_half"] == pytest.approx(((p > 0.5) == y).mean())
    assert row["train_at_most"] == pytest.approx(((p > 0.9) == y).mean())
    assert keras_names(Counted().metrics()) == {name: name for name in ("precision", "recall", "at_half", "at_most")}


class Worst(K.metrics.Metric):
    """The largest output: not the sum over clients of anything."""

    def __init__(self, name="worst", **kwargs):
        super().__init__(name=name, **kwargs)
        self.largest = self.add_weight("largest", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.largest.assign(tf.maximum(self.largest, tf.reduce_max(y_pred)))

    def result(self):
        return self.largest


def dense(**options):
    return lambda self: K.Sequential([L.Dense(2, "softmax", input_shape=(4,), **options)])


def masked(self):
    return K.Sequential([L.Embedding(7, 4, mask_zero=True, input_length=4), L.Dense(2, "softmax")])


def with_own_loss(self):
    model = dense()(self)
    model.add_loss(lambda: tf.reduce_sum(model.layers[0].kernel))
    x = L.Input((4,))
    y = L.Dense(2, "softmax")(x)
    functional = K.Model(x, y)
    functional.add_loss(tf.reduce_sum(y**2))
    return functional


REFUSED = {
    "constraint": ({"build_model": dense(kernel_constraint=K.constraints.MaxNorm(0.1))}, r"constraints on .*kernel.*leaves out"),
    "mask": ({"build_model": masked}, "an output with a mask"),
    "activity regularizer": ({"build_model": dense(activity_regularizer="l2")}, "an activity regularizer in dense"),
    "own loss in the model": ({"build_model": with_own_loss}, "found "),
    "loss of many numbers": (
        {"build_loss": lambda self: K.losses.SparseCategoricalCrossentropy(reduction="none")},
        r"one number a batch, found one of shape \(8,\)",
    ),
    "loss as text": (
        {"build_loss": lambda self: "mse"},
        "Expected .*build_loss.. to return a loss of tf.keras.losses.*found 'mse'",
    ),
    "metric named loss": (
        {"metrics": lambda self: [Metric("loss", K.metrics.SparseCategoricalAccuracy)]},
        "found 'loss', which is",
    ),
    "metrics of one name": ({"metrics": lambda self: 2 * [Metric("a", K.metrics.SparseCategoricalAccuracy)]}, "found 'a', twice"),
    "metric of no sums": ({"metrics": lambda self: [Metric("worst", Worst)]}, "metric worst to be sums.*largest"),
    "labels of other shape": ({"labels": np.eye(2, dtype=np.float32)[Y]}, "to fit drawn, found "),
    "layer that fails in a graph": (
        {"build_model": lambda self: K.Sequential([L.SpectralNormalization(L.Dense(2, "softmax"), input_shape=(4,))])},
        "found ",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_or_fail_is_refused_with_one_sentence(name, tmp_path):
    changes, message = REFUSED[name]
    task = type("Refused", (Task,), changes)()
    with pytest.raises(UserError, match=message) as refused:
        tff_kit.train(task, tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run/metrics.csv").exists() or not tff_kit.training.runs.RunDirectory(tmp_path / "run").read_metrics()


def test_a_metric_of_a_taken_name_is_refused_wherever_it_is_built():
    for name in ("loss", "examples", "num_examples"):
        with pytest.raises(MetricError, match=name):
            build_metrics([Metric(name, K.metrics.MeanAbsoluteError)])
