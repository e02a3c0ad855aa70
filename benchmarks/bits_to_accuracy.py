"""Accuracy against bits: nothing encoded, the tutorial's encoder, and those that take the fewest bits.

    python -m benchmarks.bits_to_accuracy emnist --data mnist-by-writer
    python -m benchmarks.bits_to_accuracy kws-1s --data FOLDER_OF_EMBEDDINGS
    python -m benchmarks.bits_to_accuracy kws-30s --data FOLDER_OF_EMBEDDINGS
    python -m benchmarks.bits_to_accuracy emnist-one-setting --data mnist-by-writer
    python -m benchmarks.bits_to_accuracy kws-1s-one-setting --data FOLDER_OF_EMBEDDINGS

Handwritten digits: 100 rounds of 10 clients at client learning rate 0.1, three seeds. Keyword spotting: 10 rounds of 21
clients; four seeds of the 1-s window, three of 30 s. The encoders that choose for themselves (`--compress`) have tables of their
own, of five seeds. Bits are what crossed, everything counted, both ways together. Writes bits.csv or one_setting.csv in
results/emnist/, bits_1s.csv, bits_30s.csv or one_setting_1s.csv in results/keywords/ with the mean and the spread of the seeds, a
file with _runs in its name with every run, and a figure beside them. Finished runs are read from --logdir and not repeated, so
the benchmark can be stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
from typing import Annotated, Any, Callable, Optional

import tyro
from matplotlib import figure
from typing_extensions import Literal

import tff_kit
from benchmarks import results
from benchmarks.trained import final, tested, trained

Settings = dict[str, Any]
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
_TUTORIAL: Settings = {"broadcast": "tensor_encoding:8", "mean": "tensor_encoding:8"}
LOW_RANK: Settings = {
    "broadcast": "lowrank:32+step:0.5+entropy/uniform:8",
    "broadcast_change": True,
    "mean": "lowrank:16+step:0.5+entropy/uniform:6",
    "threshold": 4000,
}
_ROTATED_AND_LOW_RANK: Settings = {
    "broadcast": "lowrank:16,128+step:0.5+entropy/uniform:8",
    "broadcast_change": True,
    "mean": _ROTATED_UP,
    "threshold": 5000,
}
_EMNIST: dict[str, Settings] = {
    _PLAIN: {},
    "tutorial": _TUTORIAL,
    "low rank": LOW_RANK,
    "the same, with feedback": {**LOW_RANK, "broadcast_feedback": True},
    "low rank, only down": {**LOW_RANK, "mean": "identity"},
    "low rank, only up": {"mean": LOW_RANK["mean"], "threshold": LOW_RANK["threshold"]},
    "lower rank": {
        **LOW_RANK,
        "broadcast": "lowrank:24+step:0.5+entropy/uniform:8",
        "mean": "lowrank:12+step:0.5+entropy/uniform:6",
    },
    "16 filters, nothing encoded": {"filters": 16},
    "16 filters, low rank": {"filters": 16, **LOW_RANK, "threshold": 500},
}
_KWS: dict[str, Settings] = {
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
_KWS_30S: dict[str, Settings] = {
    name: _KWS[name]
    for name in (
        _PLAIN,
        "rotated up, low rank down",
        "both, coarser still",
        "16 filters, nothing encoded",
        "16 filters, rotated up, low rank down",
    )
}
_ONE_SETTING: dict[str, Settings] = {
    _PLAIN: {},
    "light": {"compress": "light"},
    "strong": {"compress": "strong"},
    "16 filters, light": {"filters": 16, "compress": "light"},
    "16 filters, strong": {"filters": 16, "compress": "strong"},
}
FEWEST_BITS: dict[str, Settings] = {"emnist": _EMNIST["low rank"], "kws": _KWS["rotated up, low rank down"]}
"""Settings that cost little accuracy, on the seed's own models, for other benchmarks."""


def finished(
    task: str, encoders: str, experiment: tff_kit.Experiment, folder: pathlib.Path
) -> tuple[results.Row, list[dict[str, Any]]]:
    """Trains what is missing of a run in `folder`. Returns what `summary` takes of it, and the rows of its tests."""
    name = f"{task}_{encoders.replace(',', '').replace(' ', '-')}_seed{experiment.seed}"
    logged = trained(experiment, folder / name).read_metrics()
    tests = tested(logged)
    last = statistics.mean(row["test_accuracy"] for row in tests[-_LAST:])
    return {"task": task, "encoders": encoders, **final(experiment, logged), "last_tests": round(last, 5)}, tests


def flags_of(settings: Settings) -> str:
    """Returns the settings as the command line takes them."""
    return " ".join(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in settings.items())


def _points(column: str, values: list[float], plain: list[float]) -> results.Row:
    """Returns the mean difference from `plain`, seed by seed, in points, and its standard error; `None` of `plain` itself."""
    if values is plain:
        return {f"{column}_points": None, f"{column}_points_se": None}
    points = [100 * (x - y) for x, y in zip(values, plain)]
    error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else 0.0
    return {f"{column}_points": round(statistics.mean(points), 5), f"{column}_points_se": round(error, 5)}


