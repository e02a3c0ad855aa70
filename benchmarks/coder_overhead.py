"""How many bits more than the empirical entropy the entropy coder takes, in per cent.

    python -m benchmarks.coder_overhead

Normal numbers are rounded to multiples of a step, for each rate the step of which an integer has so many bits. The empirical
entropy is that of the integers drawn, all independent; the payload has everything that travels: header, tables, lanes. Writes
results/encoders/coder_overhead.csv.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tyro
from rich.progress import track

from benchmarks import results
from tff_kit.encoders import EntropyCodingStage
from tff_kit.encoders.rate_control import rounded_normal

_SIZES = (100_000, 1_605_632)  # The second is that of the dense layer for EMNIST.
_BITS = (0.15, 0.5, 1.0, 2.0, 4.0)
_STAGE = EntropyCodingStage()


def _empirical_bits(integers: np.ndarray) -> float:
    counts = np.unique(integers, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / integers.size)))


def main(draws: int = 3, quick: bool = False) -> None:
    """Measures and writes the results.

    Args:
        draws: Tensors of each size and rate.
        quick: Measure one draw of the smallest size, into logs/results-quick/.
    """
    sizes, draws = (_SIZES[:1], 1) if quick else (_SIZES, draws)
    steps = np.geomspace(0.01, 12, 400)
    entropies, _ = rounded_normal(tuple(steps))
    rows = []
    for size, bits in track([(size, bits) for size in sizes for bits in _BITS], "sizes and rates"):
        step = float(np.interp(-bits, -entropies, steps))
        rates, overheads = [], []
        for seed in range(draws):
            x = np.round(np.random.default_rng(seed).normal(size=size) / step).astype(np.float32)
            payload = 8 * len(_STAGE.encode(tf.constant(x), {})[_STAGE.PAYLOAD_KEY])
            entropy = _empirical_bits(x)
            rates.append(entropy / size)
            overheads.append(100 * (payload / entropy - 1))
        rows.append({"elements": size, "bits": bits, **results.spread("entropy", rates), **results.spread("overhead", overheads)})
    source = results.Source(
        command="python -m benchmarks.coder_overhead",
        data="independent normal numbers, rounded to integers",
        seeds=f"seeds {results.in_words(range(draws))}",
        spread="smallest and largest of the draws",
    )
    results.write("encoders/coder_overhead", rows, source, quick)


if __name__ == "__main__":
    tyro.cli(main)
