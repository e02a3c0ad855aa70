"""Speech Commands: one-second recordings of single words by many speakers, as a folder of wav files.

P. Warden: Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition. 2018, arXiv 1804.03209.

The archive unpacks to this folder: `<word>/<speaker>_nohash_<n>.wav`, 16-bit mono at 16 kHz, and long recordings in
`_background_noise_`. Two things are optional: the folder `_silence_` with the silence clips of the official test archive, and the
official lists `validation_list.txt` and `testing_list.txt`. Clips have twelve classes: the ten core words, silence, and one class
for all other words.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

import numpy as np
from rich import progress as rich_progress

from tff_kit.datasets import download as archive
from tff_kit.datasets.federated import DataError
from tff_kit.tasks.keywords import wav

URL = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
CORE_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SILENCE = len(CORE_WORDS)
OTHER = SILENCE + 1
CLASS_NAMES = (*CORE_WORDS, "silence", "other")
SAMPLE_RATE = 16_000
CLIP_SAMPLES = SAMPLE_RATE

_BACKGROUND = "_background_noise_"
_SILENCE_FOLDER = "_silence_"
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_SILENCE_SHARE = 0.1  # The share of each client's clips, as in Flower's example.
# TensorFlow's own training on these clips alters them so: earlier or later, and four of five with some noise.
_SHIFT_SECONDS = 0.1
_NOISY_SHARE = 0.8
_NOISE_VOLUME = 0.1
# Each background recording is cut into three stretches, so that the silence clips of two splits share no sample.
_STRETCHES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


@dataclasses.dataclass(frozen=True)
class Alteration:
    """An alteration of a clip's sound.

    Attributes:
      shift: Number of samples by which the sound starts later, or earlier if negative. Zeros fill the gap.
      noise: The second of a background recording that is added.
      volume: The factor of the noise.
    """

    shift: int
    noise: Clip
    volume: float


@dataclasses.dataclass(frozen=True)
class Clip:
    """One second of sound: a whole file, or a crop of a background recording.

    Attributes:
      path: The file, relative to the data's folder, with forward slashes.
      label: The class, 0 to 11: an index of `CLASS_NAMES`.
      start: The crop's first sample; 0 for a whole file.
      alteration: The alteration of an altered copy; `None` for the original.
    """

    path: str
    label: int
    start: int = 0
    alteration: Optional[Alteration] = None

    @property
    def word(self) -> str:
        """The folder of the file: the spoken word, or a name with underscores for silence."""
        return self.path.split("/")[0]

    @property
    def speaker(self) -> str:
        """The speaker's id; empty for silence."""
        return _speaker(self.path)


@dataclasses.dataclass(frozen=True)
class SpeechCommands:
    """An index of the clips and the clients that have them. `read` reads a clip's sound.

    Attributes:
      folder: The data's folder.
      clients: The training clips of each client, silence included, by the client's id.
      validation: The clips of speakers that no client has.
      test: The clips of speakers that neither a client nor `validation` has.
      speakers_per_client: Number of speakers of a client. The last client may have fewer.
      copies: Number of altered copies of each training clip.
      skipped: One line for each file that could not be used, with the reason.
      notes: Sentences that a user should read before trusting a result on this data.
    """

    folder: pathlib.Path
    clients: Mapping[str, Sequence[Clip]]
    validation: Sequence[Clip]
    test: Sequence[Clip]
    speakers_per_client: int
    copies: int = 0
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def splits(self) -> dict[str, Sequence[Clip]]:
        """All clips by the name of their folder in a store, clients first. `embed` works in this order."""
        return {**{f"clients/{c}": clips for c, clips in self.clients.items()}, "validation": self.validation, "test": self.test}

    @property
    def client_labels(self) -> dict[str, np.ndarray]:
        """The labels of each client's clips."""
        return {client: np.array([clip.label for clip in clips]) for client, clips in self.clients.items()}

    def read(self, clip: Clip) -> np.ndarray:
        """Returns the sound of `clip`, float32 [16000] in [-1, 1]. Zeros follow a recording shorter than one second.

        Raises:
          DataError: If the file cannot be read any more.
        """
        sound = self._recorded(clip)
        if clip.alteration is None:
            return sound
        shift = clip.alteration.shift
        shifted = np.pad(sound, (max(shift, 0), max(-shift, 0)))[max(-shift, 0) :][:CLIP_SAMPLES]
        return np.clip(shifted + np.float32(clip.alteration.volume) * self._recorded(clip.alteration.noise), -1, 1)

    def _recorded(self, clip: Clip) -> np.ndarray:
        path = self.folder / clip.path
        try:
            samples = wav.read_samples(path, clip.start, CLIP_SAMPLES)
        except (OSError, EOFError, wav.WavError) as error:
            raise DataError(f"Expected a wav file at {path}, as when it was indexed, found: {error}.") from error
        sound = np.zeros(CLIP_SAMPLES, np.float32)
        sound[: len(samples)] = samples / np.float32(32768)
        return sound


