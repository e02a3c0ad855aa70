"""What the tests share: real speech and a real encoder where there are some, else the tests that need them are skipped."""

from __future__ import annotations

import csv
import os
import pathlib
import subprocess
import sys
import wave

import numpy as np
import pytest

_REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data: that of the variable TFF_KIT_SHARED, or `shared` beside the repository."""
    folder = pathlib.Path(os.environ.get("TFF_KIT_SHARED", _REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data in {folder}; set TFF_KIT_SHARED")
    return folder


@pytest.fixture(scope="session")
def whisper_folder(shared) -> pathlib.Path:
    """An encoder with the shapes of openai/whisper-tiny."""
    return shared / "data" / "whisper-tiny.en-encoder"


@pytest.fixture(scope="session")
def real_clips(shared) -> np.ndarray:
    """Eight real clips of different words: float32 [8, 16000]."""
    soundfile = pytest.importorskip("soundfile")
    with open(shared / "data" / "speech_commands.csv", newline="") as file:
        first_of_word = {row["word"]: int(row["start"]) for row in csv.DictReader(file)}
    starts = [first_of_word[word] for word in sorted(first_of_word)[:8]]
    path = shared / "data" / "speech_commands.flac"
    return np.stack([soundfile.read(path, frames=16_000, start=start, dtype="float32")[0] for start in starts])


@pytest.fixture(scope="session")
def torch_python() -> str:
    """A Python with PyTorch: this one, or that of the variable TFF_KIT_TORCH_PYTHON, since nothing else here needs it."""
    python = os.environ.get("TFF_KIT_TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch, transformers, safetensors"], capture_output=True).returncode:
        pytest.skip("no PyTorch; set TFF_KIT_TORCH_PYTHON to a Python that has torch, transformers and safetensors")
    return python


def write_wav(path: pathlib.Path, samples, rate: int = 16_000, channels: int = 1) -> pathlib.Path:
    """Writes 16-bit samples, for stereo one channel after the other in turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return path


@pytest.fixture
def speech_folder(tmp_path) -> pathlib.Path:
    """Thirty speakers who say yes, no, and bed twice; every clip holds its own number. Two background recordings."""
    folder = tmp_path / "speech"
    for speaker in range(30):
        for k, word in enumerate(("yes", "no", "bed")):
            for n in range(2):
                write_wav(folder / word / f"{speaker:08x}_nohash_{n}.wav", np.full(16_000, 6 * speaker + 2 * k + n))
    # Recordings count up, so that a crop's first sample tells where it was cut.
    for k, seconds in enumerate((20, 30)):
        write_wav(folder / "_background_noise_" / f"noise{k}.wav", np.arange(seconds * 16_000) % 30_000)
    return folder
