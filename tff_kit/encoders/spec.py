"""Encoders by name: what `--broadcast` and `--mean` accept.

    SPEC       LARGE, or LARGE/SMALL
    LARGE      a chain: encodes variables of more elements than the threshold
    SMALL      a chain: encodes the others; without it they travel as they are
    chain      STAGE, or STAGE+STAGE and so on: each encodes what the one before puts out
    STAGE      NAME, or NAME:ARGUMENT,ARGUMENT and so on: in order, or as name=value; those with a default may be left out

Such as `uniform:8`, `rotate+uniform:4,dithered`, `eden:0.5`, `topk:0.01+uniform:6`, `step:1,price=0.1+entropy/uniform:8`. The
stages with their arguments are listed at `_STAGES`, with what they take and put out: numbers become fewer or other
numbers, or integers, and these become bits. Integers from a known range are packed where no coder follows.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from typing import Any, Callable, Optional, Union

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.eden import EdenStage
from tff_kit.encoders.entropy import EntropyCodingStage
from tff_kit.encoders.low_rank import LowRankStage
from tff_kit.encoders.packing import BitpackingStage
from tff_kit.encoders.quantization import StepQuantizationStage, UniformQuantizationStage
from tff_kit.encoders.rate_control import RateControlStage
from tff_kit.encoders.rice import RiceCodingStage
from tff_kit.encoders.rotation import BLOCK, RotationStage
from tff_kit.encoders.sparsification import RandomKStage, TopKStage

THRESHOLD = 10_000  # Elements; the seed's. Biases are sensitive to error, and small.

EncoderFactory = Callable[[int], te.core.Encoder]  # From a seed.


class SpecError(ValueError):
    """A SPEC that names no encoder."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A stage and what becomes of its tensors."""

    stage: Union[te.core.EncodingStageInterface, te.core.AdaptiveEncodingStageInterface]
    key: Optional[str] = None
    """Of the tensor that the next stage encodes; None where there can be no next."""
    coder: Optional[te.core.EncodingStageInterface] = None
    """What encodes that tensor where no stage follows."""
    leaves: dict[str, te.core.EncodingStageInterface] = dataclasses.field(default_factory=dict)
    """What encodes other tensors in any case."""
    bare_is_refused: bool = False
    """Whether that tensor has to be encoded by something."""


def _identity() -> Callable[[int], list[_Part]]:
    return lambda seed: [_Part(te.stages.IdentityEncodingStage())]


def _tensor_encoding(bits: int) -> Callable[[int], list[_Part]]:
    # The seed's encoder. Its own quantization stage draws from a stream that no killed run can repeat, hence ours, which
    # has the same levels; the packing, and so every bit that travels, is its own.
    packing, flatten = te.stages.BitpackingEncodingStage, te.stages.FlattenEncodingStage
    return lambda seed: [
        _Part(flatten(), flatten.ENCODED_VALUES_KEY),
        _Part(UniformQuantizationStage(bits, seed), UniformQuantizationStage.LEVELS_KEY),
        _Part(packing(bits)),
    ]


def _uniform(bits: int, rounding: str = "stochastic", block: Optional[int] = None) -> Callable[[int], list[_Part]]:
    stage = UniformQuantizationStage
    return lambda seed: [_Part(stage(bits, seed, rounding, block), stage.LEVELS_KEY, BitpackingStage(bits))]


def _step(
    step: float, rounding: str = "nearest", price: float = 0.0, centroids: bool = False, unbiased: bool = False
) -> Callable[[int], list[_Part]]:
    stage = StepQuantizationStage
    return lambda seed: [_Part(stage(step, seed, rounding, price, centroids, unbiased), stage.LEVELS_KEY, bare_is_refused=True)]


def _rate(bits: float, price: float = 0.0, centroids: bool = False, unbiased: bool = False) -> Callable[[int], list[_Part]]:
    stage = RateControlStage
    return lambda seed: [_Part(stage(bits, price, centroids, unbiased), stage.LEVELS_KEY, bare_is_refused=True)]


def _rotate(block: int = BLOCK) -> Callable[[int], list[_Part]]:
    return lambda seed: [_Part(RotationStage(block, seed), RotationStage.ROTATED_KEY)]


def _eden(rate: float, block: int = BLOCK, unbiased: bool = True) -> Callable[[int], list[_Part]]:
    stage = EdenStage(rate, block, unbiased)
    fine = BitpackingStage(stage.bits)
    if stage.coarse_bits:
        part = _Part(stage, leaves={stage.CODES_KEY: fine, stage.COARSE_CODES_KEY: BitpackingStage(stage.coarse_bits)})
    else:
        part = _Part(stage, stage.CODES_KEY, fine)
    return lambda seed: [*_rotate(block)(seed), part]


def _low_rank(rank: int, rows: Optional[int] = None) -> Callable[[int], list[_Part]]:
    return lambda seed: [_Part(LowRankStage(rank, rows), LowRankStage.FACTORS_KEY)]