def download(folder: os.PathLike, stall_seconds: float = 30.0) -> pathlib.Path:
    """Downloads Speech Commands v0.02 (2.43 GB) and unpacks it as `folder` (3.8 GB); see `tff_kit.datasets.download.download`."""
    return archive.download(URL, folder, SHA256, stall_seconds)


def load_data(
    folder: os.PathLike,
    speakers_per_client: int = 5,
    held_out: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
    copies: int = 0,
    show_progress: bool = False,
) -> SpeechCommands:
    """Indexes a folder of Speech Commands: reads every file's header, leaves out broken files, and forms clients.

    Speakers are split by the official lists if the folder has them, and otherwise by `seed`. In the order of their ids, each
    `speakers_per_client` training speakers make one client. Silence is a tenth of each client's clips and of the held-out
    clips. No crop is used twice. The held-out silence comes from `_silence_` if there is such a folder.

    Args:
      folder: The data, as the archive unpacks.
      speakers_per_client: Number of speakers of a client. Flower's example has five.
      held_out: The shares of speakers for validation and for test. Official lists override them.
      seed: Seed of the held-out speakers, the silence, and the alterations of copies.
      copies: Number of altered copies of each training clip. A copy is shifted by up to a tenth of a second. Four of five copies
        have background noise of at most a tenth of its volume. A tenth of the clips is silence then, too.
      show_progress: Whether to show a bar on the terminal.

    Returns:
      The index.

    Raises:
      DataError: If the folder is missing, or has an empty word folder, no usable clip, no background noise, one official list
        without the other, or a speaker on two sides of the official split.
    """
    folder = pathlib.Path(folder)
    if speakers_per_client < 1:
        raise DataError(f"Expected at least one speaker a client, found {speakers_per_client}.")
    if copies < 0:
        raise DataError(f"Expected 0 or more altered copies of a clip, found {copies}.")
    if not (min(held_out) > 0 and sum(held_out) < 1):
        raise DataError(f"Expected shares for validation and test above 0, together below 1, found {held_out}.")
    words = _word_folders(folder)
    skipped: list[str] = []
    usable = _usable_clips(folder, words, skipped, show_progress)
    backgrounds = _backgrounds(folder, skipped)
    recorded = _recorded_silence(folder, skipped, seed)
    notes = []
    if skipped:
        notes.append(f"{len(skipped):,} files of {folder} could not be used, such as {skipped[0]}")
    missing = [word for word in CORE_WORDS if word not in words]
    if missing:
        notes.append(f"{folder} has no folder for {', '.join(missing)}.")

    speakers = sorted({clip.speaker for clip in usable})
    split_of = _official_split(folder, usable)
    if split_of is None:
        split_of = _seeded_split(speakers, held_out, seed)
        notes.append("The official lists are missing, so a seed splits the speakers. Figures do not compare with published ones.")
    words_of: dict[str, list[Clip]] = {"train": [], "validation": [], "test": []}
    for clip in usable:
        words_of[split_of[clip.speaker]].append(clip)
    for split, clips in words_of.items():
        if not clips:
            raise DataError(
                f"Expected clips for {split} in {folder}, found none among {len(speakers)} speakers. Use more speakers."
            )

    clients = _clients(words_of["train"], speakers_per_client)
    drawn = np.random.default_rng([seed, 5])
    for client, clips in clients.items():
        clients[client] = [*clips, *(_altered(clip, backgrounds, drawn) for _ in range(copies) for clip in clips)]
    counts = [_silence_count(len(clips)) for clips in clients.values()]
    crops = _crops(backgrounds, "train", sum(counts), seed)
    for (client, clips), end, count in zip(clients.items(), np.cumsum(counts), counts):
        clients[client] = [*clips, *crops[end - count : end]]
    held = {}
    for split in ("test", "validation"):  # The test set chooses first from the silence that was recorded for it.
        count = _silence_count(len(words_of[split]))
        chosen, recorded = recorded[:count], recorded[count:]
        held[split] = [*words_of[split], *chosen, *_crops(backgrounds, split, count - len(chosen), seed)]
    return SpeechCommands(
        folder, clients, held["validation"], held["test"], speakers_per_client, copies, tuple(skipped), tuple(notes)
    )


