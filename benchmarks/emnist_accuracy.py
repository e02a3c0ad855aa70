"""Test accuracy against bits on handwritten digits by writer: plain, the tutorial's 8 bits, 8 bits tightly packed.

    python -m benchmarks.emnist_accuracy --data mnist-by-writer

Three seeds, two client learning rates (the tutorial's 0.02 and 0.1), 100 rounds of 10 clients. Writes
results/emnist/accuracy.csv with the mean and the spread of the seeds, accuracy_runs.csv with every run, and accuracy.png with
the curves. Finished runs are read from --logdir and not repeated, so the benchmark can be stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any, Optional

import tyro

import tff_kit
from benchmarks import results
from benchmarks.trained import final, tested, trained

NAME = "emnist/accuracy"
_SPECS = ("identity", "tensor_encoding:8", "uniform:8")
_CLIENT_LRS = (0.1, 0.02)
Curves = dict[tuple[float, str], list[list[dict[str, Any]]]]


def summary(finals: list[results.Row]) -> list[results.Row]:
    """Returns a row for each learning rate and encoder: the runs' accuracy with its spread, and their bits."""
    plain = next(run for run in finals if run["mean"] == "identity")
    rows = []
    for client_lr, spec in dict.fromkeys((run["client_lr"], run["mean"]) for run in finals):
        group = [run for run in finals if (run["client_lr"], run["mean"]) == (client_lr, spec)]
        down, up = group[0]["broadcast_bits"], group[0]["aggregate_bits"]
        rows.append(
            {
                "client_lr": client_lr,
                "encoder": spec,
                "seeds": results.in_words(run["seed"] for run in group),
                "rounds": group[0]["rounds"],
                "clients": group[0]["clients"],
                **results.spread("test_accuracy", [run["test_accuracy"] for run in group]),
                "broadcast_bits": down,
                "aggregate_bits": up,
                "fewer_bits": round((plain["broadcast_bits"] + plain["aggregate_bits"]) / (down + up), 4),
            }
        )
    return rows


def _plot(curves: Curves, title: str, file: pathlib.Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(_CLIENT_LRS), figsize=(11, 4.2), sharey=True)
    colours = dict(zip(_SPECS, ("tab:gray", "tab:blue", "tab:orange")))
    for (client_lr, spec), runs in curves.items():
        axis = axes[_CLIENT_LRS.index(client_lr)]
        for i, rows in enumerate(runs):
            gibibits = [(row["broadcast_bits"] + row["aggregate_bits"]) / 2**30 for row in tested(rows)]
            accuracy = [row["test_accuracy"] for row in tested(rows)]
            axis.plot(gibibits, accuracy, ".-", color=colours[spec], label=None if i else spec)
        axis.set(title=f"client learning rate {client_lr}", xlabel="Gibit, both ways", xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy")
    axes[0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(
    data: str = "auto", rounds: int = 100, seeds: int = 3, logdir: Optional[pathlib.Path] = None, quick: bool = False
) -> None:
    """Trains every combination and writes the results.

    Args:
        data: As in `python -m tff_kit train emnist --data`.
        rounds: Rounds of each run.
        seeds: Seeds 0, 1, ... of each combination.
        logdir: Where the runs are kept; by default a folder of this commit in logs/.
        quick: Try it on scikit-learn's digits in seconds, into logs/results-quick/.
    """
    combinations = list(itertools.product(_CLIENT_LRS, _SPECS))
    if quick:
        data, rounds, seeds, combinations = "digits", 1, 1, combinations[:2]
    base = tff_kit.Emnist(rounds=rounds, data=data)
    base = dataclasses.replace(base, filters=4, clients=2) if quick else base
    folder = logdir or results.runs_folder("emnist_accuracy", quick)
    finals: list[results.Row] = []
    curves: Curves = {}
    for seed, (client_lr, spec) in itertools.product(range(seeds), combinations):
        experiment = dataclasses.replace(base, seed=seed, client_lr=client_lr, broadcast=spec, mean=spec)
        rows = trained(experiment, folder / f"{spec.replace(':', '')}_lr{client_lr}_seed{seed}").read_metrics()
        finals.append(final(experiment, rows))
        curves.setdefault((client_lr, spec), []).append(rows)
    source = results.Source(
        command="python -m benchmarks.emnist_accuracy --data FOLDER",
        data=base.load_data().name,
        seeds=results.in_words(range(seeds)),
        spread="smallest and largest of the seeds",
    )
    _plot(curves, f"Federated averaging on {source.data}, seeds {source.seeds}", results.path(NAME, ".png", quick))
    results.write(f"{NAME}_runs", finals, source, quick)
    results.write(NAME, summary(finals), source, quick)


if __name__ == "__main__":
    tyro.cli(main)
