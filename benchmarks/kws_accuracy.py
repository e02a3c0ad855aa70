"""Accuracy on speakers never trained on: the keyword head without federation, and by federated averaging with each encoder.

    python -m benchmarks.kws_accuracy --window 30s --data FOLDER_OF_EMBEDDINGS

Three seeds of training on one split of the speakers; ten rounds of 21 clients, one local epoch and, in the window of one second
without altered copies, three. Writes results/kws_accuracy_WINDOW.{csv,md,png}, with _N_copies behind the window for a store made
with --copies N. Runs that are done already (in --logdir) are read, not repeated, so it can be stopped.
"""

# Annotations here are evaluated at once: tyro reads them.

import itertools
import json
import pathlib
import re
import statistics
from typing import Any

import tyro
from matplotlib import figure
from typing_extensions import Literal

import tff_kit
from benchmarks.results import RESULTS, machine, spread, write_csv, write_table
from benchmarks.trained import final, trained
from tff_kit.runtime import sizing

_FEDERATED: dict[str, dict[str, Any]] = {
    spec: {"broadcast": spec, "mean": spec} for spec in ("identity", "tensor_encoding:8", "uniform:8")
}
# A client of the seed's has some 200 clips, one here 90. In a second there is less to learn from each.
_ALSO: dict[str, dict[str, dict[str, Any]]] = {
    "1s": {
        "identity, three local epochs": {"local_epochs": 3},
        "identity, three local epochs, 16 filters": {"local_epochs": 3, "filters": 16},
    },
    "30s": {},
}
_COLOURS = ("tab:gray", "tab:blue", "tab:orange", "tab:green", "tab:red")
# Flower's example trains with 1e-3 without federation too; on a few thousand clips less is better.
_CENTRALIZED = {f"no federation, learning rate {rate}": float(rate) for rate in ("1e-3", "3e-4", "1e-4")}


def _folder(of_data: str, name: str, seed: int) -> str:
    return re.sub("[^a-z0-9]+", "_", f"{of_data} {name} seed{seed}")


def _centralized(run) -> dict[str, Any]:
    tested = json.loads((run.path / "test.json").read_text())
    return {"test_accuracy": round(tested["accuracy"], 5), "test_loss": round(tested["loss"], 5)}


def _table(finals: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| training | test accuracy | broadcast | aggregated | both, in bytes | seconds a round |",
        "|---|---|---|---|---|---|",
    ]
    for training, group in itertools.groupby(finals, lambda row: row["training"]):
        rows = list(group)
        accuracy = spread([row["test_accuracy"] for row in rows])
        if training in _CENTRALIZED:
            lines.append(f"| {training} | {accuracy} | | | | |")
            continue
        down, up = rows[0]["broadcast_bits"], rows[0]["aggregate_bits"]
        seconds = statistics.median(row["seconds_a_round"] for row in rows)
        encoder, comma, more = training.partition(",")
        lines.append(
            f"| `{encoder}` both ways{comma}{more} | {accuracy} | {sizing.format_size(down)} | {sizing.format_size(up)} "
            f"| {(down + up) / 8e9:.3f} GB | {seconds:.2f} |"
        )
    return lines


def _plot(title: str, curves: dict[str, list[list[float]]], levels: dict[str, float], name: str) -> None:
    drawn = figure.Figure(figsize=(7.5, 5), layout="constrained")
    axis = drawn.subplots()
    for (way, seeds), colour in zip(curves.items(), _COLOURS):
        for i, accuracies in enumerate(seeds):
            rounds = range(1, len(accuracies) + 1)
            axis.plot(rounds, accuracies, ".-", color=colour, alpha=0.7, label=None if i else way)
    for (way, level), style in zip(levels.items(), (":", "--", "-.")):
        axis.axhline(level, color="black", linestyle=style, label=way)
    axis.set(xlabel="round", ylabel="test accuracy")
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    drawn.savefig(RESULTS / name, dpi=110)


def main(
    data: str,
    window: Literal["30s", "1s"] = "30s",
    rounds: int = 10,
    epochs: int = 10,
    seeds: int = 3,
    logdir: pathlib.Path = pathlib.Path("logs/kws_accuracy"),
) -> None:
    """Trains every combination and writes the results.

    Args:
        data: Folder of embeddings of that window.
        window: As in `python -m tff_kit train kws`.
        rounds: Rounds of federated averaging.
        epochs: Epochs without federation.
        seeds: Seeds 0, 1, ... of each combination.
        logdir: Where the runs are kept.
    """
    dataset = tff_kit.KeywordSpotting(data=data, window=window).load_data()
    of_data = window + (f"_{dataset.store.copies}_copies" if dataset.store.copies else "")
    finals: list[dict[str, Any]] = []
    levels = {}
    for name, rate in _CENTRALIZED.items():
        rows = []
        for seed in range(seeds):
            training = tff_kit.CentralizedKeywordSpotting(epochs=epochs, learning_rate=rate, window=window, data=data, seed=seed)
            run = trained(training, logdir / _folder(of_data, name, seed))
            rows.append({"training": name, "seed": seed, **_centralized(run)})
        levels[name] = statistics.mean(row["test_accuracy"] for row in rows)
        finals += rows
    federated = {**_FEDERATED, **({} if dataset.store.copies else _ALSO[window])}
    curves: dict[str, list[list[float]]] = {name: [] for name in federated}
    for name, seed in itertools.product(federated, range(seeds)):
        experiment = tff_kit.KeywordSpotting(window=window, data=data, seed=seed, rounds=rounds, **federated[name])
        logged = trained(experiment, logdir / _folder(of_data, name, seed)).read_metrics()
        seconds = statistics.median(row["seconds"] for row in logged)
        finals.append({"training": name, **final(experiment, logged), "seconds_a_round": round(seconds, 3)})
        curves[name].append([row["test_accuracy"] for row in logged])
    columns = list(finals[-1])
    write_csv(f"kws_accuracy_{of_data}.csv", [{name: row.get(name, "") for name in columns} for row in finals])
    clips = dataset.store.clips
    of_clients = [clips[f"clients/{client}"] for client in dataset.store.client_ids]
    lines = [
        f"`python -m benchmarks.kws_accuracy --window {window} --data FOLDER`, {rounds} rounds of 21 clients or {epochs} "
        f"epochs, seeds 0 to {seeds - 1} of training, mean with smallest and largest; {machine()}. "
        "Seconds a round are medians, the test on held-out speakers not among them.",
        f"{dataset.name}: {sum(of_clients):,} clips of {len(of_clients)} clients to train on, {clips['validation']} for "
        f"validation, {clips['test']} to test.",
        "",
        *_table(finals),
    ]
    _plot(dataset.name, curves, levels, f"kws_accuracy_{of_data}.png")
    write_table(f"kws_accuracy_{of_data}.md", lines)


if __name__ == "__main__":
    tyro.cli(main)