def _speaker(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    return name.split("_nohash_")[0] if fnmatch.fnmatch(name, "?*_nohash_*.wav") else ""


def _word_folders(folder: pathlib.Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            f"Expected the Speech Commands folder at {folder}, found {'a file' if folder.exists() else 'nothing'}. Unpack "
            "the archive there, or download it with python -m tff_kit embed --download."
        )
    words = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    if not words:
        raise DataError(f"Expected folders of wav files named by words in {folder}, such as yes/, found none.")
    for word in words:
        if not any((folder / word).iterdir()):
            raise DataError(f"Expected wav files in {folder / word}, found an empty folder. Fill it or remove it.")
    return words


def _usable_clips(folder: pathlib.Path, words: Iterable[str], skipped: list[str], show_progress: bool) -> list[Clip]:
    paths = [f"{word}/{name}" for word in words for name in sorted(os.listdir(folder / word)) if not name.startswith(".")]
    clips = []
    for path in rich_progress.track(paths, "checking clips", disable=not show_progress, transient=True):
        problem = None if _speaker(path) else "no speaker in its name, expected <speaker>_nohash_<n>.wav"
        problem = problem or _problem(folder / path, at_most=CLIP_SAMPLES)
        if problem:
            skipped.append(f"{path}: {problem}.")
        else:
            word = path.split("/")[0]
            clips.append(Clip(path, CORE_WORDS.index(word) if word in CORE_WORDS else OTHER))
    if not clips:
        raise DataError(f"Expected wav files that can be used in {folder}, found {len(paths)} that cannot, such as {skipped[0]}")
    return clips


def _problem(path: pathlib.Path, at_least: int = 1, at_most: Optional[int] = None) -> Optional[str]:  # noqa: PLR0911
    """Returns what keeps a file from being used, or `None`. Reads its header only."""
    try:
        header = wav.read_header(path)
        size = path.stat().st_size
    except EOFError:
        return "an empty file" if path.stat().st_size == 0 else "ends within its header"
    except (wav.WavError, OSError) as error:
        return f"not a wav file ({error})"
    if header.rate != SAMPLE_RATE:
        return f"sample rate {header.rate}, expected {SAMPLE_RATE}"
    if header.channels != 1:
        return f"{header.channels} channels, expected 1"
    if (header.encoding, header.bits) != ("PCM", 16):
        return f"{header.bits} bits a sample, {header.encoding}, expected 16 bits, PCM"
    # The samples may be followed by something else, but not be fewer.
    samples, there = header.samples, (size - header.start) // 2
    if there < samples:
        return f"truncated, {there:,} samples of {samples:,}"
    if samples < at_least:
        return "no samples" if samples == 0 else f"{samples:,} samples, expected at least {at_least:,}"
    if at_most is not None and samples > at_most:
        return f"{samples:,} samples, expected at most {at_most:,}"
    return None


def _backgrounds(folder: pathlib.Path, skipped: list[str]) -> dict[str, int]:
    """Returns the number of samples of each usable background recording."""
    # A tenth of a recording must hold a crop.
    found = {}
    for path in sorted((folder / _BACKGROUND).glob("*.wav")):
        problem = _problem(path, at_least=20 * CLIP_SAMPLES)
        if problem:
            skipped.append(f"{_BACKGROUND}/{path.name}: {problem}.")
        else:
            found[f"{_BACKGROUND}/{path.name}"] = wav.read_header(path).samples
    if not found:
        lines = [line for line in skipped if line.startswith(_BACKGROUND)]
        raise DataError(
            f"Expected recordings of 20 s or more in {folder / _BACKGROUND} to cut silence from, found none that can be used"
            f"{': ' + ' '.join(lines) if lines else '.'} Copy that folder from the Speech Commands archive."
        )
    return found


def _official_split(folder: pathlib.Path, clips: Iterable[Clip]) -> Optional[dict[str, str]]:
    """Returns the split of each speaker by the official lists, or `None` if there are no lists."""
    there = {split: (folder / name).is_file() for split, name in _LISTS.items()}
    if not any(there.values()):
        return None
    if not all(there.values()):
        missing = next(_LISTS[split] for split, is_there in there.items() if not is_there)
        raise DataError(
            f"Expected both official lists in {folder}, found no {missing}. Add it, or remove the other to split by a seed."
        )
    listed = {
        line.strip(): split for split, name in _LISTS.items() for line in (folder / name).read_text().splitlines() if line.strip()
    }
    split_of: dict[str, str] = {}
    for clip in clips:
        split = listed.get(clip.path, "train")
        if split_of.setdefault(clip.speaker, split) != split:
            raise DataError(
                f"Expected each speaker on one side of the official lists in {folder}, found {clip.speaker} in {split} "
                f"({clip.path}) and in {split_of[clip.speaker]}. Use the lists of the archive, or remove both."
            )
    return split_of


def _seeded_split(speakers: Sequence[str], held_out: tuple[float, float], seed: int) -> dict[str, str]:
    shuffled = np.random.default_rng([seed, 0]).permutation(speakers)
    validation, test = (max(1, round(share * len(speakers))) for share in held_out)
    return {
        str(speaker): "validation" if i < validation else "test" if i < validation + test else "train"
        for i, speaker in enumerate(shuffled)
    }


def _clients(clips: Iterable[Clip], speakers_per_client: int) -> dict[str, list[Clip]]:
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, []).append(clip)
    speakers = sorted(by_speaker)
    groups = [speakers[i : i + speakers_per_client] for i in range(0, len(speakers), speakers_per_client)]
    return {f"{i:04d}": [clip for speaker in group for clip in by_speaker[speaker]] for i, group in enumerate(groups)}


