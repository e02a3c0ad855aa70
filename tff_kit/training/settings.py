"""Settings as JSON: what a run directory keeps of an experiment, and what a resumed run is compared with."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import pathlib
from typing import Any, TypeVar, get_type_hints

import numpy as np
from typing_extensions import get_args, get_origin

from tff_kit.experiment import SettingsError, Training

T = TypeVar("T", bound=Training)


def as_plain(training: Training) -> dict[str, Any]:
    """Returns the settings as JSON has them: paths and names of enumerations as text, tuples as lists, numbers as numbers.

    Raises:
      SettingsError: If a setting is something that JSON has no form for.
    """
    plain = {}
    for name, value in dataclasses.asdict(training).items():
        try:
            plain[name] = json.loads(json.dumps(value, default=_as_json))
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"Expected settings that can be written as JSON, found {name}={value!r}: {error}. Use text, numbers, paths, "
                "enumerations, and tuples or dicts of these."
            ) from error
    return plain


def from_plain(kind: type[T], plain: dict[str, Any]) -> T:
    """Returns the settings that `as_plain` was given; raises `KeyError`, `TypeError` or `ValueError` where they do not fit."""
    hints = get_type_hints(kind)
    return kind(**{name: _as_type(value, hints.get(name)) for name, value in plain.items()})


def _as_json(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"it is of type {type(value).__name__}")


def _as_type(value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple and isinstance(value, list):
        of = [x for x in get_args(hint) if x is not Ellipsis]
        return tuple(_as_type(x, of[min(i, len(of) - 1)]) for i, x in enumerate(value))
    for kind in (hint, *get_args(hint)):  # Of `Optional[Path]`, too.
        if not isinstance(kind, type):
            continue
        if issubclass(kind, pathlib.PurePath) and isinstance(value, str):
            return kind(value)
        if issubclass(kind, enum.Enum) and isinstance(value, str):
            return kind[value]
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return kind(**{name: _as_type(x, get_type_hints(kind).get(name)) for name, x in value.items()})
    return value