def _topk(fraction: float) -> Callable[[int], list[_Part]]:
    leaves: dict = {TopKStage.GAPS_KEY: RiceCodingStage(signed=False)}
    return lambda seed: [_Part(TopKStage(fraction), TopKStage.VALUES_KEY, leaves=leaves)]


def _randk(fraction: float) -> Callable[[int], list[_Part]]:
    return lambda seed: [_Part(RandomKStage(fraction, seed), RandomKStage.VALUES_KEY)]


def _coder(stage: Callable[[], te.core.EncodingStageInterface]) -> Callable[[], Callable[[int], list[_Part]]]:
    return lambda: lambda seed: [_Part(stage())]


@dataclasses.dataclass(frozen=True)
class _Stage:
    make: Callable[..., Callable[[int], list[_Part]]]
    """Takes the arguments and returns a function from a seed to the stages."""
    takes: str
    gives: str


_ALL, _NUMBERS, _INTEGERS, _BITS = "a whole variable", "numbers", "integers", "bits"
_STAGES = {
    "identity": _Stage(_identity, _ALL, _BITS),  # Every element as it is.
    "tensor_encoding": _Stage(_tensor_encoding, _ALL, _BITS),  # The seed's: stochastic uniform, 28 of 32 bits used.
    "uniform": _Stage(_uniform, _NUMBERS, _INTEGERS),  # 2^bits levels between extremes, of blocks where block is given.
    "step": _Stage(_step, _NUMBERS, _INTEGERS),  # Multiples of step x root mean square; needs a coder.
    "rate": _Stage(_rate, _NUMBERS, _INTEGERS),  # The same, with a step that follows the bits of earlier rounds.
    "rotate": _Stage(_rotate, _NUMBERS, _NUMBERS),  # Randomized Hadamard rotation.
    "eden": _Stage(_eden, _NUMBERS, _INTEGERS),  # Rotation and Lloyd-Max centroids; eden:1 is DRIVE.
    "topk": _Stage(_topk, _NUMBERS, _NUMBERS),  # The largest elements, this share of them, and where they are.
    "randk": _Stage(_randk, _NUMBERS, _NUMBERS),  # Random elements, this share of them.
    "lowrank": _Stage(_low_rank, _NUMBERS, _NUMBERS),  # The best matrix of this rank, as two factors.
    "entropy": _Stage(_coder(EntropyCodingStage), _INTEGERS, _BITS),  # rANS by the integers' own frequencies.
    "rice": _Stage(_coder(RiceCodingStage), _INTEGERS, _BITS),  # Golomb-Rice coding.
}
_BUILT_IN = tuple(_STAGES)