def _silence_count(words: int) -> int:
    return round(words * _SILENCE_SHARE / (1 - _SILENCE_SHARE))


def _crops(backgrounds: Mapping[str, int], split: str, count: int, seed: int) -> list[Clip]:
    """Returns `count` crops of the background recordings in a random order. No two start at the same sample."""
    low, high = _STRETCHES[split]
    first = {path: int(low * samples) for path, samples in backgrounds.items()}
    starts = [int(high * samples) - CLIP_SAMPLES + 1 - first[path] for path, samples in backgrounds.items()]
    ends = np.cumsum(starts)
    if count > ends[-1]:
        raise DataError(
            f"Expected room for {count:,} different crops of background noise, found {ends[-1]:,}. Use more recordings."
        )
    drawn = np.random.default_rng([seed, 1 + list(_STRETCHES).index(split)]).choice(ends[-1], count, replace=False)
    crops = []
    for place, file in zip(drawn, np.searchsorted(ends, drawn, side="right")):
        path = list(backgrounds)[file]
        crops.append(Clip(path, SILENCE, int(first[path] + place - (ends[file] - starts[file]))))
    return crops


def _altered(clip: Clip, backgrounds: Mapping[str, int], drawn: np.random.Generator) -> Clip:
    """Returns a slightly different copy of `clip`, with noise from the stretches for training."""
    most = round(_SHIFT_SECONDS * SAMPLE_RATE)
    path = str(drawn.choice(list(backgrounds)))
    start = int(drawn.integers(int(_STRETCHES["train"][1] * backgrounds[path]) - CLIP_SAMPLES + 1))
    volume = float(drawn.uniform(0, _NOISE_VOLUME)) if drawn.random() < _NOISY_SHARE else 0.0
    return dataclasses.replace(
        clip, alteration=Alteration(int(drawn.integers(-most, most, endpoint=True)), Clip(path, SILENCE, start), volume)
    )


def _recorded_silence(folder: pathlib.Path, skipped: list[str], seed: int) -> list[Clip]:
    """Returns the clips of `_silence_` in a random order."""
    clips = []
    for path in sorted((folder / _SILENCE_FOLDER).glob("*.wav")):
        problem = _problem(path, at_most=CLIP_SAMPLES)
        if problem:
            skipped.append(f"{_SILENCE_FOLDER}/{path.name}: {problem}.")
        else:
            clips.append(Clip(f"{_SILENCE_FOLDER}/{path.name}", SILENCE))
    order = np.random.default_rng([seed, 4]).permutation(len(clips))
    return [clips[i] for i in order]
