"""What encoding and decoding take on one core inside TFF's worker.

    python -m benchmarks.encoder_time

As many normal numbers as EMNIST's dense layer has are encoded, and encoded and decoded, some times in a row by one
computation; time is the processor's, the difference between many times and once, the least of a few repetitions. First single
stages: rotation, and the entropy coder on normal numbers rounded to integers of so many bits; then whole encoders. Writes
results/encoders/time.csv.
"""

from __future__ import annotations

import os
from typing import Callable, NamedTuple

import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff
import tyro
from rich.progress import track
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from benchmarks import results
from tff_kit import encoders, runtime
from tff_kit.encoders.rate_control import rounded_normal

_SHAPE = (3136, 512)
_SIZE = _SHAPE[0] * _SHAPE[1]
_BITS = (0.15, 0.5, 1, 2, 3, 4)
_SPECS = (
    "uniform:8",
    "eden:1",
    "rotate+uniform:8",
    *(f"rotate+rate:{bits}+entropy" for bits in _BITS),
    "topk:0.01",
    "lowrank:16+step:0.5+entropy",
)


class _Part(NamedTuple):
    """What is timed: an encoder, and the shape of the normal numbers or, where there is a deviation, integers it is given."""

    name: str
    encoder: te.core.Encoder
    shape: tuple[int, ...]
    deviation: float = 0.0


def _computation(part: _Part, decodes: bool) -> Callable[[int], float]:
    """Returns a computation that encodes as often as it is told, on the worker."""
    _, composed, shape, deviation = part
    encoder = te.encoders.as_simple_encoder(composed, tf.TensorSpec(shape, tf.float32))

    @tff.tensorflow.computation(tf.int32)
    def work(times):
        normal = tf.random.stateless_normal(shape, [0, 1])
        state = encoder.initial_state()

        def once(i, total):
            # Another tensor each time, or TensorFlow would encode one for all.
            x = tf.roll(tf.round(normal * deviation), i, axis=0) if deviation else normal * (1 + 1e-6 * tf.cast(i, tf.float32))
            encoded, _ = encoder.encode(x, state)
            leaves = [encoder.decode(encoded)] if decodes else tf.nest.flatten(encoded)
            return i + 1, total + sum(tf.reduce_sum(tf.cast(leaf, tf.float32)) for leaf in leaves)

        return tf.while_loop(lambda i, _: i < times, once, [0, 0.0], parallel_iterations=1)[1]

    return work


def _nanoseconds(worker: psutil.Process, work: Callable[[int], float], times: int, repetitions: int) -> float:
    """Returns what a number takes."""

    def seconds(count: int) -> float:
        began = sum(worker.cpu_times()[:2])
        work(count)
        return sum(worker.cpu_times()[:2]) - began

    seconds(1)  # Builds the graph's kernels.
    least = [min(seconds(count) for _ in range(repetitions)) for count in (1, 1 + times)]
    return (least[1] - least[0]) / times / _SIZE * 1e9


def main(times: int = 10, repetitions: int = 3, quick: bool = False) -> None:
    """Measures and writes the results.

    Args:
        times: How often a tensor is encoded beyond once.
        repetitions: Of which the least counts.
        quick: Measure two parts once, into logs/results-quick/.
    """
    parts = _parts()
    if quick:
        times, repetitions, parts = 1, 1, parts[:2]
    source = results.Source(
        command="python -m benchmarks.encoder_time",
        data=f"{_SIZE:,} normal numbers, for whole encoders as {_SHAPE[0]:,} x {_SHAPE[1]}; one core, inside TFF's worker",
        seeds="one draw",
        spread=f"none: the least of {repetitions} repetitions",
    )
    results.write("encoders/time", _measure(parts, times, repetitions), source, quick)


def _parts() -> list[_Part]:
    """Returns single stages and whole encoders."""
    steps = np.geomspace(0.01, 12, 400)
    entropies, _ = rounded_normal(tuple(steps))
    parts = [_Part("rotation", te.core.EncoderComposer(encoders.RotationStage()).make(), (_SIZE,))]
    for bits in _BITS:
        step = float(np.interp(-bits, -entropies, steps))
        stage = te.core.EncoderComposer(encoders.EntropyCodingStage()).make()
        parts.append(_Part(f"entropy coding of {bits} bits", stage, (_SIZE,), 1 / step))
    return parts + [_Part(spec, encoders.Spec.parse(spec).large.make(0), _SHAPE) for spec in _SPECS]


def _measure(parts: list[_Part], times: int, repetitions: int) -> list[results.Row]:
    """Returns nanoseconds a number of each part, measured in a worker on one core."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})  # The worker inherits it.
    rows = []
    worker = runtime.Worker()
    worker.stub()  # Starts it, so that there is a process to look at.
    try:
        with tff.framework.get_context_stack().install(runtime.create_context(runtime.worker_executor_factory(worker))):
            for part in track(parts, "encoders"):
                works = [_computation(part, decodes) for decodes in (False, True)]
                encode, both = (_nanoseconds(psutil.Process(worker.pid), work, times, repetitions) for work in works)
                times_of_part = {"encode_ns": encode, "decode_ns": both - encode, "both_ns": both}
                rows.append({"part": part.name, **{name: round(value, 1) for name, value in times_of_part.items()}})
    finally:
        worker.stop()
        os.sched_setaffinity(0, processors)
    return rows


if __name__ == "__main__":
    tyro.cli(main)
