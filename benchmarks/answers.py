"""What a client's Python makes of the same update, payload and model; `benchmarks.machines` runs it in several and compares.

    PYTHON -m benchmarks.answers FOLDER NAME

Writes FOLDER/NAME.npz. The first one also leaves what the others decode and train.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from tff_kit.deploy import messages
from tff_kit.deploy.aggregation import Averaging
from tff_kit.deploy.node import Node
from tff_kit.encoders import MeanCodec
from tff_kit.tasks.emnist import Emnist

SPECS = (
    "identity",
    "uniform:8,nearest",
    "uniform:8",
    "rotate+uniform:8",
    "eden:2",
    "uniform:4+rice",
    "lowrank:16+step:0.5+entropy/uniform:6",
)
_SHAPES = ((512, 128), (128,), (128, 10))
_CLIENT = "form00"
_TASK = Emnist(data="digits", filters=8)
_REFERENCE = "reference.npz"


def answer(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns by name what this Python makes of the reference in `folder`, which is made if it is not there yet."""
    values = _update()
    found: dict[str, np.ndarray] = {}
    reference = folder / _REFERENCE
    given = dict(np.load(reference)) if reference.exists() else {}
    for spec in SPECS:
        codec = MeanCodec([tf.TensorSpec(shape, tf.float32) for shape in _SHAPES], spec, threshold=1000)
        state = codec.initial_state()
        params = codec.params(state)
        payload = codec.encode(values, 1.0, params).payload
        found[f"payload {spec}"] = _as_array(payload)
        given.setdefault(f"payload {spec}", found[f"payload {spec}"])
        found[f"params {spec}"] = _as_array(params)
        for name, of in (("own", payload), ("decoded", given[f"payload {spec}"].tobytes())):
            total = codec.merge(codec.zero(), codec.decode(of))
            found[f"{name} {spec}"] = np.concatenate([np.ravel(x) for x in codec.finish(state, params, total, 1.0)[1]])
    found["trained"], model = _trained(given.get("model"))
    given.setdefault("model", model)
    if not reference.exists():
        np.savez(reference, **given)
    return found


def _trained(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the update of a client that received `model`, or a new one, and that model as bytes."""
    averaging, node = Averaging(_TASK), Node(Emnist, "digits", _CLIENT)
    sent = averaging.send(averaging.initial_state())
    model = _as_array(sent.model) if model is None else model
    key = averaging.settings.key
    train = messages.Train(key, 1, 7, sent.numbers, sent.params, model.tobytes())
    hello, trained = (messages.unpack(node.answer(data)) for data in (averaging.settings.pack(), train.pack()))
    if not (isinstance(hello, messages.Hello) and isinstance(trained, messages.Trained)):
        raise SystemExit(f"error: Expected a client's update, found {hello} and {trained}.")
    received = averaging.read(trained)
    _, update, _ = averaging._mean.finish(averaging.initial_state().mean, sent.params, received.part, 1.0)
    return np.concatenate([np.ravel(x) for x in update]) / received.weight, model


def _update() -> list[np.ndarray]:
    draws = np.random.RandomState(0)  # The same in every NumPy.
    return [draws.standard_t(4, shape).astype(np.float32) for shape in _SHAPES]


def _as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


if __name__ == "__main__":
    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    np.savez(folder / f"{name}.npz", version=tf.__version__, **answer(folder))
