"""What encoding and decoding take on one core inside TFF's worker.

    python -m benchmarks.encoder_time

Normal numbers in the shape of EMNIST's dense layer are encoded, and encoded and decoded, some times in a row by one
computation; time is the processor's, the difference between many times and once, the least of a few repetitions. Writes
results/encoder_time.md.
"""

from __future__ import annotations

import os
from typing import Callable

import psutil
import tensorflow as tf
import tensorflow_federated as tff
import tyro
from rich.progress import track

from benchmarks.results import machine, write_table
from tff_kit import encoders, runtime

_SHAPE = (3136, 512)
_SPECS = (
    "uniform:8",
    "eden:1",
    "rotate+uniform:8",
    "rate:0.15+entropy",
    "rotate+rate:0.15+entropy",
    "rate:0.5+entropy",
    "rate:1+entropy",
    "rate:2+entropy",
    "rate:4+entropy",
    "topk:0.01",
    "lowrank:16+step:0.5+entropy",
)


def _computation(spec: str, decodes: bool) -> Callable[[int], float]:
    """Returns a computation that encodes as often as it is told, on the worker."""
    encoder = encoders.build_broadcast_encoder_fn(spec)(tf.TensorSpec(_SHAPE, tf.float32))

    @tff.tensorflow.computation(tf.int32)
    def work(times):
        x = tf.random.stateless_normal(_SHAPE, [0, 1])
        state = encoder.initial_state()

        def once(i, total):
            encoded, _ = encoder.encode(x * (1 + 1e-6 * tf.cast(i, tf.float32)), state)
            leaves = [encoder.decode(encoded)] if decodes else tf.nest.flatten(encoded)
            return i + 1, total + sum(tf.reduce_sum(tf.cast(tf.reshape(leaf, [-1])[:1], tf.float32)) for leaf in leaves)

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
    return (least[1] - least[0]) / times / (_SHAPE[0] * _SHAPE[1]) * 1e9


def main(times: int = 10, repetitions: int = 3) -> None:
    """Measures and writes the results.

    Args:
        times: How often a tensor is encoded beyond once.
        repetitions: Of which the least counts.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # The worker inherits it.
    worker = runtime.Worker()
    lines = [
        f"`python -m benchmarks.encoder_time`, {_SHAPE[0]:,} x {_SHAPE[1]} normal numbers on one core, inside TFF's worker, "
        f"{machine()}; nanoseconds a number.",
        "",
        "| encoder | encode | decode | both |",
        "|---|---|---|---|",
    ]
    with tff.framework.get_context_stack().install(runtime.create_context(runtime.worker_executor_factory(worker))):
        for spec in track(_SPECS, "encoders"):
            works = [_computation(spec, decodes) for decodes in (False, True)]
            encode, both = (_nanoseconds(psutil.Process(worker.pid), work, times, repetitions) for work in works)
            lines.append(f"| `{spec}` | {encode:.1f} | {both - encode:.1f} | {both:.1f} |")
    worker.stop()
    write_table("encoder_time.md", lines)


if __name__ == "__main__":
    tyro.cli(main)
