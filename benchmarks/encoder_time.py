"""What encoding and decoding take on one core inside TFF's worker.

    python -m benchmarks.encoder_time

As many normal numbers as EMNIST's dense layer has are encoded, and encoded and decoded, some times in a row by one
computation; time is the processor's, the difference between many times and once, the least of a few repetitions. First single
stages: rotation, and the entropy coder on normal numbers rounded to integers of so many bits; then whole encoders. Writes
results/encoder_time.md.
"""

from __future__ import annotations

import os
from typing import Callable

import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff
import tyro
from rich.progress import track
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from benchmarks.results import machine, write_table
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


def _computation(stage: te.core.Encoder, shape: tuple[int, ...], deviation: float, decodes: bool) -> Callable[[int], float]:
    """Returns a computation that encodes as often as it is told, on the worker; integers where there is a deviation."""
    encoder = te.encoders.as_simple_encoder(stage, tf.TensorSpec(shape, tf.float32))

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


def main(times: int = 10, repetitions: int = 3) -> None:
    """Measures and writes the results.

    Args:
        times: How often a tensor is encoded beyond once.
        repetitions: Of which the least counts.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # The worker inherits it.
    worker = runtime.Worker()
    worker.stub()  # Starts it, so that there is a process to look at.
    steps = np.geomspace(0.01, 12, 400)
    entropies, _ = rounded_normal(tuple(steps))
    rows = [("rotation", encoders.RotationStage(), (_SIZE,), 0.0)]
    for bits in _BITS:
        step = float(np.interp(-bits, -entropies, steps))
        rows.append((f"entropy coding of {bits} bits", encoders.EntropyCodingStage(), (_SIZE,), 1 / step))
    made = [(name, te.core.EncoderComposer(stage).make(), *more) for name, stage, *more in rows]
    made += [(f"`{spec}`", encoders.Spec.parse(spec).large.make(0), _SHAPE, 0.0) for spec in _SPECS]
    lines = [
        f"`python -m benchmarks.encoder_time`, {_SIZE:,} normal numbers on one core, inside TFF's worker, "
        f"{machine()}; nanoseconds a number. Encoders are given a matrix of {_SHAPE[0]:,} x {_SHAPE[1]}.",
        "",
        "| stage or encoder | encode | decode | both |",
        "|---|---|---|---|",
    ]
    with tff.framework.get_context_stack().install(runtime.create_context(runtime.worker_executor_factory(worker))):
        for name, *row in track(made, "encoders"):
            works = [_computation(*row, decodes) for decodes in (False, True)]
            encode, both = (_nanoseconds(psutil.Process(worker.pid), work, times, repetitions) for work in works)
            lines.append(f"| {name} | {encode:.1f} | {both - encode:.1f} | {both:.1f} |")
    worker.stop()
    write_table("encoder_time.md", lines)


if __name__ == "__main__":
    tyro.cli(main)