def add_stage(
    name: str,
    make: Callable[..., te.core.EncodingStageInterface],
    key: Optional[str] = None,
    integers: bool = False,
    coder: Optional[te.core.EncodingStageInterface] = None,
) -> None:
    """Makes a stage of one's own available as NAME in every SPEC of this process.

    Args:
      name: What it goes by, lower-case letters, digits and _; another stage of one's own with this name is replaced.
      make: Returns the stage. Its parameters are the stage's ARGUMENTs, annotated with int, float, bool or str.
      key: Of the tensor, in what the stage puts out, that a stage behind it may encode; `None` where none may follow.
      integers: Whether that tensor holds integers, which a coder can follow, or numbers, as the stage was given.
      coder: What encodes that tensor where no stage follows. Without it numbers travel as they are, and integers are refused.

    Raises:
      ValueError: If `name` is not such a name, or that of a stage that was here already.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in _BUILT_IN:
        raise ValueError(
            f"Expected a name of lower-case letters, digits and _ that is not one of {', '.join(_BUILT_IN)}; found {name!r}."
        )

    @functools.wraps(make)  # SPEC's arguments are parsed by its signature.
    def parts(**arguments):
        return lambda seed: [_Part(make(**arguments), key, coder, bare_is_refused=integers)]

    _STAGES[name] = _Stage(parts, _NUMBERS, _BITS if key is None else _INTEGERS if integers else _NUMBERS)


def parse_spec(spec: str) -> tuple[EncoderFactory, EncoderFactory]:
    """Returns functions that make the encoders that `spec` names, of large and of small variables, from a seed.

    The seed is for their random draws.

    Raises:
      SpecError: If `spec` names no encoder. The message tells which stages there are.
    """
    chains = spec.split("/")
    if len(chains) > 2:
        raise SpecError(f"Expected an encoder, or one of large and one of small variables, LARGE/SMALL; found {spec!r}.")
    large, small = [_chain(chain, spec) for chain in [*chains, "identity"][:2]]
    return large, small


def _chain(chain: str, spec: str) -> EncoderFactory:
    texts = chain.split("+")
    names = [text.partition(":")[0] for text in texts]
    for name, before in zip(names, [None, *names]):
        if name not in _STAGES:
            raise SpecError(
                f"Expected STAGE, or STAGE+STAGE, each STAGE one of {', '.join(_STAGES)}; found {name!r} in {spec!r}."
            )
        takes, found = _STAGES[name].takes, _STAGES[before].gives if before else _ALL
        if takes != found and not (takes == _NUMBERS and found == _ALL):
            source = f"{before!r} puts out {found}" if before else f"it is given {found}"
            raise SpecError(f"Expected {name!r} where there are {takes}, found it where {source}, in {spec!r}.")
    makers = [_maker(text, spec) for text in texts]

    def make(seed: int) -> te.core.Encoder:
        return _compose([part for maker in makers for part in maker(seed)]).make()

    try:
        make(0)
    except ValueError as error:
        raise SpecError(f"Expected stages that can follow each other, found {spec!r}: {error}") from None
    return make


def _maker(text: str, spec: str) -> Callable[[int], list[_Part]]:
    name, colon, arguments = text.partition(":")
    make = _STAGES[name].make
    try:
        maker = make(**_arguments(make, arguments.split(",") if colon else []))
        maker(0)  # The stages refuse what they can't be made of.
    except ValueError as error:
        raise SpecError(
            f"Expected {_usage(name)}, found {text!r} in {spec!r}. {error} Stages are {', '.join(_STAGES)}."
        ) from None
    return maker


def _compose(parts: list[_Part]) -> te.core.EncoderComposer:
    composer = None
    for part in reversed(parts):
        if composer is not None and part.key is None:
            raise ValueError(f"what {part.stage.name} puts out has its coders already.")
        if composer is not None:
            composer = composer.add_parent(part.stage, part.key)
        else:
            composer = te.core.EncoderComposer(part.stage)
            if part.coder is not None:
                composer.add_child(part.coder, part.key)
            elif part.bare_is_refused:
                raise ValueError(f"the integers of {part.stage.name} have no bounds and need a coder.")
        for key, coder in part.leaves.items():
            composer.add_child(coder, key)
    return composer


def _arguments(make: Callable, texts: list[str]) -> dict[str, Any]:
    """Returns the arguments of `make` that `texts` are, in order or as name=value, in the types that it asks for."""
    types = {name: typing.get_type_hints(make)[name] for name in inspect.signature(make).parameters}
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
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.default is parameter.empty and name not in found:
            raise ValueError(f"Expected {name}, found none.")
    return found


_WHOLE = ("[0-9]+", int, "a whole number")
_VALUES: dict[Any, tuple[str, Callable[[str], Any], str]] = {
    int: _WHOLE,
    Optional[int]: _WHOLE,
    float: (r"([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?", float, "a number"),
    bool: ("yes|no", "yes".__eq__, "yes or no"),
    str: ("[a-z]*", str, "a word"),
}


def _usage(name: str) -> str:
    arguments = ""
    for parameter in inspect.signature(_STAGES[name].make).parameters.values():
        comma = "," if arguments else ":"
        text = f"{comma}{parameter.name.upper()}"
        arguments += text if parameter.default is parameter.empty else f"[{text}]"
    return name + arguments


def build_broadcast_encoder_fn(
    spec: str = "tensor_encoding:8", threshold: int = THRESHOLD, seed: int = 0
) -> Callable[[tf.TensorSpec], te.core.SimpleEncoder]:
    """Returns a function from a variable's `tf.TensorSpec` to the encoder that broadcasts it.

    Args:
      spec: The encoder of variables with more than `threshold` elements, and after a slash that of the others; without it
        they travel as they are. Stages chained by `+`, such as `uniform:8` or `lowrank:8+step:1+entropy/uniform:8`;
        `docs/encoders.md` lists them, and the message of a SpecError.
      threshold: In elements. 0 makes all variables large.
      seed: For the encoder's random draws.

    Raises:
      SpecError: If `spec` names no encoder.
    """
    return _encoder_fn(spec, threshold, seed, te.encoders.as_simple_encoder)


def build_mean_encoder_fn(
    spec: str = "tensor_encoding:8", threshold: int = THRESHOLD, seed: int = 0
) -> Callable[[tf.TensorSpec], te.core.GatherEncoder]:
    """Returns a function from a variable's `tf.TensorSpec` to the encoder of the clients' updates to it.

    Args:
      spec: As of `build_broadcast_encoder_fn`.
      threshold: Likewise.
      seed: Likewise.

    Raises:
      SpecError: If `spec` names no encoder.
    """
    return _encoder_fn(spec, threshold, seed, te.encoders.as_gather_encoder)


def _encoder_fn(spec: str, threshold: int, seed: int, wrap: Callable) -> Callable:
    make_large, make_small = parse_spec(spec)

    def encoder_fn(value: tf.TensorSpec):
        value = tf.TensorSpec(value.shape, value.dtype)
        if not value.shape.is_fully_defined():
            raise ValueError(f"Expected a variable of fully known shape, found {value}. Encoders are made for one shape.")
        make = make_large if value.shape.num_elements() > threshold else make_small
        return wrap(make(seed), value)

    return encoder_fn
