"""Kinds of Keras models through training, evaluation and --resume, with nothing encoded, 8 bits, and the fewest bits.

Each combination works, to the values that it has to have, or is refused with one sentence before the first round.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tff_kit
from tff_kit.errors import UserError

K, L = tf.keras, tf.keras.layers
_DRAWN = np.random.default_rng(0)
X = _DRAWN.normal(size=[72, 6]).astype(np.float32)
Y = (X @ [1, -1, 2, 0.5, -2, 1] > 0).astype(np.int32)
WORDS = np.where(Y, "yes indeed", "no way")
CATEGORICAL, BINARY = K.losses.SparseCategoricalCrossentropy, K.losses.BinaryCrossentropy
ENCODERS = {
    "identity": {"broadcast": "identity", "mean": "identity"},
    "8 bits": {"broadcast": "tensor_encoding:8", "mean": "tensor_encoding:8"},
    "fewest bits": {"compress": "light"},
}


def _dense():
    return K.Sequential([L.Dense(4, "relu", input_shape=(6,)), L.Dense(2, "softmax")])


def _convolution():
    return K.Sequential(
        [L.Reshape((6, 1), input_shape=(6,)), L.Conv1D(3, 3, activation="relu"), L.Flatten(), L.Dense(2, "softmax")]
    )


def _batch_norm():
    return K.Sequential([L.Dense(4, input_shape=(6,)), L.BatchNormalization(), L.ReLU(), L.Dense(2, "softmax")])


def _lstm():
    return K.Sequential([L.Reshape((3, 2), input_shape=(6,)), L.LSTM(3), L.Dense(2, "softmax")])


def _embedding():
    return K.Sequential([L.Embedding(10, 3, input_length=2), L.Flatten(), L.Dense(2, "softmax")])


def _dropout():
    return K.Sequential([L.Dense(8, "relu", input_shape=(6,)), L.Dropout(0.3), L.Dense(2, "softmax")])


def _two_inputs():
    a, b = L.Input((6,), name="a"), L.Input((2,), name="b")
    return K.Model({"a": a, "b": b}, L.Dense(2, "softmax")(L.Concatenate()([a, b])))


def _two_outputs():
    x = L.Input((6,))
    return K.Model(x, [L.Dense(2, "softmax")(x), L.Dense(2, "softmax")(x)])


def _one_output():
    return K.Sequential([L.Dense(4, "relu", input_shape=(6,)), L.Dense(1, "sigmoid")])


def _frozen():
    model = _dense()
    model.layers[0].trainable = False
    return model


class _Subclassed(K.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = L.Dense(4, "relu"), L.Dense(2, "softmax")

    def call(self, inputs):
        return self.out(self.hidden(inputs))


def _subclassed():
    model = _Subclassed()
    model.build([None, 6])
    return model


def _normalization():
    normalization = L.Normalization()
    model = K.Sequential([L.Input((6,)), normalization, L.Dense(2, "softmax")])
    normalization.set_weights([X.mean(axis=0), X.var(axis=0), len(X)])  # As adapt does, which works in no graph.
    normalization.finalize_state()
    return model


def _words():
    vectors = L.TextVectorization(max_tokens=8, output_sequence_length=2, vocabulary=["yes", "no", "indeed", "way"])
    return K.Sequential([L.Input((), dtype=tf.string), vectors, L.Embedding(8, 3), L.Flatten(), L.Dense(2, "softmax")])


def _lambda():
    return K.Sequential([L.Lambda(lambda x: 2 * x, input_shape=(6,)), L.Dense(2, "softmax")])


def _mixed_precision():
    policy = K.mixed_precision.Policy("mixed_float16")
    return K.Sequential([L.Dense(4, "relu", dtype=policy, input_shape=(6,)), L.Dense(2, "softmax")])


def _half_precision():
    return K.Sequential([L.Dense(4, "relu", dtype="float16", input_shape=(6,)), L.Dense(2, "softmax")])


def _adapting():
    normalization = L.Normalization()
    normalization.adapt(X)
    return K.Sequential([L.Input((6,)), normalization, L.Dense(2, "softmax")])


def _unbuilt():
    return K.Sequential([L.Dense(2, "softmax")])


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its loss and data, and what has to become of it: `None`, or a part of the sentence that refuses it."""

    build: object
    loss: object = CATEGORICAL
    inputs: object = dataclasses.field(default_factory=lambda: X)
    labels: object = dataclasses.field(default_factory=lambda: Y)
    refused: str = ""


CASES = {
    "dense": Case(_dense),
    "convolution": Case(_convolution),
    "batch norm": Case(_batch_norm),
    "lstm": Case(_lstm),
    "embedding": Case(_embedding, inputs=np.abs(X[:, :2] * 3).astype(np.int32) % 10),
    "dropout": Case(_dropout),
    "two inputs": Case(_two_inputs, inputs={"a": X, "b": X[:, :2]}),
    "two outputs": Case(_two_outputs, labels=(Y, Y), refused="a model of one output.*; found 2"),
    "one output": Case(_one_output, loss=BINARY),
    "frozen": Case(_frozen),
    "subclassed": Case(_subclassed),
    "normalization": Case(_normalization),
    "words": Case(_words, inputs=WORDS),
    "lambda": Case(_lambda),
    "mixed precision": Case(_mixed_precision),
    "half precision": Case(_half_precision),
    "unbuilt": Case(_unbuilt, refused="a model that has its weights, found one without"),
    "adapting": Case(_adapting, refused="also in a TensorFlow graph.*adapt"),
}


class Task(tff_kit.Experiment):
    """Trains the model of a case."""

    task = "matrix"
    case: str = "dense"
    clients: int = 2
    client_lr: float = 0.3
    threshold: int = 23  # One variable of a model, or a few, are larger: coders take long to compile.
    eval_every: int = 1

    def load_data(self):
        case = CASES[self.case]
        of = [tf.nest.map_structure(lambda x, i=i: x[i::3], (case.inputs, case.labels)) for i in range(3)]
        return tff_kit.from_arrays("the matrix", {"p": of[0], "q": of[1]}, of[2], self.batch_size)

    def build_model(self):
        return CASES[self.case].build()

    def build_loss(self):
        return CASES[self.case].loss()


@pytest.mark.slow
@pytest.mark.parametrize("encoders", ENCODERS)
@pytest.mark.parametrize("name", CASES)
def test_a_kind_of_model_trains_goes_on_and_is_evaluated_or_is_refused(name, encoders, built_once, tmp_path):
    experiment = Task(case=name, rounds=1, **ENCODERS[encoders])
    if CASES[name].refused:
        with pytest.raises(UserError, match=CASES[name].refused):
            tff_kit.train(experiment, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    tff_kit.train(experiment, tmp_path / "run")
    longer = dataclasses.replace(experiment, rounds=2)
    run = tff_kit.train(longer, tmp_path / "run", resume=True)
    rows = run.read_metrics()
    assert [row["round"] for row in rows] == [1, 2]
    assert all(np.isfinite(row[key]) for row in rows for key in row if "loss" in key or "accuracy" in key)
    tested = tff_kit.evaluate(longer, run)
    assert tested["loss"] == pytest.approx(rows[-1]["test_loss"], rel=1e-5)
    assert tested["accuracy"] == pytest.approx(rows[-1]["test_accuracy"], abs=1e-6)
    assert tested["examples"] == 24
