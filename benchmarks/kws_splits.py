"""Accuracy on other speakers: keyword spotting where other seeds choose who is tested.

    python -m benchmarks.kws_splits --speech FOLDER_OF_WAVS --whisper openai/whisper-tiny

kws_accuracy.py trains several times on one split of the speakers, which shows what training's own chance does. Here each run
has a split of its own: what the choice of some twenty test speakers does. The 1-s window, ten rounds of 21 clients, nothing
encoded. Writes results/keywords/splits.csv. Finished runs are read from --logdir and not repeated, so the benchmark can be
stopped.
"""

from __future__ import annotations

import pathlib
import statistics
from typing import Callable, Optional

import tyro

import tff_kit
from benchmarks import results
from benchmarks.trained import trained
from tff_kit.tasks.keywords import embed, speech_commands
from tff_kit.tasks.keywords import whisper as whisper_encoder

_LOCAL_EPOCHS = {"one_epoch": 1, "three_epochs": 3}


def main(
    speech: Optional[pathlib.Path] = None,
    whisper: str = whisper_encoder.DEFAULT_MODEL,
    splits: int = 6,
    logdir: Optional[pathlib.Path] = None,
    quick: bool = False,
) -> None:
    """Trains on every split and writes the results.

    Args:
        speech: Folder of Speech Commands without its official lists, so that speakers are split by a seed.
        whisper: Id of a Whisper model on the Hugging Face hub, or a local folder of one.
        splits: Seeds 1, 2, ... of the split.
        logdir: Where embeddings and runs are kept; by default a folder of this commit in logs/.
        quick: Try it on synthetic embeddings, another for each split, into logs/results-quick/.
    """
    if speech is None and not quick:
        raise SystemExit("error: Expected --speech with a folder of Speech Commands, found none.")
    splits, rounds = (2, 1) if quick else (splits, 10)
    encoder = None if speech is None else whisper_encoder.load_encoder(whisper, "1s")
    rows: list[results.Row] = []
    for split in range(1, splits + 1):
        folder = (logdir or results.runs_folder("kws_splits", quick)) / f"split{split}"
        if speech is None or encoder is None:
            row = {"split": split, "clients": 8, "test_speakers": None, "test_clips": 40}
            embed.demo(folder / "embeddings", seed=split)
        else:
            data = speech_commands.load_data(speech, seed=split)
            speakers = len({clip.speaker for clip in data.test} - {""})
            row = {"split": split, "clients": len(data.clients), "test_speakers": speakers, "test_clips": len(data.test)}
            embed.embed(data, encoder, folder / "embeddings")
        rows.append({**row, **_accuracies(folder, rounds)})
    source = results.Source(
        command="python -m benchmarks.kws_splits --speech FOLDER --whisper FOLDER",
        data=f"Speech Commands as 1s embeddings, {rounds} rounds of 21 clients, nothing encoded"
        if speech
        else "synthetic embeddings",
        seeds="0, of training",
        spread="mean and standard deviation over the splits of the speakers",
    )
    results.write("keywords/splits", [*rows, *_over_splits(rows)], source, quick)


def _accuracies(folder: pathlib.Path, rounds: int) -> results.Row:
    """Trains on the embeddings in `folder`; returns test accuracy for each number of local epochs."""
    found = {}
    for name, epochs in _LOCAL_EPOCHS.items():
        experiment = tff_kit.KeywordSpotting(
            window="1s", data=str(folder / "embeddings"), local_epochs=epochs, rounds=rounds, eval_every=min(5, rounds)
        )
        found[name] = round(trained(experiment, folder / name).read_metrics()[-1]["test_accuracy"], 5)
    return found


def _over_splits(rows: list[results.Row]) -> list[results.Row]:
    """Returns the rows below the splits: the mean and the standard deviation of their accuracies."""
    below: list[results.Row] = []
    both: dict[str, Callable[[list[float]], float]] = {"mean": statistics.mean, "standard deviation": statistics.stdev}
    for name, statistic in both.items():
        of_columns = {column: round(statistic([row[column] for row in rows]), 5) for column in _LOCAL_EPOCHS}
        below.append({**dict.fromkeys(rows[0]), "split": name, **of_columns})
    return below


if __name__ == "__main__":
    tyro.cli(main)
