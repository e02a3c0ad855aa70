"""Runs that benchmarks read: trained once, gone on with where they were stopped, and read from their run directories."""

from __future__ import annotations

import pathlib
from typing import Any, Union

import tff_kit
from tff_kit import experiment
from tff_kit.training import runs


def trained(training: Union[tff_kit.Experiment, experiment.CentralizedTraining], logdir: pathlib.Path) -> runs.RunDirectory:
    """Returns the finished run of `training` in `logdir`; trains what is missing of it."""
    run = runs.RunDirectory(logdir)
    if not run.model.exists():
        resume = run.settings.exists()
        if isinstance(training, tff_kit.Experiment):
            tff_kit.train(training, logdir, resume=resume)
        else:
            tff_kit.train_centralized(training, logdir, resume=resume)
    return run


def tested(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the rounds that were tested, also where not one answer was right."""
    return [row for row in rows if row["test_accuracy"] is not None]


def final(experiment: tff_kit.Experiment, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what a federated run came to: its test accuracy and loss, and its bits, in total."""
    last = rows[-1]
    return {
        "broadcast": experiment.broadcast,
        "mean": experiment.mean,
        "client_lr": experiment.client_lr,
        "seed": experiment.seed,
        "rounds": experiment.rounds,
        "clients": experiment.clients,
        "test_accuracy": round(last["test_accuracy"], 5),
        "test_loss": round(last["test_loss"], 5),
        "broadcast_bits": last["broadcast_bits"],
        "aggregate_bits": last["aggregate_bits"],
    }
