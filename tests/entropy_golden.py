"""Tensors whose payloads stand in tests/golden/, made by whole-number arithmetic alone, the same on any machine.

    PYTHONPATH=. python tests/entropy_golden.py

writes the payloads anew. Do so only with a new version of the format, or where an encoder is meant to choose differently.
"""

from __future__ import annotations

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent / "golden"


def _random(count, seed):
    """Returns integers from 0 to 2^31 - 1: the high bits of a linear congruential generator (Knuth's MMIX)."""
    state, numbers = seed, np.empty(count, np.int64)
    for k in range(count):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        numbers[k] = state >> 33
    return numbers


def _bell(count, seed, width):
    """Returns integers around 0, about normal: sums of twelve numbers from 0 to width, less their mean."""
    return (_random(12 * count, seed).reshape(count, 12) % (width + 1)).sum(axis=1) - 6 * width


def _rare(count, seed, one_in):
    return np.where(_random(count, seed) % one_in == 0, _bell(count, seed + 1, 3), 0)


def _rows(rows, columns, seed):
    """Returns a matrix whose events are half as frequent every eighth of its rows, and every eighth of its columns."""
    row, column = np.arange(rows)[:, np.newaxis] * 8 // rows, np.arange(columns) * 8 // columns
    happens = _random(rows * columns, seed).reshape(rows, columns) < 2**30 >> (row + column)
    return np.where(happens, _random(rows * columns, seed + 1).reshape(rows, columns) % 7 - 3, 0)


def _factor(rows, columns, seed):
    """Returns a matrix whose columns become smaller; the first has one sign, the second mostly the other, and the fourth is 0."""
    x = _bell(rows * columns, seed, 6).reshape(rows, columns) // (1 + np.arange(columns) ** 2 // 4)
    x[:, 0], x[:, 1], x[:, 3] = np.abs(x[:, 0]), np.where(x[:, 2] > 3, 1, -np.abs(x[:, 1])), 0
    return x


def tensors():
    """Returns the tensors by name."""
    long = (_random(2**17, 5) % 11 == 0) * (1 - 2 * (_random(2**17, 6) % 2))
    return {
        "empty": np.zeros([2, 0, 3], np.float32),
        "scalar": np.array(-7, np.float32),
        "constant": np.full([9, 5], 3, np.int64),
        "dense": _bell(500, 1, 4).astype(np.float32),
        "dense-one-sign": np.abs(_bell(301, 2, 40)).astype(np.uint16),
        "sparse": _rare(800, 3, 9).astype(np.float32),
        "sparse-one-sign": np.abs(_rare(800, 4, 9)).reshape(4, 2, 100).astype(np.int8),
        "extremes": np.array([-(2**31), 2**31 - 1, 0, 1, -1, 2**30], np.int32),
        "verbatim": np.array([2.0**31, -3e38, 0.0], np.float32),
        "not-finite": np.array([[1, np.inf], [0, 2]], np.float64),
        "rows": _rows(400, 300, 7).astype(np.float32),
        "rows-sections": np.concatenate([_factor(800, 13, 8), _factor(700, 13, 9)[:, ::-1]]).astype(np.float32),
        "tuples": long.astype(np.float32),
        "tuples-escaped": np.where(np.arange(2**17) % 9973 == 0, 1000, long).astype(np.int32),
    }


def main():
    """Writes the payloads."""
    import tensorflow as tf

    from tff_kit.encoders.entropy import EntropyCodingStage

    FOLDER.mkdir(exist_ok=True)
    stage = EntropyCodingStage()
    for name, x in tensors().items():
        (FOLDER / f"entropy-{name}.bin").write_bytes(stage.encode(tf.constant(x), {})[stage.PAYLOAD_KEY].numpy().tobytes())


if __name__ == "__main__":
    main()
