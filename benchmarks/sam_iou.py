"""Intersection over union against bits: SAM's mask decoder by federated averaging, nothing encoded, 8 bits, and the one setting.

    python -m benchmarks.sam_iou

Three seeds, ten rounds of four clients, four local epochs each, on made-up images (`--data demo`) and the tiny SAM whose encoder
nobody trained. Beside it stands training without federation for two epochs. Nothing of this tells how well SAM segments: it
tells what encoders do to a decoder's attention weights that Adam trains. Writes results/sam/iou.csv with the mean and the spread
of the seeds, and iou_runs.csv with every run. Finished runs are read from --logdir and not repeated, so the benchmark can be
stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import statistics
from typing import Any, Optional

import tyro

from benchmarks import results
from benchmarks.bits_to_accuracy import flags_of
from benchmarks.trained import trained
from tff_kit.tasks.segmentation import CentralizedSegmentation, Segmentation
from tff_kit.tasks.segmentation.measures import intersection_over_union
from tff_kit.tasks.segmentation.objects import box_masks

NAME = "sam/iou"
_RATE = 2e-3  # For a decoder that was never trained; one that was takes 1e-5.
_ENCODERS: dict[str, dict[str, Any]] = {
    "nothing encoded": {},
    "8 bits": {"broadcast": "uniform:8", "mean": "uniform:8"},
    "one setting, light": {"compress": "light"},
}


def _federated(base: Segmentation, encoders: list[str], seeds: int, folder: pathlib.Path) -> list[results.Row]:
    """Returns a row for each run of each of the encoders."""
    rows: list[results.Row] = []
    for name, seed in itertools.product(encoders, range(seeds)):
        settings = _ENCODERS[name]
        experiment = dataclasses.replace(base, seed=seed, **settings)
        last = trained(experiment, folder / f"{name.replace(',', '').replace(' ', '-')}_seed{seed}").read_metrics()[-1]
        bits = {key: last[key] for key in ("broadcast_bits", "aggregate_bits")}
        scores = {"test_iou": round(last["test_iou"], 5), "test_dice": round(last["test_dice"], 5)}
        rows.append({"training": name, "flags": flags_of(settings), "seed": seed, **scores, **bits})
    return rows


def _centralized(base: CentralizedSegmentation, seeds: int, folder: pathlib.Path) -> list[results.Row]:
    """Returns a row for each run without federation."""
    rows: list[results.Row] = []
    for seed in range(seeds):
        run = trained(dataclasses.replace(base, seed=seed), folder / f"centralized_seed{seed}")
        tested = json.loads((run.path / "test.json").read_text())
        scores = {"test_iou": round(tested["iou"], 5), "test_dice": round(tested["dice"], 5)}
        bits = {"broadcast_bits": None, "aggregate_bits": None}
        rows.append({"training": f"no federation, {base.epochs} epochs", "flags": "", "seed": seed, **scores, **bits})
    return rows


def _of_the_box(base: Segmentation) -> float:
    """Returns the intersection over union of the boxes themselves with the held-out masks."""
    dataset = base.load_data()
    assert dataset.sam is not None  # It is for data that was made in memory only.
    found = [intersection_over_union(y, 2 * box_masks(x["box"], dataset.sam.sizes) - 1).numpy() for x, y in dataset.test]
    return float(sum(batch.sum() for batch in found) / sum(map(len, found)))


def summary(runs: list[results.Row], box: float) -> list[results.Row]:
    """Returns a row for each way to train, with the spread over seeds, and one for the box itself."""
    plain = statistics.mean(run["broadcast_bits"] + run["aggregate_bits"] for run in runs if run["training"] == "nothing encoded")
    rows: list[results.Row] = []
    for name, group in itertools.groupby(runs, lambda run: run["training"]):
        training, of_way = name, list(group)
        row: results.Row = {
            "training": training,
            "flags": of_way[0]["flags"],
            "seeds": results.in_words(run["seed"] for run in of_way),
            **results.spread("test_iou", [run["test_iou"] for run in of_way]),
            **results.spread("test_dice", [run["test_dice"] for run in of_way]),
            **dict.fromkeys(("broadcast_bits", "aggregate_bits", "fewer_bits")),
        }
        if of_way[0]["broadcast_bits"]:
            down, up = (statistics.mean(run[key] for run in of_way) for key in ("broadcast_bits", "aggregate_bits"))
            row.update(broadcast_bits=round(down), aggregate_bits=round(up), fewer_bits=round(plain / (down + up), 4))
        rows.append(row)
    of_box = {**dict.fromkeys(rows[0]), "training": "the box itself", **results.spread("test_iou", [round(box, 5)])}
    return [*rows, of_box]


def main(
    data: str = "demo", rounds: int = 10, seeds: int = 3, logdir: Optional[pathlib.Path] = None, quick: bool = False
) -> None:
    """Trains every combination and writes the results.

    Args:
        data: As in `python -m tff_kit train sam --data`.
        rounds: Rounds of each run.
        seeds: Seeds 0, 1, ... of each combination.
        logdir: Where the runs are kept; by default a folder of this commit in logs/.
        quick: Try one round of two clients, in a minute, into logs/results-quick/.
    """
    base = Segmentation(data=data, rounds=rounds, eval_every=rounds, clients=4, local_epochs=4, client_lr=_RATE)
    alone = CentralizedSegmentation(data=data, learning_rate=_RATE)
    encoders = list(_ENCODERS)
    if quick:
        encoders = encoders[:1]  # The others take long to build.
        base, seeds = dataclasses.replace(base, rounds=1, eval_every=1, clients=2, local_epochs=1), 1
    folder = logdir or results.runs_folder("sam_iou", quick)
    runs = [*_centralized(alone, seeds, folder), *_federated(base, encoders, seeds, folder)]
    source = results.Source(
        command="python -m benchmarks.sam_iou",
        data=f"{base.load_data().name}, {base.rounds} rounds of {base.clients} clients",
        seeds=results.in_words(range(seeds)),
        spread="smallest and largest of the seeds",
    )
    results.write(f"{NAME}_runs", runs, source, quick)
    results.write(NAME, summary(runs, _of_the_box(base)), source, quick)


if __name__ == "__main__":
    tyro.cli(main)
