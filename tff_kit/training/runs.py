"""Run directories: what a training leaves on disk, and who may write there.

settings.json   the experiment's settings, the data's name, versions
metrics.csv     a line a round
events.*        TensorBoard's
checkpoints/    the last states of the process, to resume from
model.keras     the final Keras model
model.safetensors, test.json   of a training without federation: the same for PyTorch, and the final test
worker.log      what TFF's worker printed
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Iterator
from typing import Any, Optional, TypeVar, Union

import tensorflow as tf

from tff_kit.errors import UserError
from tff_kit.experiment import Training

T = TypeVar("T", bound=Training)
_LENGTHS = {"rounds", "epochs"}  # The settings that a resumed run may have more of.
_OWN_FILES = ("settings.json", "metrics.csv", "model.keras", "model.safetensors", "test.json", "worker.log", "checkpoints")


class RunError(UserError, RuntimeError):
    """A run directory that can't be used as asked. The message says why, and what can be done."""


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

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.csv as numbers, `None` where there is none; raises `RunError` where there is no file."""
        try:
            with open(self.metrics, newline="") as file:
                return [{name: read_number(text) for name, text in row.items()} for row in csv.DictReader(file)]
        except (OSError, ValueError) as error:
            raise RunError(f"Expected a run with its metrics.csv in {self.path}, found {error!r}.") from error

    def load_model(self) -> tf.keras.Model:
        """Returns the final model, not compiled; raises `RunError` where there is none."""
        try:
            return tf.keras.models.load_model(self.model, compile=False)
        except (OSError, ValueError) as error:
            raise RunError(f"Expected a trained model in {self.model}, found none: {error}") from error

    def read_settings(self, expected: type[T]) -> T:
        """Returns the settings of the run; raises `RunError` where there is none, or of another task."""
        try:
            settings = json.loads(self.settings.read_text())
            if settings["task"] == expected.task:
                return expected(**settings["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"Expected a run with its settings.json in {self.path}, found {error!r}.") from error
        raise RunError(f"Expected a run of {expected.task} in {self.path}, found one of {settings['task']}.")

    def write_settings(self, training: Training, data_name: str, notes: tuple[str, ...], **more: Any) -> None:
        """Writes the settings, and `more` that a run may change when it goes on."""
        settings: dict[str, Any] = {
            "task": training.task,
            "settings": dataclasses.asdict(training),
            "data": data_name,
            "notes": list(notes),
            "versions": versions(),
            **more,
        }
        write_whole(self.settings, json.dumps(settings, indent=2) + "\n")


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


def read_number(text: str) -> Union[int, float, None]:
    """Returns the number in a cell of a CSV file, `None` for an empty one; raises `ValueError` for what is none."""
    if not text:
        return None
    return int(text) if re.fullmatch("[0-9]+", text) else float(text)


def default_path(logdir: Optional[Union[str, pathlib.Path]], *names: str) -> pathlib.Path:
    """Returns `logdir`, or where there is none a folder in `logs/` with a name made of `names` and the time."""
    if logdir:
        return pathlib.Path(logdir)
    name = re.sub(r"[^\w.+=-]", "", "_".join(names).replace("/", "_"))  # A SPEC has characters that folders had better not.
    return pathlib.Path("logs") / f"{name}_{datetime.datetime.now():%Y%m%d-%H%M%S}"


@contextlib.contextmanager
def open_run(path: pathlib.Path, training: Training, resume: bool, overwrite: bool) -> Iterator[RunDirectory]:
    """Makes `path` the run directory of `training`, and keeps others out of it meanwhile.

    Args:
      path: Where; made if it does not exist.
      training: What will run there.
      resume: Go on with the run in `path`, which must have had the same settings; more rounds or epochs are allowed.
      overwrite: Delete a run in `path` first.

    Raises:
      RunError: If another run is in `path`, or other settings.
    """
    if resume and overwrite:
        raise RunError("Expected --resume or --overwrite, found both.")
    run = RunDirectory(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"Expected a folder for the run's files, found the file {path}.")
    if resume:
        _check_same_settings(run, training)
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
    before = dataclasses.asdict(run.read_settings(type(training)))
    now = dataclasses.asdict(training)
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
