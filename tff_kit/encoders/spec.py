"""Encoders by name: what `--broadcast` and `--mean` accept.

    SPEC       LARGE, or LARGE/SMALL
    LARGE      a chain: encodes variables of more elements than the threshold
    SMALL      a chain: encodes the others; without it they travel as they are
    chain      STAGE, or STAGE+STAGE and so on: each encodes what the one before puts out
    STAGE      NAME, or NAME:ARGUMENT,ARGUMENT and so on: in order, or as name=value; those with a default may be left out

Such as `uniform:8`, `rotate+uniform:4,dithered`, `eden:0.5`, `topk:0.01+uniform:6`, `step:1,price=0.1+entropy/uniform:8`. The
stages with their arguments are listed at `registry.STAGES`, with what they take and put out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
import typing
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders import registry
from tff_kit.encoders.joined import EncoderFn
from tff_kit.encoders.narrow import NarrowStage

THRESHOLD = 10_000  # Elements; the seed's. Biases are sensitive to error, and small.


class SpecError(ValueError):
    """A SPEC that names no encoder."""


@dataclasses.dataclass(frozen=True)
class NamedStage:
    """A stage of a chain.

    Attributes:
      name: As in a SPEC.
      arguments: All of the stage's arguments with their values, those left out too, in the order of its signature.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Returns the shortest text that names the stage with these arguments."""
        defaults = inspect.signature(registry.STAGES[self.name].make).parameters
        texts, in_order = [], True
        for name, value in self.arguments:
            if value == defaults[name].default:
                in_order = False
            else:
                texts.append(_text(value) if in_order else f"{name}={_text(value)}")
        return f"{self.name}:{','.join(texts)}" if texts else self.name

    def parts(self, seed: int) -> list[registry.Part]:
        """Returns what the stage consists of."""
        return registry.STAGES[self.name].make(**dict(self.arguments))(seed)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Stages, each of which encodes what the one before puts out."""

    stages: tuple[NamedStage, ...]

    def __str__(self) -> str:
        """Returns the shortest text that names the chain."""
        return "+".join(map(str, self.stages))

    def make(self, seed: int, dtype: tf.DType = tf.float32) -> te.core.Encoder:
        """Returns the encoder of a variable of this dtype, with a seed for its random draws.

        What is not a float travels as it is. A float narrower than float32 is encoded as float32, unless by identity.
        """
        if not dtype.is_floating:
            return _IDENTITY.make(seed)
        parts = [part for stage in self.stages for part in stage.parts(seed)]
        if dtype.size < tf.float32.size and self != _IDENTITY:
            parts.insert(0, registry.Part(NarrowStage(dtype), NarrowStage.WIDE_KEY))
        return registry.compose(parts).make()


_IDENTITY = Chain((NamedStage("identity"),))


@dataclasses.dataclass(frozen=True)
class Spec:
    """The encoders of a model's variables, as a value: `str` returns its text, equal ones encode alike.

        spec = Spec.parse("eden:.50,4096,yes/identity")
        str(spec)                       # "eden:0.5"
        spec == Spec.parse("eden:0.5")  # True
        spec.large.stages[0].arguments  # (("rate", 0.5), ("block", 4096), ("unbiased", True))

    Attributes:
      large: Encodes variables of more elements than the threshold.
      small: Encodes the others.
    """

    large: Chain
    small: Chain = _IDENTITY

    @classmethod
    def parse(cls, spec: Union[str, Spec]) -> Spec:
        """Returns the value that the text `spec` names; a value is returned as it is.

        Raises:
          SpecError: If `spec` names no encoder. The message tells which stages there are.
        """
        if isinstance(spec, Spec):
            return spec
        chains = spec.split("/")
        if len(chains) > 2:
            raise SpecError(f"Expected an encoder, or one of large and one of small variables, LARGE/SMALL; found {spec!r}.")
        parsed = cls(*[_chain(chain, spec) for chain in chains])
        if (parsed.joins and len(chains) > 1) or parsed.small.stages[0].name in registry.JOINING:
            raise SpecError(
                f"Expected {' and '.join(registry.JOINING)} for variables of all sizes, without a slash; found {spec!r}."
            )
        return parsed

    def __str__(self) -> str:
        """Returns the shortest text that names the same encoders, which `parse` turns into this value again."""
        return str(self.large) if self.small == _IDENTITY else f"{self.large}/{self.small}"

    @property
    def joins(self) -> bool:
        """Whether the variables of floats are encoded together, whatever their sizes."""
        return self.large.stages[0].name in registry.JOINING

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the text: 32 bytes, the same in every process."""
        return hashlib.sha256(str(self).encode()).digest()


def parse_spec(spec: str) -> Spec:
    """Returns the value of `spec`, as `Spec.parse`: settings are checked with it.

    Raises:
      SpecError: If `spec` names no encoder.
    """
    return Spec.parse(spec)


def _chain(text: str, spec: str) -> Chain:
    texts = text.split("+")
    names = [text.partition(":")[0] for text in texts]
    for name, before in zip(names, [None, *names]):
        _check_order(name, before, spec)
    chain = Chain(tuple(_stage(text, spec) for text in texts))
    try:
        chain.make(seed=0)
    except ValueError as error:
        raise SpecError(f"Expected stages that can follow each other, found {spec!r}: {error}") from None
    return chain


