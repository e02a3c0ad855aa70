"""Accuracy against bits: nothing encoded, the tutorial's encoder, and those that take the fewest bits.

    python -m benchmarks.bits_to_accuracy emnist --data FOLDER_OF_emnist_all.sqlite
    python -m benchmarks.bits_to_accuracy kws-1s --data FOLDER_OF_EMBEDDINGS
    python -m benchmarks.bits_to_accuracy kws-30s --data FOLDER_OF_EMBEDDINGS

Handwritten digits: 100 rounds of 10 clients at client learning rate .1, three seeds. Keyword spotting: 10 rounds of 21
clients; four seeds of the 1-s window, three of 30 s. Bits are what crossed, everything counted, both ways together. Writes
results/bits_to_accuracy_TASK.{csv,md,png}. Runs that are done already (in --logdir) are read, not repeated, so it can be stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
from typing import Annotated, Any, Callable

import tyro
from matplotlib import figure
from typing_extensions import Literal

import tff_kit
from benchmarks.results import RESULTS, machine, spread, write_csv, write_table
from benchmarks.trained import final, trained
from tff_kit.runtime import sizing

_PLAIN = "nothing encoded"
_COLOURS = ["black", *(f"C{i}" for i in range(10))]
_LAST = 5  # Tests of single rounds scatter more than what is to be seen.

# What each part gives. Of a digit's client, with four steps of training, rank 16 holds nearly all of an update; of a keyword's
# client, which takes ten steps of Adam, the update has no low rank, and is rotated and coarsely rounded instead. The change
# since the initial weights is of low rank in both. The keyword head's kernels have one row a filter. Small variables are
# large beside such messages, so they are rounded too.
_DITHERED_UP = "step:3,dithered+entropy/uniform:8"  # Nearest levels would leave nearly nothing of an update of Adam's.
_ROTATED_UP = "rotate+step:2.5,price=0.05,unbiased=yes+entropy/uniform:8"
_COARSE_UP = "rotate+step:3,price=0.1,unbiased=yes+entropy/uniform:8"
_TUTORIAL = {"broadcast": "tensor_encoding:8", "mean": "tensor_encoding:8"}
_LOW_RANK = {
    "broadcast": "lowrank:32+step:0.5+entropy/uniform:8",
    "broadcast_change": True,
    "mean": "lowrank:16+step:0.5+entropy/uniform:6",
    "threshold": 4000,
}
_ROTATED_AND_LOW_RANK = {
    "broadcast": "lowrank:16,128+step:0.5+entropy/uniform:8",
    "broadcast_change": True,
    "mean": _ROTATED_UP,
    "threshold": 5000,
}
_EMNIST = {
    _PLAIN: {},
    "tutorial": _TUTORIAL,
    "low rank": _LOW_RANK,
    "the same, with feedback": {**_LOW_RANK, "broadcast_feedback": True},
    "low rank, only down": {**_LOW_RANK, "mean": "identity"},
    "low rank, only up": {"mean": _LOW_RANK["mean"], "threshold": _LOW_RANK["threshold"]},
    "lower rank": {
        **_LOW_RANK,
        "broadcast": "lowrank:24+step:0.5+entropy/uniform:8",
        "mean": "lowrank:12+step:0.5+entropy/uniform:6",
    },
    "16 filters, nothing encoded": {"filters": 16},
    "16 filters, low rank": {"filters": 16, **_LOW_RANK, "threshold": 500},
}
_KWS = {
    _PLAIN: {},
    "tutorial": _TUTORIAL,
    "steps, change down": {
        "broadcast": "step:2+entropy/uniform:8",
        "broadcast_change": True,
        "broadcast_feedback": True,
        "mean": _DITHERED_UP,
        "threshold": 5000,
    },
    "rotated up, low rank down": _ROTATED_AND_LOW_RANK,
    "the same, with feedback": {**_ROTATED_AND_LOW_RANK, "broadcast_feedback": True},
    "both, coarser": {
        **_ROTATED_AND_LOW_RANK,
        "broadcast": "lowrank:10,128+step:0.5+entropy/uniform:8",
        "mean": "rotate+step:2.75,price=0.08,unbiased=yes+entropy/uniform:8",
    },
    "both, coarser still": {
        **_ROTATED_AND_LOW_RANK,
        "broadcast": "lowrank:8,128+step:0.5+entropy/uniform:8",
        "mean": _COARSE_UP,
    },
    "16 filters, nothing encoded": {"filters": 16},
    "16 filters, rotated up, low rank down": {
        "filters": 16,
        **_ROTATED_AND_LOW_RANK,
        "broadcast": "lowrank:8,16+step:0.5+entropy/uniform:8",
        "threshold": 500,
    },
    "16 filters, coarser": {
        "filters": 16,
        **_ROTATED_AND_LOW_RANK,
        "broadcast": "lowrank:4,16+step:0.5+entropy/uniform:8",
        "mean": _COARSE_UP,
        "threshold": 500,
    },
    "16 filters, coarser still": {
        "filters": 16,
        **_ROTATED_AND_LOW_RANK,
        "broadcast": "lowrank:2,16+step:0.5+entropy/uniform:6",
        "mean": "rotate+step:3,price=0.12,unbiased=yes+entropy/uniform:6",
        "threshold": 500,
    },
}
_KWS_30S = {
    name: _KWS[name]
    for name in (
        _PLAIN,
        "rotated up, low rank down",
        "both, coarser still",
        "16 filters, nothing encoded",
        "16 filters, rotated up, low rank down",
    )
}
FEWEST_BITS = {"emnist": _EMNIST["low rank"], "kws": _KWS["rotated up, low rank down"]}
"""Settings that cost little accuracy, on the seed's own models, for other benchmarks."""


