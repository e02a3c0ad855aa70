"""What encoding and decoding an update takes by its size, from 10^4 to 10^8 weights: time, memory and bits a weight.

    python -m benchmarks.encoder_sizes

A square matrix of rank 8 with as much noise is encoded and decoded some times by a device's codec, on one core, in a process of
its own for each size and encoder. Time is the processor's, the least of a few repetitions after one that builds the graphs.
Memory is the process's peak beyond what it has with the matrix alone. Writes results/encoders/sizes.csv.
"""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
import resource
import time

import numpy as np
import psutil
import tensorflow as tf
import tyro
from rich.progress import track

from benchmarks import results
from tff_kit import encoders

_SPECS = ("uniform:8", "step:2+entropy", "lowrank:16+step:0.5+entropy", "auto:2,64,0.04", "auto:4,32,0.4")
_SIZES = tuple(10**k for k in range(4, 9))
_RANK = 8


def _matrix(side: int) -> np.ndarray:
    """Returns a float32 matrix, half of whose squared norm is of rank 8."""
    drawn = np.random.default_rng(0)
    a, b = drawn.normal(size=[2, side, _RANK]).astype(np.float32)
    return a @ b.T / math.sqrt(_RANK) + drawn.standard_normal([side, side], np.float32)


def _measure(spec: str, size: int, repetitions: int) -> results.Row:
    """Returns a row of the results; in a process of its own, whose peak counts."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    side = math.isqrt(size)
    update = tf.constant(_matrix(side))
    before = psutil.Process().memory_info().rss
    began = time.monotonic()
    codec = encoders.MeanCodec([tf.TensorSpec(update.shape, update.dtype)], spec, threshold=0)
    params = codec.params(codec.initial_state())
    took: dict[str, list[float]] = {"encode": [], "decode": []}
    first = 0.0
    for _ in range(1 + repetitions):
        times = [time.process_time()]
        sent = codec.encode([update], 1.0, params)
        times.append(time.process_time())
        codec.decode(sent.payload)
        times.append(time.process_time())
        first = first or time.monotonic() - began
        for name, seconds in zip(took, np.diff(times)):
            took[name].append(seconds)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "encoder": spec,
        "weights": side**2,
        **{f"{name}_ns": round(min(seconds[1:]) / side**2 * 1e9, 1) for name, seconds in took.items()},
        "bits_a_weight": round(8 * len(sent.payload) / side**2, 4),
        "first_seconds": round(first, 1),
        "peak_mib": round(max(0, peak - before) / 2**20),
        "peak_of_matrix": round(max(0, peak - before) / (4 * side**2), 1),
    }


def main(repetitions: int = 3, quick: bool = False) -> None:
    """Measures and writes the results.

    Args:
        repetitions: Of which the least counts.
        quick: Measure the smallest size once, with two encoders, into logs/results-quick/.
    """
    specs, sizes, repetitions = (_SPECS[:2], _SIZES[:1], 1) if quick else (_SPECS, _SIZES, repetitions)
    rows = []
    for spec, size in track([(spec, size) for size in sizes for spec in specs], "encoders"):
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            rows.append(alone.submit(_measure, spec, size, repetitions).result())
    source = results.Source(
        command="python -m benchmarks.encoder_sizes",
        data="a square matrix of rank 8 with as much noise; one core, a device's codec",
        seeds="one draw",
        spread=f"none: the least of {repetitions} repetitions",
    )
    results.write("encoders/sizes", rows, source, quick)


if __name__ == "__main__":
    tyro.cli(main)
