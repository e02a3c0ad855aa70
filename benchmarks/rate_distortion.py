"""Bits against error of every encoder, on random numbers and on what training sends, beside what theory allows.

    python -m benchmarks.rate_distortion --emnist FOLDER_OF_emnist_all.sqlite --kws STORE

Sources are normal and Laplace numbers of 21 clients with a cosine of 0.9 between them, the updates of 21 clients after some
rounds of training each task, and the change of its weights since they were initialised. Given for each encoder: the bits a
weight of the payload, everything included, what a formula says they are, and what they would be if integers took their
empirical entropy; the squared error of one client's tensor over its squared norm, and that of the mean of 10 and of 21
clients over the mean of their squared norms; nanoseconds a weight to encode and to decode. Writes
results/encoders/rate_distortion.csv and rate_distortion.png.
"""

from __future__ import annotations

import math
import pathlib
import statistics
import tempfile
from typing import Callable, Optional

import numpy as np
import tensorflow as tf
import tyro
from rich.progress import track
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

import tff_kit
from benchmarks import results
from tff_kit import encoders
from tff_kit.encoders import measurement

NAME = "encoders/rate_distortion"
_CLIENTS = (1, 10, 21)
_BLOCK = 4096
Tensors = list[np.ndarray]  # One a variable.


def _bytes(numbers: int, bits: int) -> int:
    return 8 * math.ceil(numbers * bits / 8)


def _blocks(n: int) -> int:
    return math.ceil(n / _BLOCK)


def _share(n: int, share: float) -> int:
    """Returns how many of n numbers are in the first `share` of each block, or of the last, shorter one."""
    fine = math.ceil(_BLOCK * share)
    return n // _BLOCK * fine + min(n % _BLOCK, fine)


def _uniform_8_bits(n: int) -> int:
    return _bytes(n, 8) + 64


# What a payload of n numbers of a large variable has to be, where the numbers don't matter. Tutorials leave small variables
# as they are; of a payload of a bit a weight they would be a third.
_SPECS: dict[str, Optional[Callable[[int], int]]] = {
    "tensor_encoding:8": lambda n: 32 * math.ceil(8 * n / 28) + 64,
    "uniform:8": _uniform_8_bits,
    "uniform:4/uniform:8": lambda n: _bytes(n, 4) + 64,
    "uniform:4,dithered/uniform:8": lambda n: _bytes(n, 4) + 64 + 64,
    "uniform:4,dithered,4096/uniform:8": lambda n: _bytes(n, 4) + 64 * _blocks(n) + 64,
    "rotate+uniform:2,dithered/uniform:8": lambda n: _bytes(n, 2) + 64 + 64 + 64,
    "rotate+uniform:4,dithered/uniform:8": lambda n: _bytes(n, 4) + 64 + 64 + 64,
    "eden:0.1/uniform:8": lambda n: _bytes(_share(n, 0.1), 1) + 32 * _blocks(n) + 64,
    "eden:0.5/uniform:8": lambda n: _bytes(_share(n, 0.5), 1) + 32 * _blocks(n) + 64,
    "eden:1/uniform:8": lambda n: _bytes(n, 1) + 32 * _blocks(n) + 64,
    "eden:2/uniform:8": lambda n: _bytes(n, 2) + 32 * _blocks(n) + 64,
    "eden:4/uniform:8": lambda n: _bytes(n, 4) + 32 * _blocks(n) + 64,
    "eden:1,unbiased=no/uniform:8": lambda n: _bytes(n, 1) + 32 * _blocks(n) + 64,
    "topk:0.01/uniform:8": None,
    "topk:0.1+uniform:4/uniform:8": None,
    "randk:0.1/uniform:8": lambda n: 32 * round(0.1 * n) + 64,
    "step:6,dithered+entropy/uniform:8": None,
    "step:3,dithered+entropy/uniform:8": None,
    "step:1,dithered+entropy/uniform:8": None,
    "step:0.3,dithered+entropy/uniform:8": None,
    "rotate+step:3,dithered+entropy/uniform:8": None,
    "step:3,price=0.1,centroids=yes+entropy/uniform:8": None,
    "step:2,price=0.1,centroids=yes+entropy/uniform:8": None,
    "step:1,price=0.1,centroids=yes+entropy/uniform:8": None,
    "step:0.3,price=0.1,centroids=yes+entropy/uniform:8": None,
    "rotate+step:3,price=0.1,unbiased=yes+entropy/uniform:8": None,
    "rotate+step:2.5,price=0.05,unbiased=yes+entropy/uniform:8": None,
    "lowrank:8+step:0.5+entropy/uniform:8": None,
    "lowrank:16+step:0.5+entropy/uniform:8": None,
    "lowrank:32+step:0.4+entropy/uniform:8": None,
}