def summary(finals: list[results.Row], encoders: dict[str, Settings]) -> list[results.Row]:
    """Returns a row for each of `encoders`: accuracy with its spread, the points above the plain row, and mean bits."""
    groups = {name: [run for run in finals if run["encoders"] == name] for name in encoders}
    plain = groups[_PLAIN]
    rows = []
    for name, runs in groups.items():
        row: results.Row = {
            "encoders": name,
            "flags": flags_of(encoders[name]),
            "seeds": results.in_words(run["seed"] for run in runs),
        }
        for key, column in (("test_accuracy", "last_test"), ("last_tests", f"last_{_LAST}_tests")):
            values, base = ([run[key] for run in group] for group in (runs, plain))
            row.update(results.spread(column, values))
            row.update(_points(column, base if runs is plain else values, base))
        down, up = (statistics.mean(run[key] for run in runs) for key in ("broadcast_bits", "aggregate_bits"))
        both = statistics.mean(run["broadcast_bits"] + run["aggregate_bits"] for run in plain)
        rows.append(
            {**row, "broadcast_bits": round(down), "aggregate_bits": round(up), "fewer_bits": round(both / (down + up), 4)}
        )
    return rows


def _plot(title: str, curves: dict[str, list[list[dict[str, Any]]]], file: pathlib.Path) -> None:
    drawn = figure.Figure(figsize=(8, 5.5), layout="constrained")
    axis = drawn.subplots()
    for i, (encoders, seeds) in enumerate(curves.items()):
        for k, rows in enumerate(seeds):
            mebibytes = [(row["broadcast_bits"] + row["aggregate_bits"]) / 2**23 for row in rows]
            accuracy = [row["test_accuracy"] for row in rows]
            axis.plot(mebibytes, accuracy, ".-", color=_COLOURS[i], label=None if k else encoders)
    axis.set(xscale="log", xlabel="MiB, both ways, all clients", ylabel="test accuracy")
    axis.set_title(title.replace(", ", ",\n", 1), fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="lower right")
    drawn.savefig(file, dpi=110)


@dataclasses.dataclass(frozen=True)
class _Task:
    name: str  # Of its results.
    training: Callable[[str], tff_kit.Experiment]  # From where the data is.
    encoders: dict[str, Settings]
    seeds: int  # More where a test is on the few hundred clips of some speakers and a round takes a second.
    quick_data: str


def _digits(data: str) -> tff_kit.Experiment:
    return tff_kit.Emnist(data=data, rounds=100, client_lr=0.1)


def _keywords_1s(data: str) -> tff_kit.Experiment:
    return tff_kit.KeywordSpotting(data=data, window="1s")


_TASKS = {
    "emnist": _Task("emnist/bits", _digits, _EMNIST, 3, "digits"),
    "emnist-one-setting": _Task("emnist/one_setting", _digits, _ONE_SETTING, 5, "digits"),
    "kws-1s": _Task("keywords/bits_1s", _keywords_1s, _KWS, 4, "demo"),
    "kws-1s-one-setting": _Task("keywords/one_setting_1s", _keywords_1s, _ONE_SETTING, 5, "demo"),
    "kws-30s": _Task("keywords/bits_30s", lambda data: tff_kit.KeywordSpotting(data=data, window="30s"), _KWS_30S, 3, "demo"),
}
TASKS = tuple(_TASKS)


def main(
    task: Annotated[Literal["emnist", "emnist-one-setting", "kws-1s", "kws-1s-one-setting", "kws-30s"], tyro.conf.Positional],
    data: Optional[str] = None,
    seeds: Optional[int] = None,
    logdir: Optional[pathlib.Path] = None,
    quick: bool = False,
) -> None:
    """Trains every combination and writes the results.

    Args:
        task: What is trained.
        data: As in `python -m tff_kit train emnist --data`, or the folder of embeddings of that window.
        seeds: How many; by default as many as said above.
        logdir: Where the runs are kept; by default a folder of this commit in logs/.
        quick: Try the first two on scikit-learn's digits or synthetic embeddings, into logs/results-quick/.
    """
    described, encoders = _TASKS[task], _TASKS[task].encoders
    if data is None and not quick:
        raise SystemExit("error: Expected --data with what to train on, found none.")
    base = described.training(described.quick_data if quick else str(data))
    of_command = "" if seeds is None else f" --seeds {seeds}"
    seeds = described.seeds if seeds is None else seeds
    if quick:
        encoders = {_PLAIN: {}, "tutorial": _TUTORIAL}  # The others take long to build.
        base, seeds = dataclasses.replace(base, rounds=1, clients=2), 1
    folder = logdir or results.runs_folder("bits_to_accuracy", quick)
    finals: list[results.Row] = []
    curves: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in encoders}
    for seed, (name, settings) in itertools.product(range(seeds), encoders.items()):
        row, tests = finished(task, name, dataclasses.replace(base, **settings, seed=seed), folder)
        finals.append(row)
        curves[name].append(tests)
    title = f"{base.load_data().name}, {base.rounds} rounds of {base.clients} clients"
    source = results.Source(
        command=f"python -m benchmarks.bits_to_accuracy {task} --data FOLDER{of_command}",
        data=title,
        seeds=results.in_words(range(seeds)),
        spread="smallest and largest of the seeds; points with the standard error of the differences seed by seed",
    )
    _plot(title, curves, results.path(described.name, ".png", quick))
    results.write(f"{described.name}_runs", finals, source, quick)
    results.write(described.name, summary(finals, encoders), source, quick)


if __name__ == "__main__":
    tyro.cli(main)
