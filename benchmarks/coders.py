"""Bits a weight at equal error beside the best public coders, on what training sends.

    make .peers/coders/.installed
    python -m benchmarks.coders --emnist mnist-by-writer --kws FOLDER_OF_EMBEDDINGS

The update of one client after some rounds of each task, and the change of its weights since they were initialised, go through
every coder at many settings. Bits at an error are interpolated between the settings. `benchmarks/peers/public_coders.py` says
what the others are. Ours are `step` with the entropy coder, which like the others has no low rank, and `auto`. Writes
results/encoders/coders.csv and, with every setting, coders_runs.csv.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Optional

import numpy as np
import tensorflow as tf
import tyro
from rich.progress import track

import tff_kit
from benchmarks import results
from benchmarks.rate_distortion import Tensors, captured
from tff_kit import encoders
from tff_kit.encoders import measurement

NAME = "encoders/coders"
_ENVIRONMENT = results.ROOT / ".peers" / "coders" / "bin" / "python"
_ERRORS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
_TIMED_AT = 0.05
_SMALL = 4000  # Elements of a variable that is rounded to 8 bits.
_STEPS = tuple(float(f"{step:.3g}") for step in np.geomspace(0.15, 4, 9))
_STEP = "step:{},price=0.1,centroids=yes+entropy/uniform:8"
# The SPEC, and whether all variables are one vector, so that one step is that of all.
_OURS = {
    "tff_kit, step": (_STEP, False),
    "tff_kit, one step for all variables": (_STEP, True),
    "tff_kit, auto": ("auto:{},64", False),
}


def main(emnist: Optional[str] = "auto", kws: Optional[str] = "embeddings", rounds: int = 5, quick: bool = False) -> None:
    """Measures all coders on all tensors and writes the results.

    Args:
        emnist: As in `python -m tff_kit train emnist --data`; None leaves the task out.
        kws: Embeddings of 1-s windows, as in `python -m tff_kit train kws --data`; None leaves the task out.
        rounds: Rounds of training before tensors are captured.
        quick: Try three steps of ours on a small keyword head, into logs/results-quick/.
    """
    if quick:
        emnist, kws, rounds = None, "demo", 1
    if not quick and not _ENVIRONMENT.exists():
        raise SystemExit("error: Expected the public coders, found no .peers/coders. Run: make .peers/coders/.installed")
    sources: dict[str, Tensors] = {}
    if emnist is not None:
        _add(sources, "digits", tff_kit.Emnist(data=emnist, rounds=rounds, client_lr=0.1))
    if kws is not None:
        keywords = tff_kit.KeywordSpotting(data=kws, window="1s", rounds=rounds, eval_every=rounds)
        _add(sources, "keywords", dataclasses.replace(keywords, filters=16) if quick else keywords)
    runs = []
    for source, tensors in track(sources.items(), description="tensors"):
        steps = _STEPS[::5] if quick else _STEPS
        ours = [_measure(name, step, tensors) for name in _OURS for step in steps]
        runs += [{"source": source, **row} for row in [*ours, *([] if quick else _public(tensors))]]
    described = results.Source(
        command="python -m benchmarks.coders",
        data=f"one client's update after {rounds} rounds, and the change of the weights since the start",
        seeds="0",
        spread="none: one tensor each. Time is the processor's, one core's worth",
    )
    results.write(f"{NAME}_runs", runs, described, quick)
    results.write(NAME, [summary(source, coder, runs) for source, coder in _pairs(runs)], described, quick)


def _add(sources: dict[str, Tensors], task: str, experiment: tff_kit.Experiment) -> None:
    updates, change = captured(experiment)
    sources[f"{task}, update"], sources[f"{task}, change of weights"] = updates[0], change[0]


def _measure(name: str, step: float, tensors: Tensors) -> results.Row:
    """Returns bits, error and time of one of ours, by the codec of a device."""
    spec, joined = _OURS[name]
    if joined:
        tensors = [np.concatenate([x.ravel() for x in tensors])]
    codec = encoders.BroadcastCodec([tf.TensorSpec(x.shape, tf.float32) for x in tensors], spec.format(step), _SMALL)
    state = codec.initial_state()
    codec.decode(codec.encode(tensors, state).payload)  # Builds the graphs.
    began = time.process_time()
    sent = codec.encode(tensors, state)
    between = time.process_time()
    decoded = codec.decode(sent.payload)
    ended = time.process_time()
    size = sum(x.size for x in tensors)
    return {
        "coder": name,
        "setting": step,
        "payload_bits": 8 * len(sent.payload) / size,
        "nmse": measurement.nmse([tensors], [[x.numpy() for x in decoded]]),
        "encode_ns": (between - began) / size * 1e9,
        "decode_ns": (ended - between) / size * 1e9,
    }


def _public(tensors: Tensors) -> list[results.Row]:
    """Returns the same of the public coders, which have an environment of their own."""
    with tempfile.TemporaryDirectory() as name:
        source, answer = pathlib.Path(name) / "tensors.npz", pathlib.Path(name) / "answer.json"
        np.savez(source, **{f"{i:03d}": x for i, x in enumerate(tensors)})
        command = [str(_ENVIRONMENT), "-m", "benchmarks.peers.public_coders", str(source), str(answer)]
        subprocess.run(command, cwd=results.ROOT, check=True)
        return json.loads(answer.read_text())


def _pairs(runs: Sequence[results.Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((str(row["source"]), str(row["coder"])) for row in runs))


def summary(source: str, coder: str, runs: Sequence[results.Row]) -> results.Row:
    """Returns the bits a weight at each error, `None` beyond the settings; and the time at an error of 0.05."""
    of = sorted((row for row in runs if (row["source"], row["coder"]) == (source, coder)), key=lambda row: row["nmse"])
    bits = {f"bits_at_{1000 * error:g}": _at(error, of, "payload_bits") for error in _ERRORS}
    times = {name: _at(_TIMED_AT, of, name, digits=0) for name in ("encode_ns", "decode_ns")}
    return {"source": source, "coder": coder, **bits, **times, "least_bits": round(of[-1]["payload_bits"], 4)}


def _at(error: float, rows: Sequence[results.Row], column: str, digits: int = 3) -> Optional[float]:
    """Returns a column at an error, linear in its logarithm between two settings."""
    errors = [row["nmse"] for row in rows]
    if not errors[0] <= error <= errors[-1]:
        return None
    return round(float(np.interp(np.log(error), np.log(errors), [row[column] for row in rows])), digits)


if __name__ == "__main__":
    tyro.cli(main)
