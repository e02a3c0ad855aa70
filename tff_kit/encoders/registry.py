"""The stages that a SPEC can name: what makes each, what it takes and what it puts out.

Numbers become fewer or other numbers, or integers, and these become bits. Integers from a known range are packed where no
coder follows.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Callable, Optional, Union

from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.auto import AutoStage
from tff_kit.encoders.eden import EdenStage
from tff_kit.encoders.entropy import EntropyCodingStage
from tff_kit.encoders.low_rank import LowRankStage
from tff_kit.encoders.packing import BitpackingStage
from tff_kit.encoders.quantization import StepQuantizationStage, UniformQuantizationStage
from tff_kit.encoders.rate_control import RateControlStage
from tff_kit.encoders.rice import RiceCodingStage
from tff_kit.encoders.rotation import BLOCK, RotationStage
from tff_kit.encoders.sparsification import RandomKStage, TopKStage


@dataclasses.dataclass(frozen=True)
class Part:
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


def _identity() -> Callable[[int], list[Part]]:
    return lambda seed: [Part(te.stages.IdentityEncodingStage())]


def _tensor_encoding(bits: int) -> Callable[[int], list[Part]]:
    # The seed's encoder. Its own quantization stage draws from a stream that no killed run can repeat, hence ours, which
    # has the same levels; the packing, and so every bit that travels, is its own.
    packing, flatten = te.stages.BitpackingEncodingStage, te.stages.FlattenEncodingStage
    return lambda seed: [
        Part(flatten(), flatten.ENCODED_VALUES_KEY),
        Part(UniformQuantizationStage(bits, seed), UniformQuantizationStage.LEVELS_KEY),
        Part(packing(bits)),
    ]


def _uniform(bits: int, rounding: str = "stochastic", block: Optional[int] = None) -> Callable[[int], list[Part]]:
    stage = UniformQuantizationStage
    return lambda seed: [Part(stage(bits, seed, rounding, block), stage.LEVELS_KEY, BitpackingStage(bits))]


def _step(
    step: float, rounding: str = "nearest", price: float = 0.0, centroids: bool = False, unbiased: bool = False
) -> Callable[[int], list[Part]]:
    stage = StepQuantizationStage
    return lambda seed: [Part(stage(step, seed, rounding, price, centroids, unbiased), stage.LEVELS_KEY, bare_is_refused=True)]


def _rate(bits: float, price: float = 0.0, centroids: bool = False, unbiased: bool = False) -> Callable[[int], list[Part]]:
    stage = RateControlStage
    return lambda seed: [Part(stage(bits, price, centroids, unbiased), stage.LEVELS_KEY, bare_is_refused=True)]


def _rotate(block: int = BLOCK) -> Callable[[int], list[Part]]:
    return lambda seed: [Part(RotationStage(block, seed), RotationStage.ROTATED_KEY)]


def _eden(rate: float, block: int = BLOCK, unbiased: bool = True) -> Callable[[int], list[Part]]:
    stage = EdenStage(rate, block, unbiased)
    fine = BitpackingStage(stage.bits)
    if stage.coarse_bits:
        part = Part(stage, leaves={stage.CODES_KEY: fine, stage.COARSE_CODES_KEY: BitpackingStage(stage.coarse_bits)})
    else:
        part = Part(stage, stage.CODES_KEY, fine)
    return lambda seed: [*_rotate(block)(seed), part]


def _low_rank(rank: int, rows: Optional[int] = None) -> Callable[[int], list[Part]]:
    return lambda seed: [Part(LowRankStage(rank, rows), LowRankStage.FACTORS_KEY)]


def _auto(step: float, rank: int = 32, lost: float = 1.0) -> Callable[[int], list[Part]]:
    return lambda seed: [Part(AutoStage(step, rank, lost))]


def _topk(fraction: float) -> Callable[[int], list[Part]]:
    leaves: dict = {TopKStage.GAPS_KEY: RiceCodingStage(signed=False)}
    return lambda seed: [Part(TopKStage(fraction), TopKStage.VALUES_KEY, leaves=leaves)]


def _randk(fraction: float) -> Callable[[int], list[Part]]:
    return lambda seed: [Part(RandomKStage(fraction, seed), RandomKStage.VALUES_KEY)]


def _coder(stage: Callable[[], te.core.EncodingStageInterface]) -> Callable[[], Callable[[int], list[Part]]]:
    return lambda: lambda seed: [Part(stage())]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stage's line in the table."""

    make: Callable[..., Callable[[int], list[Part]]]
    """Takes the arguments and returns a function from a seed to the stages."""
    takes: str
    gives: str


ALL, NUMBERS, INTEGERS, BITS = "a whole variable", "numbers", "integers", "bits"
STAGES = {
    "identity": Entry(_identity, ALL, BITS),  # Every element as it is.
    "tensor_encoding": Entry(_tensor_encoding, ALL, BITS),  # The seed's: stochastic uniform, 28 of 32 bits used.
    "uniform": Entry(_uniform, NUMBERS, INTEGERS),  # 2^bits levels between extremes, of blocks where block is given.
    "step": Entry(_step, NUMBERS, INTEGERS),  # Multiples of step x root mean square; needs a coder.
    "rate": Entry(_rate, NUMBERS, INTEGERS),  # The same, with a step that follows the bits of earlier rounds.
    "rotate": Entry(_rotate, NUMBERS, NUMBERS),  # Randomized Hadamard rotation.
    "eden": Entry(_eden, NUMBERS, INTEGERS),  # Rotation and Lloyd-Max centroids; eden:1 is DRIVE.
    "topk": Entry(_topk, NUMBERS, NUMBERS),  # The largest elements, this share of them, and where they are.
    "randk": Entry(_randk, NUMBERS, NUMBERS),  # Random elements, this share of them.
    "lowrank": Entry(_low_rank, NUMBERS, NUMBERS),  # The best matrix of this rank, as two factors.
    "entropy": Entry(_coder(EntropyCodingStage), INTEGERS, BITS),  # rANS by the integers' own frequencies.
    "rice": Entry(_coder(RiceCodingStage), INTEGERS, BITS),  # Golomb-Rice coding.
    "auto": Entry(_auto, ALL, BITS),  # All variables together: low rank where it pays, one step, what is worth its bits.
}
JOINING = ("auto",)
"""Stages of which one encodes all variables together."""
_BUILT_IN = tuple(STAGES)


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
        return lambda seed: [Part(make(**arguments), key, coder, bare_is_refused=integers)]

    STAGES[name] = Entry(parts, NUMBERS, BITS if key is None else INTEGERS if integers else NUMBERS)


def compose(parts: list[Part]) -> te.core.EncoderComposer:
    """Chains `parts`; a ValueError if they can't follow each other."""
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
