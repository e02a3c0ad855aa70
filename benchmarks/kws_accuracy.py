"""Accuracy on speakers never trained on: the keyword head without federation, and by federated averaging with each encoder.

    python -m benchmarks.kws_accuracy --window 30s --data FOLDER_OF_EMBEDDINGS

Three seeds of training on one split of the speakers; ten rounds of 21 clients, one local epoch and, in the window of one second
without altered copies, three. Writes results/keywords/accuracy_WINDOW.csv with the mean and the spread of the seeds,
accuracy_WINDOW_runs.csv with every run, and accuracy_WINDOW.png; WINDOW is followed by _N_copies for a store made with
--copies N. Finished runs are read from --logdir and not repeated, so the benchmark can be stopped.
"""

# Annotations here are evaluated at once: tyro reads them.

import dataclasses
import itertools
import json
import pathlib
import re
import statistics
from typing import Any, Optional

import tyro
from matplotlib import figure
from typing_extensions import Literal

import tff_kit
from benchmarks import results
from benchmarks.trained import final, tested, trained
from tff_kit.tasks.keywords.data import EmbeddingDataset
from tff_kit.training import runs

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
Curves = dict[str, list[list[float]]]
_COLOURS = ("tab:gray", "tab:blue", "tab:orange", "tab:green", "tab:red")
# Flower's example trains with 1e-3 without federation too; on a few thousand clips less is better.
_CENTRALIZED = {f"no federation, learning rate {rate}": float(rate) for rate in ("1e-3", "3e-4", "1e-4")}


def _folder(name: str, seed: int) -> str:
    return re.sub("[^a-z0-9]+", "_", f"{name} seed{seed}")


def _centralized(run: runs.RunDirectory) -> dict[str, Any]:
    tested = json.loads((run.path / "test.json").read_text())
    return {"test_accuracy": round(tested["accuracy"], 5), "test_loss": round(tested["loss"], 5)}


def summary(finals: list[results.Row]) -> list[results.Row]:
    """Returns a row for each way to train: the runs' accuracy with its spread, their bits and the median of their round times."""
    rows = []
    for name, group in itertools.groupby(finals, lambda run: run["training"]):
        training = name
        of_way = list(group)
        bits: results.Row = {"broadcast_bits": None, "aggregate_bits": None, "gigabytes": None, "seconds_a_round": None}
        if of_way[0].get("broadcast_bits"):
            encoder, comma, more = name.partition(",")
            training = f"{encoder} both ways{comma}{more}"
            bits = {key: of_way[0][key] for key in ("broadcast_bits", "aggregate_bits")}
            bits["gigabytes"] = round(sum(bits.values()) / 8e9, 6)
            bits["seconds_a_round"] = round(statistics.median(run["seconds_a_round"] for run in of_way), 3)
        rows.append(
            {
                "training": training,
                "encoder": of_way[0].get("mean"),
                "seeds": results.in_words(run["seed"] for run in of_way),
                **results.spread("test_accuracy", [run["test_accuracy"] for run in of_way]),
                **bits,
            }
        )
    return rows


def _plot(title: str, curves: Curves, levels: dict[str, float], file: pathlib.Path) -> None:
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
    drawn.savefig(file, dpi=110)


def _centralized_runs(
    base: tff_kit.KeywordSpotting, rates: dict[str, float], epochs: int, seeds: int, folder: pathlib.Path
) -> list[results.Row]:
    """Trains without federation at each of `rates`; returns a row for each run."""
    rows = []
    for (name, rate), seed in itertools.product(rates.items(), range(seeds)):
        training = tff_kit.CentralizedKeywordSpotting(
            epochs=epochs, learning_rate=rate, window=base.window, data=base.data, seed=seed
        )
        rows.append({"training": name, "seed": seed, **_centralized(trained(training, folder / _folder(name, seed)))})
    return rows


def _federated_runs(
    base: tff_kit.KeywordSpotting, federated: dict[str, dict[str, Any]], seeds: int, folder: pathlib.Path
) -> tuple[list[results.Row], Curves]:
    """Trains by federated averaging in each way; returns a row for each run, and the accuracies after each round."""
    rows = []
    curves: Curves = {name: [] for name in federated}
    for name, seed in itertools.product(federated, range(seeds)):
        experiment = dataclasses.replace(base, seed=seed, **federated[name])
        logged = trained(experiment, folder / _folder(name, seed)).read_metrics()
        seconds = statistics.median(row["seconds"] for row in logged)
        rows.append({"training": name, **final(experiment, logged), "seconds_a_round": round(seconds, 3)})
        curves[name].append([row["test_accuracy"] for row in tested(logged)])
    return rows, curves


def _sizes(dataset: EmbeddingDataset) -> str:
    """Returns what the data is, and how many clips of it are for what."""
    assert dataset.store is not None
    clips, clients = dataset.store.clips, dataset.store.client_ids
    to_train = sum(clips[f"clients/{client}"] for client in clients)
    return (
        f"{dataset.name}: {to_train:,} clips of {len(clients)} clients to train on, {clips['validation']} for validation, "
        f"{clips['test']} to test"
    )


def main(
    data: str = "embeddings",
    window: Literal["30s", "1s"] = "30s",
    rounds: int = 10,
    epochs: int = 10,
    seeds: int = 3,
    logdir: Optional[pathlib.Path] = None,
    quick: bool = False,
) -> None:
    """Trains every combination and writes the results.

    Args:
        data: Folder of embeddings of that window.
        window: As in `python -m tff_kit train kws`.
        rounds: Rounds of federated averaging.
        epochs: Epochs without federation.
        seeds: Seeds 0, 1, ... of each combination.
        logdir: Where the runs are kept; by default a folder of this commit in logs/.
        quick: Try it on synthetic embeddings of 1 s in seconds, into logs/results-quick/.
    """
    if quick:
        data, window, rounds, epochs, seeds = "demo", "1s", 1, 1, 1
    base = tff_kit.KeywordSpotting(data=data, window=window, rounds=rounds)
    base = dataclasses.replace(base, clients=2) if quick else base
    dataset = base.load_data()
    assert dataset.store is not None  # It is for data that was made in memory only.
    copies = dataset.store.copies
    rates, federated = dict(_CENTRALIZED), {**_FEDERATED, **({} if copies else _ALSO[window])}
    if quick:
        rates, federated = dict([*rates.items()][:2]), dict([*federated.items()][:2])
    of_data = window + (f"_{copies}_copies" if copies else "")
    folder = (logdir or results.runs_folder("kws_accuracy", quick)) / of_data
    finals = _centralized_runs(base, rates, epochs, seeds, folder)
    levels = {name: statistics.mean(r["test_accuracy"] for r in finals if r["training"] == name) for name in rates}
    runs_of_clients, curves = _federated_runs(base, federated, seeds, folder)
    finals += runs_of_clients
    source = results.Source(
        command=f"python -m benchmarks.kws_accuracy --window {window} --data FOLDER",
        data=f"{_sizes(dataset)}; {rounds} rounds of {base.clients} clients, or {epochs} epochs",
        seeds=results.in_words(range(seeds)),
        spread="smallest and largest of the seeds, all on one split of the speakers",
    )
    name = f"keywords/accuracy_{of_data}"
    _plot(dataset.name, curves, levels, results.path(name, ".png", quick))
    results.write(f"{name}_runs", [{column: run.get(column) for column in finals[-1]} for run in finals], source, quick)
    results.write(name, summary(finals), source, quick)


if __name__ == "__main__":
    tyro.cli(main)