def _tested(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Returns bits both ways and test accuracy after each round that was tested."""
    return [(row["broadcast_bits"] + row["aggregate_bits"], row["test_accuracy"]) for row in rows if row["test_accuracy"]]


def _flags(settings: dict[str, Any]) -> str:
    """Returns the settings as the command line takes them."""
    return " ".join(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in settings.items())


def _change(values: list[float], plain: list[float]) -> str:
    """Returns the mean difference from `plain`, seed by seed, in points, with its standard error."""
    points = [100 * (x - y) for x, y in zip(values, plain)]
    return f"{statistics.mean(points):+.2f} ± {statistics.stdev(points) / len(points) ** 0.5:.2f}"


def _table(title: str, finals: dict[str, list[dict[str, Any]]]) -> list[str]:
    plain = finals[_PLAIN]
    lines = [
        f"{title}, seeds 0 to {len(plain) - 1}:",
        "",
        f"| encoders | last test | points | last {_LAST} tests | points | broadcast | aggregated | against fp32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in finals.items():
        accuracy = []
        for key in ("test_accuracy", "last_tests"):
            values = [row[key] for row in rows]
            accuracy += [spread(values), "" if rows is plain else _change(values, [row[key] for row in plain])]
        down, up = (statistics.mean(row[key] for row in rows) for key in ("broadcast_bits", "aggregate_bits"))
        ratio = statistics.mean(row["broadcast_bits"] + row["aggregate_bits"] for row in plain) / (down + up)
        bits = [sizing.format_size(int(down)), sizing.format_size(int(up)), f"{ratio:.1f}x"]
        lines.append("| " + " | ".join([name, *accuracy, *bits]) + " |")
    return [*lines, ""]


def _plot(title: str, curves: dict[str, list[list[tuple[int, float]]]], name: str) -> None:
    drawn = figure.Figure(figsize=(8, 5.5), layout="constrained")
    axis = drawn.subplots()
    for i, (encoders, seeds) in enumerate(curves.items()):
        for k, points in enumerate(seeds):
            mebibytes = [bits / 2**23 for bits, _ in points]
            axis.plot(mebibytes, [accuracy for _, accuracy in points], ".-", color=_COLOURS[i], label=None if k else encoders)
    axis.set(xscale="log", xlabel="MiB, both ways, all clients", ylabel="test accuracy")
    axis.set_title(title.replace(", ", ",\n", 1), fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="lower right")
    drawn.savefig(RESULTS / name, dpi=110)


@dataclasses.dataclass(frozen=True)
class _Task:
    training: Callable[[str], tff_kit.Experiment]  # From where the data is.
    encoders: dict[str, dict[str, Any]]
    seeds: int  # More where a test is on the few hundred clips of some speakers and a round takes a second.


_TASKS = {
    "emnist": _Task(lambda data: tff_kit.Emnist(data=data, rounds=100, client_lr=0.1), _EMNIST, seeds=3),
    "kws-1s": _Task(lambda data: tff_kit.KeywordSpotting(data=data, window="1s"), _KWS, seeds=4),
    "kws-30s": _Task(lambda data: tff_kit.KeywordSpotting(data=data, window="30s"), _KWS_30S, seeds=3),
}


def main(
    task: Annotated[Literal["emnist", "kws-1s", "kws-30s"], tyro.conf.Positional],
    data: str,
    logdir: pathlib.Path = pathlib.Path("logs/bits_to_accuracy"),
) -> None:
    """Trains every combination and writes the results.

    Args:
        task: What is trained.
        data: As in `python -m tff_kit train emnist --data`, or the folder of embeddings of that window.
        logdir: Where the runs are kept.
    """
    base, encoders = _TASKS[task].training(data), _TASKS[task].encoders
    finals: dict[str, list[dict[str, Any]]] = {name: [] for name in encoders}
    curves: dict[str, list[list[tuple[int, float]]]] = {name: [] for name in encoders}
    for seed, (name, settings) in itertools.product(range(_TASKS[task].seeds), encoders.items()):
        experiment = type(base)(**{**vars(base), **settings, "seed": seed})
        run = trained(experiment, logdir / f"{task}_{name.replace(',', '').replace(' ', '-')}_seed{seed}")
        logged = run.read_metrics()
        tested = _tested(logged)
        last = statistics.mean(accuracy for _, accuracy in tested[-_LAST:])
        finals[name].append({"task": task, "encoders": name, **final(experiment, logged), "last_tests": round(last, 5)})
        curves[name].append(tested)
    title = f"{base.load_data().name}, {base.rounds} rounds of {base.clients} clients"
    write_csv(f"bits_to_accuracy_{task}.csv", [row for rows in zip(*finals.values()) for row in rows])
    heading = (
        f"`python -m benchmarks.bits_to_accuracy {task} --data FOLDER`; {machine()}. Accuracy is the mean of seeds "
        "with smallest and largest, and beside it how many points it lies above the first line's, seed by seed, with the "
        "standard error. Bits are totals over clients and rounds, everything counted."
    )
    _plot(title, curves, f"bits_to_accuracy_{task}.png")
    flags = [f"* {name}: {_flags(settings)}".rstrip() for name, settings in encoders.items()]
    write_table(f"bits_to_accuracy_{task}.md", [heading, "", *_table(title, finals), *flags])


if __name__ == "__main__":
    tyro.cli(main)
