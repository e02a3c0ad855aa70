"""Test accuracy against bits on handwritten digits by writer: plain, tutorial's 8 bits, 8 bits tightly packed.

    python -m benchmarks.emnist_accuracy --data FOLDER_OF_emnist_all.sqlite

Three seeds, two client learning rates (the tutorial's .02 and .1), 100 rounds of 10 clients. Writes one line a seed and
encoder into results/emnist_accuracy.csv, their mean and spread into results/emnist_accuracy.md, and the curves into
results/emnist_accuracy.png. Runs that are done already (in --logdir) are read, not repeated, so it can be stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import tyro

import tff_kit
from benchmarks.results import RESULTS, machine, spread, write_csv, write_table
from benchmarks.trained import final, trained
from tff_kit.runtime import sizing

_SPECS = ("identity", "tensor_encoding:8", "uniform:8")
_CLIENT_LRS = (0.1, 0.02)


def _summary(finals: list[dict], data: str, command: str) -> list[str]:
    lines = [
        f"`{command}`, {data}, {machine()}. Test accuracy after "
        f"{finals[0]['rounds']} rounds of {finals[0]['clients']} clients: mean of {len({f['seed'] for f in finals})} seeds, "
        "and the smallest and largest. Bits are totals over all clients and rounds.",
        "",
        "| client lr | both ways | test accuracy | broadcast | aggregated | against fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for client_lr, spec in itertools.product(_CLIENT_LRS, _SPECS):
        group = [final for final in finals if (final["client_lr"], final["mean"]) == (client_lr, spec)]
        plain = next(final for final in finals if final["mean"] == "identity")
        down, up = group[0]["broadcast_bits"], group[0]["aggregate_bits"]
        ratio = (plain["broadcast_bits"] + plain["aggregate_bits"]) / (down + up)
        lines.append(
            f"| {client_lr} | `{spec}` | {spread([final['test_accuracy'] for final in group])} "
            f"| {sizing.format_size(down)} | {sizing.format_size(up)} | {ratio:.2f}x |"
        )
    return lines


def _plot(curves: dict[tuple[float, str], list[list[dict[str, Any]]]], title: str) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(_CLIENT_LRS), figsize=(11, 4.2), sharey=True)
    for axis, client_lr in zip(axes, _CLIENT_LRS):
        for spec, colour in zip(_SPECS, ("tab:gray", "tab:blue", "tab:orange")):
            for i, rows in enumerate(curves[client_lr, spec]):
                tested = [row for row in rows if row["test_accuracy"]]
                gibibits = [(row["broadcast_bits"] + row["aggregate_bits"]) / 2**30 for row in tested]
                axis.plot(gibibits, [row["test_accuracy"] for row in tested], ".-", color=colour, label=None if i else spec)
        axis.set(title=f"client learning rate {client_lr}", xlabel="Gibit, both ways", xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy")
    axes[0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(RESULTS / "emnist_accuracy.png", dpi=110)


def main(
    data: str = "auto", rounds: int = 100, seeds: int = 3, logdir: pathlib.Path = pathlib.Path("logs/emnist_accuracy")
) -> None:
    """Trains every combination and writes the results.

    Args:
        data: As in `python -m tff_kit train emnist --data`.
        rounds: Rounds of each run.
        seeds: Seeds 0, 1, ... of each combination.
        logdir: Where the runs are kept.
    """
    finals, curves = [], {}
    for seed, client_lr, spec in itertools.product(range(seeds), _CLIENT_LRS, _SPECS):
        experiment = tff_kit.Emnist(rounds=rounds, seed=seed, client_lr=client_lr, broadcast=spec, mean=spec, data=data)
        rows = trained(experiment, logdir / f"{spec.replace(':', '')}_lr{client_lr}_seed{seed}").read_metrics()
        finals.append(final(experiment, rows))
        curves.setdefault((client_lr, spec), []).append(rows)
    name = dataclasses.replace(experiment).load_data().name
    write_csv("emnist_accuracy.csv", finals)
    summary = _summary(finals, name, "python -m benchmarks.emnist_accuracy --data FOLDER")
    _plot(curves, f"Federated averaging on {name}, {seeds} seeds")
    write_table("emnist_accuracy.md", summary)


if __name__ == "__main__":
    tyro.cli(main)
