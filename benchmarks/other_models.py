"""The one setting on two models that it was not made for: a recurrent one on text, and a residual one on digits.

    python -m benchmarks.other_models --emnist mnist-by-writer

The text is the source code of Python's standard library: a client is a module, whose next character the model predicts. Modules
of no client are the test. Compares nothing encoded, 8 bits and `--compress light`, over three seeds. Writes
results/encoders/other_models.csv with the mean and the spread of the seeds, and other_models_runs.csv with every run. Finished
runs are read from --logdir and not repeated, so the benchmark can be stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import tyro

import tff_kit
from benchmarks import results
from benchmarks.bits_to_accuracy import finished, summary
from tff_kit.experiment import ClientOptimizer

_LAYERS = tf.keras.layers
_CHARACTERS = 96  # Of printable ASCII, and one for all others.
_WINDOW = 32
_WINDOWS = 600  # Of a client.
_TEST_EVERY = 5
_ENCODERS: dict[str, dict[str, Any]] = {
    "nothing encoded": {},
    "8 bits": {"broadcast": "uniform:8", "mean": "uniform:8"},
    "light": {"compress": "light"},
}


class Text(tff_kit.Experiment):
    """The next character of source code, by an LSTM."""

    rounds: int = 40
    clients: int = 8
    client_optimizer: ClientOptimizer = "adam"
    client_lr: float = 3e-3
    task = "text"

    def load_data(self):
        modules = {path.stem: _windows(path) for path in _modules()}
        held_out = sorted(modules)[::_TEST_EVERY]
        test = [np.concatenate(arrays) for arrays in zip(*(modules.pop(name) for name in held_out))]
        name = f"source code of Python's standard library, {len(modules)} modules"
        return tff_kit.from_arrays(name, modules, tuple(test), self.batch_size, self.local_epochs)

    def build_model(self):
        return tf.keras.Sequential(
            [
                _LAYERS.Embedding(_CHARACTERS, 24, input_length=_WINDOW),
                _LAYERS.LSTM(160),
                _LAYERS.Dense(_CHARACTERS, "softmax"),
            ]
        )

    def build_loss(self):
        return tf.keras.losses.SparseCategoricalCrossentropy()


class Residual(tff_kit.Emnist):
    """Digits, by a small residual network."""

    rounds: int = 40
    client_lr: float = 0.1
    task = "residual"

    def build_model(self):
        inputs = x = _LAYERS.Input((28, 28, 1))
        x = _LAYERS.Conv2D(24, 3, 2, "same", activation="relu")(x)
        for filters, stride in ((24, 1), (48, 2), (96, 2)):
            x = _block(x, filters, stride)
        x = _LAYERS.GlobalAveragePooling2D()(x)
        return tf.keras.Model(inputs, _LAYERS.Dense(10, "softmax")(x))


def _block(x: Any, filters: int, stride: int) -> Any:
    """Two convolutions, around which the input goes too."""
    y = _LAYERS.Conv2D(filters, 3, stride, "same", activation="relu")(x)
    y = _LAYERS.Conv2D(filters, 3, 1, "same")(y)
    if stride > 1:
        x = _LAYERS.Conv2D(filters, 1, stride)(x)
    return _LAYERS.ReLU()(_LAYERS.Add()([x, _LAYERS.LayerNormalization()(y)]))


def _modules() -> list[pathlib.Path]:
    return [path for path in pathlib.Path(os.__file__).parent.glob("*.py") if path.stat().st_size > 20 * _WINDOWS]


def _windows(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns characters, int32 [windows, _WINDOW], and the ones that follow, [windows]."""
    codes = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32) - 32
    codes[(codes < 0) | (codes >= _CHARACTERS - 1)] = _CHARACTERS - 1
    starts = np.random.default_rng(0).choice(len(codes) - _WINDOW, _WINDOWS, replace=False)
    windows = codes[starts[:, np.newaxis] + np.arange(_WINDOW + 1)]
    return windows[:, :-1], windows[:, -1]


def main(emnist: str = "mnist-by-writer", seeds: int = 3, logdir: Optional[pathlib.Path] = None, quick: bool = False) -> None:
    """Trains every combination and writes the results.

    Args:
        emnist: As in `python -m tff_kit train emnist --data`.
        seeds: How many.
        logdir: Where the runs are kept; by default a folder of this commit in logs/.
        quick: Try one round of two of the encoders with one of the models, into logs/results-quick/.
    """
    bases: list[tff_kit.Experiment] = [Text(eval_every=4), Residual(data=emnist, eval_every=4)]
    encoders = dict(_ENCODERS)
    if quick:
        bases, seeds = [Text(rounds=1, clients=2)], 1
        encoders.popitem()  # It takes long to build.
    folder = logdir or results.runs_folder("other_models", quick)
    finals, rows = [], []
    for base in bases:
        runs = [
            finished(base.task, name, dataclasses.replace(base, seed=seed, **settings), folder)[0]
            for seed, (name, settings) in itertools.product(range(seeds), encoders.items())
        ]
        finals += runs
        rows += [{"model": base.task, **row} for row in summary(runs, encoders)]
    source = results.Source(
        command="python -m benchmarks.other_models --emnist FOLDER",
        data="; ".join(f"{base.load_data().name}, {base.rounds} rounds of {base.clients} clients" for base in bases),
        seeds=results.in_words(range(seeds)),
        spread="smallest and largest of the seeds; points with the standard error of the differences seed by seed",
    )
    results.write("encoders/other_models_runs", finals, source, quick)
    results.write("encoders/other_models", rows, source, quick)


if __name__ == "__main__":
    tyro.cli(main)
