"""Accuracy on speakers never trained on: the keyword head without federation, and by federated averaging with each encoder.

    python -m benchmarks.kws_accuracy --data-30s FOLDER_OF_EMBEDDINGS --data-1s FOLDER_OF_EMBEDDINGS

Three seeds of training on one split of the speakers; both windows; ten rounds of 21 clients, one local epoch. Writes
results/kws_accuracy.{csv,md,png}. Runs that are done already (in --logdir) are read, not repeated, so it can be stopped.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import statistics
from typing import Any

import tyro
from matplotlib import figure

import tff_kit
from benchmarks.results import RESULTS, machine, spread, write_csv, write_table
from benchmarks.trained import final, trained
from tff_kit import sizing
from tff_kit.datasets.embeddings import EmbeddingDataset

_FEDERATED: dict[str, dict[str, Any]] = {
    spec: {"broadcast": spec, "mean": spec} for spec in ("identity", "tensor_encoding:8", "uniform:8")
}
# A client of the seed's has some 200 clips, one here 90. In a second there is less to learn from each, so it takes more steps,
# and then has to be kept from learning clips by heart: never quite the same clips, and fewer weights.
THREE_EPOCHS: dict[str, dict[str, Any]] = {
    "three local epochs": {"local_epochs": 3},
    "three local epochs, time mask": {"local_epochs": 3, "time_mask": 30},
    "three local epochs, time mask, 16 filters": {"local_epochs": 3, "time_mask": 30, "filters": 16},
}
_ALSO = {"1s": {f"identity, {name}": settings for name, settings in THREE_EPOCHS.items()}, "30s": {}}
_COLOURS = ("tab:gray", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
# Flower's example trains with 1e-3 without federation too; on a few thousand clips less is better.
_CENTRALIZED = {"no federation, learning rate 1e-3": 1e-3, "no federation, learning rate 3e-4": 3e-4}


def _centralized(run) -> dict[str, Any]:
    tested = json.loads((run.path / "test.json").read_text())
    return {"test_accuracy": round(tested["accuracy"], 5), "test_loss": round(tested["loss"], 5)}


def _table(finals: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| window | training | test accuracy | broadcast | aggregated | both, in bytes | seconds a round |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, group in itertools.groupby(finals, lambda row: (row["window"], row["encoder"])):
        rows = list(group)
        accuracy = spread([row["test_accuracy"] for row in rows])
        if key[1] in _CENTRALIZED:
            lines.append(f"| {key[0]} | {key[1]} | {accuracy} | | | | |")
            continue
        down, up = rows[0]["broadcast_bits"], rows[0]["aggregate_bits"]
        seconds = statistics.median(row["seconds_a_round"] for row in rows)
        encoder, comma, more = key[1].partition(",")
        lines.append(
            f"| {key[0]} | `{encoder}` both ways{comma}{more} | {accuracy} | {sizing.format_size(down)} "
            f"| {sizing.format_size(up)} | {(down + up) / 8e9:.3f} GB | {seconds:.2f} |"
        )
    return lines


def _plot(curves: dict[str, dict[str, list[list[float]]]], levels: dict[str, dict[str, float]], titles: dict[str, str]) -> None:
    drawn = figure.Figure(figsize=(11, 4.2), layout="constrained")
    for axis, (window, of_name) in zip(drawn.subplots(1, len(curves), sharey=True, squeeze=False)[0], curves.items()):
        for (name, runs), colour in zip(of_name.items(), _COLOURS):
            for i, accuracies in enumerate(runs):
                rounds = range(1, len(accuracies) + 1)
                axis.plot(rounds, accuracies, ".-", color=colour, alpha=0.7, label=None if i else name)
        for (name, level), style in zip(levels[window].items(), (":", "--")):
            axis.axhline(level, color="black", linestyle=style, label=name)
        axis.set(title=titles[window], xlabel="round", ylabel="test accuracy")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
        axis.legend()
    drawn.savefig(RESULTS / "kws_accuracy.png", dpi=110)


def _data(folder: str, window: str) -> EmbeddingDataset:
    return tff_kit.KeywordSpotting(data=folder, window=window).load_data()  # type: ignore[arg-type]


def main(
    data_30s: str,
    data_1s: str,
    rounds: int = 10,
    epochs: int = 10,
    seeds: int = 3,
    logdir: pathlib.Path = pathlib.Path("logs/kws_accuracy"),
) -> None:
    """Trains every combination and writes the results.

    Args:
        data_30s: Folder of embeddings of the 30-s window.
        data_1s: Folder of embeddings of the 1-s window.
        rounds: Rounds of federated averaging.
        epochs: Epochs without federation.
        seeds: Seeds 0, 1, ... of each combination.
        logdir: Where the runs are kept.
    """
    folders = {"1s": data_1s, "30s": data_30s}
    finals, curves, levels, notes = [], {}, {}, []
    for window, folder in folders.items():
        data = _data(folder, window)
        clips = sum(data.store.clips[f"clients/{client}"] for client in data.store.client_ids)
        notes.append(
            f"{data.name}: {clips:,} clips of {len(data.store.client_ids)} clients to train on, {data.store.clips['validation']} "
            f"for validation, {data.store.clips['test']} to test."
        )
        levels[window] = {}
        for name, rate in _CENTRALIZED.items():
            rows = []
            for seed in range(seeds):
                training = tff_kit.CentralizedKeywordSpotting(
                    epochs=epochs, learning_rate=rate, window=window, data=folder, seed=seed
                )
                run = trained(training, logdir / f"{window}_centralized{rate:g}_seed{seed}")
                rows.append({"window": window, "encoder": name, "seed": seed, **_centralized(run)})
            levels[window][name] = statistics.mean(row["test_accuracy"] for row in rows)
            finals += rows
        federated = {**_FEDERATED, **_ALSO[window]}
        curves[window] = {name: [] for name in federated}
        for name, seed in itertools.product(federated, range(seeds)):
            experiment = tff_kit.KeywordSpotting(window=window, data=folder, seed=seed, rounds=rounds, **federated[name])
            folder_name = re.sub("[^a-z0-9]+", "_", f"{window} {name} seed{seed}")
            logged = trained(experiment, logdir / folder_name).read_metrics()
            seconds = statistics.median(row["seconds"] for row in logged)
            finals.append({"window": window, "encoder": name, **final(experiment, logged), "seconds_a_round": round(seconds, 3)})
            curves[window][name].append([row["test_accuracy"] for row in logged])
    columns = list(finals[-1])
    write_csv("kws_accuracy.csv", [{name: row.get(name, "") for name in columns} for row in finals])
    lines = [
        f"`python -m benchmarks.kws_accuracy --data-30s FOLDER --data-1s FOLDER`, {rounds} rounds of 21 clients or {epochs} "
        f"epochs, seeds 0 to {seeds - 1} of training, mean with smallest and largest; {machine()}. "
        "Seconds a round are medians, the test on held-out speakers not among them.",
        *notes,
        "",
        *_table(finals),
    ]
    _plot(curves, levels, {window: _data(folder, window).name for window, folder in folders.items()})
    write_table("kws_accuracy.md", lines)


if __name__ == "__main__":
    tyro.cli(main)
