"""Accuracy on other speakers: keyword spotting where other seeds choose who is tested.

    python -m benchmarks.kws_splits --speech FOLDER_OF_WAVS --whisper openai/whisper-tiny

kws_accuracy.py trains several times on one split of the speakers, which shows what training's own chance does. Here each run
has a split of its own: what the choice of some twenty test speakers does. The 1-s window, ten rounds of 21 clients, nothing
encoded. Writes results/kws_splits.md. What is done already (in --logdir) is read, not repeated, so it can be stopped.
"""

from __future__ import annotations

import pathlib
import statistics

import tyro

import tff_kit
from benchmarks.results import machine, write_table
from benchmarks.trained import trained
from tff_kit.tasks.keywords import embed, speech_commands
from tff_kit.tasks.keywords import whisper as whisper_encoder

_LOCAL_EPOCHS = (1, 3)


def main(
    speech: pathlib.Path,
    whisper: str = whisper_encoder.DEFAULT_MODEL,
    splits: int = 6,
    logdir: pathlib.Path = pathlib.Path("logs/kws_splits"),
) -> None:
    """Trains on every split and writes the results.

    Args:
        speech: Folder of Speech Commands without its official lists, so that speakers are split by a seed.
        whisper: Id of a Whisper model on the Hugging Face hub, or a local folder of one.
        splits: Seeds 1, 2, ... of the split.
        logdir: Where embeddings and runs are kept.
    """
    encoder = whisper_encoder.load_encoder(whisper, "1s")
    accuracies: dict[int, list[float]] = {epochs: [] for epochs in _LOCAL_EPOCHS}
    rows = []
    for split in range(1, splits + 1):
        data, folder = speech_commands.load_data(speech, seed=split), logdir / f"split{split}"
        embed.embed(data, encoder, folder / "embeddings")
        for epochs, of_split in accuracies.items():
            experiment = tff_kit.KeywordSpotting(window="1s", data=str(folder / "embeddings"), local_epochs=epochs, eval_every=5)
            of_split.append(trained(experiment, folder / f"{epochs}_epochs").read_metrics()[-1]["test_accuracy"])
        speakers = len({clip.speaker for clip in data.test} - {""})
        tested = " | ".join(f"{of_split[-1]:.4f}" for of_split in accuracies.values())
        rows.append(f"| {split} | {len(data.clients)} | {speakers} | {len(data.test)} | {tested} |")
    means = " | ".join(f"{statistics.mean(x):.4f} ± {statistics.stdev(x):.4f}" for x in accuracies.values())
    lines = [
        f"`python -m benchmarks.kws_splits --speech FOLDER --whisper FOLDER`, ten rounds of 21 clients, nothing encoded, 1-s "
        f"window, seed 0 of training; {machine()}. Test accuracy; below, its mean and standard deviation over splits.",
        "",
        "| split | clients | test speakers | test clips | one local epoch | three |",
        "|---|---|---|---|---|---|",
        *rows,
        f"| all | | | | {means} |",
    ]
    write_table("kws_splits.md", lines)


if __name__ == "__main__":
    tyro.cli(main)