def _random(draw: Callable, size: int) -> list[Tensors]:
    """Returns tensors of `max(_CLIENTS)` clients with a cosine of 0.9 between them."""
    common, *own = (draw(size=size) for _ in range(1 + max(_CLIENTS)))
    return [[(math.sqrt(0.9) * common + math.sqrt(0.1) * x).astype(np.float32)] for x in own]


def captured(experiment: tff_kit.Experiment) -> tuple[list[Tensors], list[Tensors]]:
    """Trains; returns the updates of clients that start from there, and as only element the change of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        run = tff_kit.train(experiment, folder, overwrite=True)
        trained = run.load_model().trainable_weights
        updates = tff_kit.client_updates(experiment, run, max(_CLIENTS))
    initial = experiment.build_model().trainable_weights
    return updates, [[(after - before).numpy() for after, before in zip(trained, initial)]]


def _entropy_bits(spec: str, tensors: Tensors) -> Optional[float]:
    """Returns the bits of the payload if all integers took their empirical entropy; None where there are none."""
    total, integers_seen = 0.0, False

    def visit(encoder: te.core.Encoder, x: tf.Tensor) -> None:
        nonlocal total, integers_seen
        encoded = encoder.stage.encode(x, encoder.stage.get_params(encoder.stage.initial_state())[0])[0]
        for key, tensor in encoded.items():
            child = encoder.children.get(key)
            if child is None:
                total += int(encoders.payload_bits(tensor))
            elif child.stage.compressible_tensors_keys:
                visit(child, tensor)
            else:  # A coder, the last of its chain.
                shares = np.unique(tensor, return_counts=True)[1] / max(np.size(tensor), 1)
                total -= np.size(tensor) * float(np.sum(shares * np.log2(shares)))
                integers_seen = True

    large, small = (chain.make(0) for chain in (encoders.Spec.parse(spec).large, encoders.Spec.parse(spec).small))
    for x in tensors:
        visit(large if x.size > encoders.THRESHOLD else small, tf.constant(x))
    return total if integers_seen else None


def _measure(source: str, clients: list[Tensors], spec: str) -> results.Row:
    size = sum(x.size for x in clients[0])
    measurement.send(spec, clients[0])  # Traces the graphs.
    sent = [measurement.send(spec, tensors) for tensors in clients]
    sent += [measurement.send(spec, clients[0]) for _ in range(4 - len(clients))]
    large, small = _SPECS[spec], _uniform_8_bits if "/" in spec else lambda n: 32 * n
    row: results.Row = {"source": source, "encoder": spec, "weights": size}
    row["payload_bits"] = round(statistics.mean(run.bits for run in sent) / size, 5)
    bits = [(large if x.size > encoders.THRESHOLD else small)(x.size) for x in clients[0]] if large else []
    row["formula_bits"] = round(sum(bits) / size, 5) if bits else None
    entropy = _entropy_bits(spec, clients[0])
    row["entropy_bits"] = None if entropy is None else round(entropy / size, 5)
    for count in _CLIENTS:
        enough = count <= len(clients)
        error = measurement.nmse(clients[:count], [run.decoded for run in sent[:count]]) if enough else None
        row[f"nmse_{count}"] = None if error is None else float(f"{error:.4g}")
    row["encode_ns"] = round(min(run.encode_seconds for run in sent) / size * 1e9, 1)
    row["decode_ns"] = round(min(run.decode_seconds for run in sent) / size * 1e9, 1)
    row["shannon"] = float(f"{measurement.shannon(row['payload_bits']):.4g}")
    return row


def _plot(rows: list[results.Row], file: pathlib.Path) -> None:
    from matplotlib import pyplot as plt

    sources = list(dict.fromkeys(row["source"] for row in rows))
    figure, axes = plt.subplots(2, -(-len(sources) // 2), figsize=(15, 9), sharex=True, sharey=True, squeeze=False)
    bits = np.geomspace(0.05, 10, 100)
    families = sorted({row["encoder"].partition(":")[0] for row in rows})
    for axis, source in zip(axes.flat, sources):
        axis.plot(bits, measurement.shannon(bits), "k-", label="Shannon, normal")
        axis.plot(bits, measurement.shannon_unbiased(bits), "k--", label="Shannon, unbiased")
        axis.plot(*measurement.entropy_coded_uniform(), "-", color="tab:gray", label="entropy-coded uniform, normal")
        axis.plot(*measurement.fixed_length(), ".:", color="tab:gray", label="Lloyd-Max, normal")
        for i, family in enumerate(families):
            group = [row for row in rows if row["source"] == source and row["encoder"].partition(":")[0] == family]
            colour = f"C{i}"
            axis.plot([r["payload_bits"] for r in group], [r["nmse_1"] for r in group], "o", color=colour, label=family)
            ideal = [row for row in group if row["entropy_bits"] is not None]
            axis.plot([r["entropy_bits"] for r in ideal], [r["nmse_1"] for r in ideal], "x", color=colour)
        axis.set(title=source, xscale="log", yscale="log", xlim=(0.04, 12), ylim=(1e-5, 200))
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("bits a weight: payload (dots), with ideal codes (crosses)")
    for axis in axes[:, 0]:
        axis.set_ylabel("normalised squared error of one client")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(
    emnist: Optional[str] = "auto",
    kws: Optional[str] = "embeddings",
    rounds: int = 5,
    size: int = 2**20,
    only: str = "",
    quick: bool = False,
) -> None:
    """Measures every encoder on every source and writes the results.

    Args:
        emnist: As in `python -m tff_kit train emnist --data`; None leaves the task out.
        kws: Embeddings of 1-s windows, as in `python -m tff_kit train kws --data`; None leaves the task out.
        rounds: Rounds of training before updates are captured.
        size: Random numbers a client.
        only: Encoders with this in their names; by default all.
        quick: Try two encoders on few random numbers and on updates of a small keyword head, into logs/results-quick/.
    """
    specs = [spec for spec in _SPECS if only in spec]
    if quick:
        emnist, kws, rounds, size, specs = None, "demo", 1, 2**13, ["uniform:8", "step:3,dithered+entropy/uniform:8"]
    generator = np.random.default_rng(0)
    sources = {"normal": _random(generator.normal, size), "Laplace": _random(generator.laplace, size)}
    if emnist is not None:
        experiment: tff_kit.Experiment = tff_kit.Emnist(data=emnist, rounds=rounds, client_lr=0.1)  # That of the paper.
        sources["EMNIST, updates"], sources["EMNIST, change of weights"] = captured(experiment)
    if kws is not None:
        experiment = tff_kit.KeywordSpotting(
            data=kws, window="1s", rounds=rounds, eval_every=rounds, filters=16 if quick else 128
        )
        sources["keywords, updates"], sources["keywords, change of weights"] = captured(experiment)
    rows = []
    for source, clients in sources.items():
        rows += [_measure(source, clients, spec) for spec in track(specs, description=source)]
    _plot(rows, results.path(NAME, ".png", quick))
    described = results.Source(
        command="python -m benchmarks.rate_distortion",
        data=f"{size:,} random numbers a client, or what training sends after {rounds} rounds, of up to {max(_CLIENTS)} clients; "
        f"behind a slash the encoder of variables of up to {encoders.THRESHOLD:,} weights, which else travel as they are",
        seeds="0",
        spread="none: bits are means over the clients, times the least of their encodings",
    )
    results.write(NAME, rows, described, quick)


if __name__ == "__main__":
    tyro.cli(main)
