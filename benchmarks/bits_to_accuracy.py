"""Accuracy against bits of both tasks: nothing encoded, the tutorial's encoder, and those that take the fewest bits.

    python -m benchmarks.bits_to_accuracy --emnist FOLDER_OF_emnist_all.sqlite --kws FOLDER_OF_EMBEDDINGS

Handwritten digits: 100 rounds of 10 clients at client learning rate .1, three seeds. Keyword spotting: the 1-s window, 10
rounds of 21 clients, six seeds. Bits are what crossed, everything counted, both ways together. Writes
results/bits_to_accuracy.{csv,md,png}. Runs that are done already (in --logdir) are read, not repeated, so it can be stopped.
"""

from __future__ import annotations

import pathlib
import statistics
from typing import Any, Optional

import tyro
from matplotlib import figure

import tff_kit
from benchmarks.results import RESULTS, machine, spread, write_csv, write_table
from benchmarks.trained import final, trained
from tff_kit import sizing

_PLAIN = "nothing encoded"
_COLOURS = ["black", *(f"C{i}" for i in range(10))]
_LAST = 5  # Tests of single rounds scatter more than what is to be seen,
_SEEDS = {"emnist": 3, "kws": 6}  # and a test on the few hundred clips of some speakers more than one on digits.

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


def _plot(curves: dict[str, dict[str, list[list[tuple[int, float]]]]]) -> None:
    drawn = figure.Figure(figsize=(13, 5.5), layout="constrained")
    for axis, (title, of_name) in zip(drawn.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        for i, (name, seeds) in enumerate(of_name.items()):
            for k, points in enumerate(seeds):
                mebibytes = [bits / 2**23 for bits, _ in points]
                axis.plot(mebibytes, [accuracy for _, accuracy in points], ".-", color=_COLOURS[i], label=None if k else name)
        axis.set(xscale="log", xlabel="MiB, both ways, all clients", ylabel="test accuracy")
        axis.set_title(title.replace(", ", ",\n", 1), fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="lower right")
    drawn.savefig(RESULTS / "bits_to_accuracy.png", dpi=110)


def main(
    emnist: Optional[str] = None,
    kws: Optional[str] = None,
    logdir: pathlib.Path = pathlib.Path("logs/bits_to_accuracy"),
) -> None:
    """Trains every combination and writes the results.

    Args:
        emnist: As in `python -m tff_kit train emnist --data`; without it, digits are left out.
        kws: Folder of embeddings of the 1-s window; without it, keyword spotting is left out.
        logdir: Where the runs are kept.
    """
    tasks: dict[str, tuple[tff_kit.Experiment, dict[str, dict]]] = {}
    if emnist:
        tasks["emnist"] = (tff_kit.Emnist(data=emnist, rounds=100, client_lr=0.1), _EMNIST)
    if kws:
        tasks["kws"] = (tff_kit.KeywordSpotting(data=kws, window="1s"), _KWS)
    rows, curves, lines = [], {}, []
    for task, (base, encoders) in tasks.items():
        finals: dict[str, list[dict[str, Any]]] = {name: [] for name in encoders}
        points: dict[str, list[list[tuple[int, float]]]] = {name: [] for name in encoders}
        for seed in range(_SEEDS[task]):
            for name, settings in encoders.items():
                experiment = type(base)(**{**vars(base), **settings, "seed": seed})
                run = trained(experiment, logdir / f"{task}_{name.replace(',', '').replace(' ', '-')}_seed{seed}")
                logged = run.read_metrics()
                tested = _tested(logged)
                last = statistics.mean(accuracy for _, accuracy in tested[-_LAST:])
                row = {"task": task, "encoders": name, **final(experiment, logged), "last_tests": round(last, 5)}
                finals[name].append(row)
                points[name].append(tested)
                rows.append(row)
        title = f"{base.load_data().name}, {base.rounds} rounds of {base.clients} clients"
        curves[title] = points
        lines += _table(title, finals)
        lines += [f"* {name}: {_flags(settings)}".rstrip() for name, settings in encoders.items()]
        lines.append("")
    write_csv("bits_to_accuracy.csv", rows)
    command = " ".join(["python -m benchmarks.bits_to_accuracy", *(f"--{task} FOLDER" for task in tasks)])
    heading = (
        f"`{command}`; {machine()}. Accuracy is the mean of seeds "
        "with smallest and largest, and beside it how many points it lies above the first line's, seed by seed, with the "
        "standard error. Bits are totals over clients and rounds, everything counted."
    )
    _plot(curves)
    write_table("bits_to_accuracy.md", [heading, "", *lines])


if __name__ == "__main__":
    tyro.cli(main)
