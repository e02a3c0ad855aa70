"""Checks of settings: values of the declared types, and in their ranges."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union, get_type_hints

import numpy as np
from typing_extensions import Literal, get_args, get_origin

from tff_kit.errors import UserError

_FLOAT32 = np.finfo(np.float32)
_LIMITS = {"seed": 2**32, "threshold": 2**63}  # Of NumPy's generators, and of what a message holds. Nothing computes with these.
_LIMIT = 2**31  # Of the other whole numbers, with which TensorFlow computes.


class SettingsError(UserError):
    """A setting is not valid. The message says what was expected and what was found."""


def check_types(settings: Any) -> None:
    """Raises `SettingsError` for the first setting of this package whose value is not of its declared type.

    A number of NumPy, a whole number for a float and a path for a text are taken, and become what is declared. So arithmetic on
    them is Python's, which has no 8 bits. Settings that a user's subclass adds may have any type, and are not looked at.
    """
    ours = next(base for base in type(settings).__mro__ if base.__module__.split(".")[0] == __name__.split(".")[0])
    try:
        hints = get_type_hints(type(settings))
    except NameError:  # A type of a user's own setting that exists only inside a function, or for a type checker.
        hints = get_type_hints(ours)
    for field in dataclasses.fields(ours):
        value, name = getattr(settings, field.name), field.name
        expected, taken = _as_declared(value, hints[name], _LIMITS.get(name, _LIMIT))
        if expected:
            raise SettingsError(
                f"Expected {_flag(name)} to be {expected}, found {' '.join(reprlib.repr(value).split())} of type "
                f"{type(value).__name__}. Give it such a value, as in {name}={field.default!r}."
            )
        object.__setattr__(settings, name, taken)


def _as_declared(value: Any, hint: Any, limit: int) -> tuple[Optional[str], Any]:
    """Returns what was expected where `value` is something else, otherwise `None`; and the value as its type is declared."""
    if get_origin(hint) is Union and type(None) in get_args(hint) and len(get_args(hint)) == 2:
        (hint,) = set(get_args(hint)) - {type(None)}
        expected, taken = (None, None) if value is None else _as_declared(value, hint, limit)
        return expected and f"{expected} or None", taken
    if get_origin(hint) is Literal:
        is_known = any(isinstance(value, type(one)) and value == one for one in get_args(hint))
        return None if is_known else f"one of {', '.join(map(str, get_args(hint)))}", value
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    is_bool = isinstance(value, (bool, np.bool_))
    is_whole = isinstance(value, (int, np.integer)) and not is_bool
    is_number = is_whole or isinstance(value, (float, np.floating))
    is_held = is_number and (value == 0 or _FLOAT32.tiny <= abs(value) <= _FLOAT32.max)  # False for what is not a number.
    types: dict[Any, tuple[bool, str, Callable]] = {
        bool: (is_bool, "True or False", bool),
        int: (is_whole and value < limit, f"a whole number of less than {limit}", int),
        float: (is_held, "a finite number that float32 holds", float),
        str: (isinstance(text, str), "text", lambda _: text),
    }
    is_right, expected, take = types.get(hint, (True, "", lambda _: value))
    return (None, take(value)) if is_right else (expected, value)


def check_numbers(
    settings: Any, at_least_1: Sequence[str] = (), above_0: Sequence[str] = (), at_least_0: Sequence[str] = ()
) -> None:
    """Raises `SettingsError` for the first of the named settings that is not in its range."""
    checks = (
        (at_least_1, lambda x: x >= 1, "at least 1"),
        (above_0, lambda x: x > 0, "more than 0"),
        (at_least_0, lambda x: x >= 0, "0 or more"),
    )
    for names, is_valid, expected in checks:
        for name in names:
            if not is_valid(getattr(settings, name)):
                raise SettingsError(f"Expected {_flag(name)} to be {expected}, found {getattr(settings, name)}.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
