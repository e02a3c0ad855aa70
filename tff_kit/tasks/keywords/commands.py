"""The commands `embed` and `plot partitions`."""

import pathlib
import sys

from typing_extensions import Literal

from tff_kit.datasets import partitions
from tff_kit.embeddings import store as stores
from tff_kit.tasks.keywords import embed as embedding
from tff_kit.tasks.keywords import speech_commands
from tff_kit.tasks.keywords import whisper as whisper_encoder


def embed(
    speech: pathlib.Path,
    out: pathlib.Path = pathlib.Path("embeddings"),
    whisper: str = whisper_encoder.DEFAULT_MODEL,
    window: Literal["30s", "1s"] = "30s",
    dtype: Literal["float16", "int8"] = "float16",
    speakers_per_client: int = 5,
    copies: int = 0,
    seed: int = 0,
    download: bool = False,
) -> None:
    """Makes the embeddings of all clips of Speech Commands with Whisper's encoder. The same command resumes an interrupted run.

    Args:
        speech: Folder of Speech Commands, as the archive unpacks: a folder of wav files for each word.
        out: Folder of the embeddings.
        whisper: Id of a Whisper model on the Hugging Face hub, or a local folder with one.
        window: Sound that the encoder is given: Whisper's 30 s, or only the clip's 1 s, which is 25 times cheaper and 30 times
            smaller.
        dtype: float16, or int8 for half of the space.
        speakers_per_client: Number of speakers of a client.
        copies: Number of altered copies of each training clip: a little earlier or later, and with some background noise. They
            help clients that have few clips.
        seed: Seed of the split by speaker (if there are no official lists), the silence, and the alterations of copies.
        download: Download Speech Commands v0.02 (2.4 GB) to --speech first, if it is not there.
    """
    if download and not speech.exists():
        speech_commands.download(speech)
    data = speech_commands.load_data(speech, speakers_per_client, seed=seed, copies=copies, show_progress=True)
    for line in [*data.notes, *data.skipped]:
        print(f"Note: {line}", file=sys.stderr)
    store = embedding.embed(data, whisper_encoder.load_encoder(whisper, window), out, dtype)
    print(f"{store.num_clips:,} clips, {len(store.client_ids)} clients, in {out}; relative error {store.relative_error:.2g}")


def plot_partitions(data: pathlib.Path = pathlib.Path("embeddings"), out: pathlib.Path = pathlib.Path("logs")) -> None:
    """Draws how many clips each client has, and of which classes, as PNG files.

    Args:
        data: Folder of embeddings.
        out: Folder for clips_per_client.png and classes_per_client.png.
    """
    opened = stores.open_store(data)
    for name in partitions.plot_partitions(opened.client_labels, speech_commands.CLASS_NAMES, opened.name, out):
        print(out / name)