def _check_order(name: str, before: Optional[str], spec: str) -> None:
    if name not in registry.STAGES:
        raise SpecError(
            f"Expected STAGE, or STAGE+STAGE, each STAGE one of {', '.join(registry.STAGES)}; found {name!r} in {spec!r}."
        )
    takes, found = registry.STAGES[name].takes, registry.STAGES[before].gives if before else registry.ALL
    if takes != found and not (takes == registry.NUMBERS and found == registry.ALL):
        source = f"{before!r} puts out {found}" if before else f"it is given {found}"
        raise SpecError(f"Expected {name!r} where there are {takes}, found it where {source}, in {spec!r}.")


def _stage(text: str, spec: str) -> NamedStage:
    name, colon, arguments = text.partition(":")
    try:
        stage = NamedStage(name, _arguments(registry.STAGES[name].make, arguments.split(",") if colon else []))
        stage.parts(seed=0)  # The stages refuse what they can't be made of.
    except ValueError as error:
        stages = ", ".join(registry.STAGES)
        raise SpecError(f"Expected {_usage(name)}, found {text!r} in {spec!r}. {error} Stages are {stages}.") from None
    return stage


def _arguments(make: Callable, texts: list[str]) -> tuple[tuple[str, Any], ...]:
    """Returns the arguments of `make` that `texts` are, in order or as name=value, in the types that it asks for."""
    parameters = inspect.signature(make).parameters
    types = {name: typing.get_type_hints(make)[name] for name in parameters}
    found: dict[str, Any] = {}
    for position, text in enumerate(texts):
        name, equals, value = text.partition("=")
        if not equals:
            name, value = [*types, ""][min(position, len(types))], text
        if name not in types or name in found:
            raise ValueError(f"Expected {' and '.join(types) or 'no argument'}, each once; found {text!r}.")
        pattern, convert, kind = _VALUES[types[name]]
        if not re.fullmatch(pattern, value):
            raise ValueError(f"Expected {name} to be {kind}, found {value!r}.")
        found[name] = convert(value)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in found:
            raise ValueError(f"Expected {name}, found none.")
    return tuple((name, found.get(name, parameter.default)) for name, parameter in parameters.items())


_WHOLE = ("[0-9]+", int, "a whole number")
_VALUES: dict[Any, tuple[str, Callable[[str], Any], str]] = {
    int: _WHOLE,
    Optional[int]: _WHOLE,
    float: (r"([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?", float, "a number"),
    bool: ("yes|no", "yes".__eq__, "yes or no"),
    str: ("[a-z]*", str, "a word"),
}


def _text(value: Any) -> str:
    """Returns the text that is parsed as `value`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value).replace(".0e", "e").replace("+", "").removesuffix(".0")
    return str(value)


def _usage(name: str) -> str:
    arguments = ""
    for parameter in inspect.signature(registry.STAGES[name].make).parameters.values():
        comma = "," if arguments else ":"
        text = f"{comma}{parameter.name.upper()}"
        arguments += text if parameter.default is parameter.empty else f"[{text}]"
    return name + arguments


def build_broadcast_encoder_fn(
    spec: Union[str, Spec] = "tensor_encoding:8", threshold: int = THRESHOLD, seed: int = 0
) -> Callable[[tf.TensorSpec], te.core.SimpleEncoder]:
    """Returns a function from a variable's `tf.TensorSpec` to the encoder that broadcasts it.

    A variable that holds no floats travels as it is, whatever its size.

    Args:
      spec: The encoder of variables with more than `threshold` elements, and after a slash that of the others; without it
        they travel as they are. Stages chained by `+`, such as `uniform:8` or `lowrank:8+step:1+entropy/uniform:8`;
        `docs/encoders.md` lists them, and the message of a SpecError. A text, or the value of one.
      threshold: In elements. 0 makes all variables large.
      seed: For the encoder's random draws.

    Raises:
      SpecError: If `spec` names no encoder.
    """
    return _encoder_fn(spec, threshold, seed, te.encoders.as_simple_encoder)


def build_mean_encoder_fn(
    spec: Union[str, Spec] = "tensor_encoding:8", threshold: int = THRESHOLD, seed: int = 0
) -> Callable[[tf.TensorSpec], te.core.GatherEncoder]:
    """Returns a function from a variable's `tf.TensorSpec` to the encoder of the clients' updates to it.

    Args:
      spec: As of `build_broadcast_encoder_fn`.
      threshold: As of `build_broadcast_encoder_fn`.
      seed: As of `build_broadcast_encoder_fn`.

    Raises:
      SpecError: If `spec` names no encoder.
    """
    return _encoder_fn(spec, threshold, seed, te.encoders.as_gather_encoder)


def _encoder_fn(spec: Union[str, Spec], threshold: int, seed: int, wrap: Callable) -> EncoderFn:
    spec = Spec.parse(spec)

    def of_one(value: tf.TensorSpec):
        value = tf.TensorSpec(value.shape, value.dtype)
        if not value.shape.is_fully_defined():
            raise ValueError(f"Expected a variable of fully known shape, found {value}. Encoders are made for one shape.")
        chain = spec.large if value.shape.num_elements() > threshold or spec.joins else spec.small
        return wrap(chain.make(seed, value.dtype), value)

    def of_all(value: tf.TensorSpec, shapes: Sequence[tuple[int, ...]]):
        stage = spec.large.stages[0].parts(seed)[0].stage
        return wrap(te.core.EncoderComposer(stage.of_shapes(shapes)).make(), value)

    return EncoderFn(of_one, of_all if spec.joins else None)
