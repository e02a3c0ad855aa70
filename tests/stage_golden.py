"""Messages that stand in tests/golden/, of a tensor made by whole-number arithmetic alone, the same on any machine.

    PYTHONPATH=. python tests/stage_golden.py

writes the messages anew. Do so only with a new version of the format, or where an encoder is meant to choose differently.
"""

from __future__ import annotations

import functools
import pathlib
import re

import numpy as np
import tensorflow as tf
from entropy_golden import FOLDER, _random

from tff_kit import encoders

SHAPE = (20, 15)
SPECS = (
    "identity",
    "tensor_encoding:5",
    "uniform:8",
    "uniform:3,nearest,16",
    "uniform:11,dithered",
    "uniform:6+rice",
    "step:0.5,stochastic+rice",
    "step:1,dithered+rice",
    "step:0.5,price=0.1,centroids=yes+rice",
    "step:1,unbiased=yes+rice",
    "rate:2+rice",
    "topk:0.1",
    "topk:0.1+uniform:6",
    "randk:0.2+uniform:5",
    "rotate:64+uniform:4",
    "eden:1,64",
    "eden:1.5,64",
    "eden:0.5,64",
    "eden:3+rice",
    "lowrank:2+uniform:8",
)
ROUNDED = ("rotate", "eden", "lowrank")
"""Stages whose last digits depend on the machine."""


def tensor() -> np.ndarray:
    """Returns numbers around 0 of which no two are alike, multiples of 1/64: float32 of SHAPE."""
    numbers = _random(4 * 300, 7).reshape(300, 4) % 1024 - 512
    return (numbers.sum(axis=1) / 64).astype(np.float32).reshape(SHAPE)


@functools.cache
def codec(spec: str) -> encoders.BroadcastCodec:
    """Returns the codec of one variable of SHAPE."""
    return encoders.BroadcastCodec([tf.TensorSpec(SHAPE)], spec, threshold=0)


def encode(spec: str) -> bytes:
    """Returns the message that holds `tensor()`."""
    return codec(spec).encode([tensor()], codec(spec).initial_state()).payload


def path(spec: str) -> pathlib.Path:
    """Returns where the message of `spec` stands."""
    return FOLDER / f"stage-{re.sub('[:+,=.]', '-', spec)}.bin"


if __name__ == "__main__":
    for name in SPECS:
        path(name).write_bytes(encode(name))
