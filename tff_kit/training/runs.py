"""Run directories: what a training leaves on disk, and which process may write there.

| file | content |
|---|---|
| `settings.json` | the experiment's settings, the data's name, a digest of the clients, the loss, versions |
| `metrics.csv` | a row for each round |
| `events.*` | TensorBoard's curves |
| `checkpoints/` | the last states of the training, to resume from |
| `model.keras` | the final Keras model |
| `model.safetensors`, `test.json` | without federation: the model for PyTorch, and the final test |
| `worker.log` | the output of TFF's worker |
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional, TypeVar, Union

import h5py
import tensorflow as tf

from tff_kit.errors import UserError, first_line
from tff_kit.experiment import Experiment, Training
from tff_kit.training import settings, table

T = TypeVar("T", bound=Training)
_LENGTHS = {"rounds", "epochs"}  # The settings that a resumed run may have more of.
_OWN_FILES = ("settings.json", "metrics.csv", "model.keras", "model.safetensors", "test.json", "worker.log", "checkpoints")


class RunError(UserError, RuntimeError):
    """A run directory cannot be used as asked. The message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is kept, as the command line says it."""

    logdir: Optional[pathlib.Path] = None
    """The run directory. The default is a new one in logs/."""
    resume: bool = False
    """Resume the interrupted run in --logdir with its settings. More --rounds or --epochs are allowed."""
    overwrite: bool = False
    """Replace the run in --logdir."""


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The places in a run directory."""

    path: pathlib.Path

    @property
    def settings(self) -> pathlib.Path:
        return self.path / "settings.json"

    @property
    def metrics(self) -> pathlib.Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> pathlib.Path:
        return self.path / "model.keras"

    @property
    def worker_log(self) -> pathlib.Path:
        return self.path / "worker.log"

    def read_metrics(self, unfinished: bool = False) -> list[dict[str, Any]]:
        """Returns the rows of metrics.csv as numbers, with `None` for empty cells.

        Args:
          unfinished: Leave out a last line without an end, as a killed training leaves it that does not write the file whole.

        Raises:
          RunError: If there is no such file, or if a row of it is damaged.
        """
        try:
            with open(self.metrics, newline="", encoding="utf-8-sig") as file:  # Some editors put a mark in front.
                text = file.read()
            return table.parse(text[: text.rfind("\n") + 1] if unfinished else text)
        except UnicodeDecodeError:
            why: Any = "bytes that are no text"
        except ValueError as error:
            why = error
        except OSError as error:
            why = error.strerror or error
        raise RunError(
            f"Expected a run with its metrics.csv in {self.path}, found {why}. Mend the file, or train in a new --logdir."
        ) from None

    def check_done(self, rows: Sequence[Mapping[str, Any]], name: str, expected: Sequence[int]) -> None:
        """Raises `RunError` if `rows`, which are of what was done, are not the expected rounds or epochs, once each, in order.

        Args:
          rows: Rows of metrics.csv.
          name: The column that counts: round or epoch.
          expected: What has to be in this column.
        """
        found = [row.get(name) for row in rows]
        for place, (here, wanted) in enumerate(itertools.zip_longest(found, expected), 1):
            if here != wanted:
                what = f"none in row {place}" if here is None else f"{here} there"
                raise RunError(
                    f"Expected {name} {wanted} in row {place} of {self.metrics}, to go on after {name} {expected[-1]}, found "
                    f"{what}. Mend the file, or train in a new --logdir."
                )

    def load_model(self) -> tf.keras.Model:
        """Returns the final model, not compiled; raises `RunError` if there is none."""
        try:
            return tf.keras.models.load_model(self.model, compile=False)
        except (OSError, ValueError) as error:
            raise RunError(f"Expected a trained model in {self.model}, found none: {error}") from error

    def load_weights(self, model: tf.keras.Model) -> None:
        """Sets the weights of `model` to those of the final model; raises `RunError` where there are none, or others.

        Nothing else of the file is used, so layers with code in them, such as `Lambda`, need not be read from it.
        """
        if not self.model.exists():
            raise RunError(f"Expected a trained model in {self.model}, found none.")
        try:
            model.load_weights(self.model)
            arrays = _count_arrays(self.model)
        except Exception as error:  # Whatever Keras, HDF5 and zip make of other files and of damaged ones.
            why = first_line(error) or type(error).__name__
            raise RunError(f"Expected weights of this model in {self.model}, found others or a damaged file: {why}.") from error
        if arrays > len(model.weights):
            raise RunError(f"Expected {len(model.weights)} arrays of weights in {self.model}, found {arrays}: another model.")

    def read_settings(self, expected: type[T]) -> T:
        """Returns the settings of the run; raises `RunError` if there are none, or if they are of another task."""
        try:
            stored = json.loads(self.settings.read_text())
            if stored["task"] == expected.task:
                return settings.from_plain(expected, stored["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"Expected a run with its settings.json in {self.path}, found {error!r}.") from error
        raise RunError(f"Expected a run of {expected.task} in {self.path}, found one of {stored['task']}.")

    def write_settings(self, training: Training, data_name: str, notes: tuple[str, ...], **more: Any) -> None:
        """Writes the settings, and `more` that a run may change when it goes on."""
        stored: dict[str, Any] = {
            "task": training.task,
            "settings": settings.as_plain(training),
            "data": data_name,
            "notes": list(notes),
            "versions": versions(),
            **more,
        }
        write_whole(self.settings, json.dumps(stored, indent=2) + "\n")


def _count_arrays(path: pathlib.Path) -> int:
    """Returns how many arrays of weights a Keras file has."""
    names: list[str] = []
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as stored, h5py.File(stored) as file:
        file.visititems(lambda name, value: names.append(name) if isinstance(value, h5py.Dataset) else None)
    return sum(not name.startswith(("optimizer/", "metrics/")) for name in names)


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file, all of it or nothing."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version(), "tensorflow": tf.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["tensorflow_federated"] = importlib.metadata.version("tensorflow-federated")
    return found


def run_path(logdir: Optional[Union[str, pathlib.Path]], resume: bool, *names: str) -> pathlib.Path:
    """Returns `logdir`, or where there is none a new folder in `logs/` with a name made of `names` and the time.

    Raises:
      RunError: If a run shall go on, and there is no `logdir`; or if the folder can't be made.
    """
    if logdir:
        return pathlib.Path(logdir)
    if resume:
        raise RunError("Expected the run to go on with, found no --logdir.")
    name = re.sub(r"[^\w.+=-]", "", "_".join(names).replace("/", "_"))  # A SPEC has characters that folders had better not.
    started = pathlib.Path("logs") / f"{name}_{datetime.datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        path = started if number == 1 else started.with_name(f"{started.name}_{number}")
        with contextlib.suppress(FileExistsError), _made(path):  # Another training began in this second.
            path.mkdir(parents=True)
            break
    return path


@contextlib.contextmanager
def open_run(
    path: pathlib.Path, training: Training, resume: bool, overwrite: bool, sources: Optional[Mapping[str, str]] = None
) -> Iterator[RunDirectory]:
    """Makes `path` the run directory of `training`, and keeps others out of it meanwhile.

    Args:
      path: Where; made if it does not exist.
      training: The settings of the training that will run there.
      resume: Go on with the run in `path`, which must have had the same settings; more rounds or epochs are allowed.
      overwrite: Delete a run in `path` first.
      sources: What the training learns from beyond its settings, in a few words each, which a run must go on with.

    Raises:
      RunError: If another run is in `path`, or other settings or sources, or damaged metrics; or if the folder can't be made.
    """
    if resume and overwrite:
        raise RunError("Expected --resume or --overwrite, found both.")
    settings.as_plain(training)  # Refused before anything is written.
    run = RunDirectory(path)
    with _made(path):
        if path.exists() and not path.is_dir():
            raise RunError(f"Expected a folder for the run's files, found the file {path}.")
        if resume:
            _check_same_settings(run, training)
            _check_same_sources(run, sources or {})
            if isinstance(training, Experiment) and run.metrics.exists():
                run.read_metrics()
        elif not overwrite and path.exists() and any(path.iterdir()):
            raise RunError(
                f"Expected a new or empty folder for this run, found {path} in use. "
                "Use --resume to go on with the run in it, --overwrite to replace it, or another --logdir."
            )
        path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if overwrite:
            _delete_run(path)
        yield run


@contextlib.contextmanager
def _made(path: pathlib.Path) -> Iterator[None]:
    """Makes a `RunError` of what the system says where a run's folder can't be made or looked into."""
    try:
        yield
    except FileExistsError:
        raise  # Found by others as what it is.
    except OSError as error:
        raise RunError(
            f"Expected a folder for the run's files that can be made, found {path}: {error.strerror or error}. "
            "Use another --logdir, on a disk that can be written to."
        ) from error


@contextlib.contextmanager
def told(run: RunDirectory) -> Iterator[None]:
    """Makes a `RunError` of what TensorFlow or the system say when they can't go on, such as on a full disk."""
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        why = error.message if isinstance(error, tf.errors.OpError) else error
        go_on = f" Once that is mended, it goes on with --resume --logdir {run.path}." if run.settings.exists() else ""
        raise RunError(f"The training in {run.path} stopped: {first_line(why)}.{go_on}") from error


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    folder = os.open(path, os.O_RDONLY)  # A lock on the folder leaves no file, and the kernel drops it with the process.
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(f"Expected no other process to train in {path}, found one. Use another --logdir.") from None
    finally:
        os.close(folder)


def _delete_run(path: pathlib.Path) -> None:
    for name in [*_OWN_FILES, *(events.name for events in path.rglob("events.out.tfevents.*"))]:
        target = path / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _check_same_settings(run: RunDirectory, training: Training) -> None:
    before, now = settings.as_plain(run.read_settings(type(training))), settings.as_plain(training)
    other = [
        f"{name} {before.get(name)} then, {now[name]} now"
        for name in now
        if name not in _LENGTHS and before.get(name) != now[name]
    ]
    if other:
        raise RunError(f"Expected the settings of the run in {run.path} to resume it, found others: {'; '.join(other)}.")
    for name in now.keys() & _LENGTHS:
        if now[name] < before[name]:
            raise RunError(f"Expected at least the {before[name]} {name} of the run in {run.path}, found {now[name]}.")


def _check_same_sources(run: RunDirectory, sources: Mapping[str, str]) -> None:
    before = json.loads(run.settings.read_text()).get("sources", {})  # A run of an earlier version has none.
    for name, now in sources.items():
        if before.get(name, now) != now:
            raise RunError(
                f"Expected the {name} of the run in {run.path} to resume it, found others: {before[name]} then, {now} now. "
                "Use those of then, or a new --logdir."
            )
