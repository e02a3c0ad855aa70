"""Whether the TensorFlow coder and the reference decoder, written from docs/format.md alone, say the same of the same bytes.

    python -m benchmarks.format_agreement

Encodes integers of many distributions, shapes and dtypes, decodes each payload by both decoders and compares every element with
what was encoded. Every fourth payload is then altered in a few bytes: both decoders have to refuse it, or neither. Writes
results/encoders/format_agreement.csv; ends with an error if the decoders disagree.
"""

from __future__ import annotations

import collections
import pathlib
import sys

import numpy as np
import tensorflow as tf
import tyro
from rich.progress import track

from benchmarks import results
from tff_kit.encoders import EntropyCodingStage
from tff_kit.encoders.entropy import stage as coders
from tff_kit.encoders.entropy.header import PayloadHeader, TuplesHeader

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import reference_decoder

_STAGE = EntropyCodingStage()
_DISTRIBUTIONS = ("normal", "laplace", "standard_cauchy", "exponential", "logistic")
_LONG = 2**17  # From so many elements on there are tuples.
# Shape, dtype and share of the payloads.
_CASES = (
    ((), "float32", 2),
    ((2,), "int32", 3),
    ((5,), "uint8", 4),
    ((33,), "int64", 12),
    ((1000,), "float64", 15),
    ((4099,), "float32", 15),
    ((40, 25), "float32", 12),
    ((300, 40), "int32", 12),
    ((7, 11, 13), "int16", 10),
    ((300, 200), "float32", 12),
    ((900, 13), "float32", 12),
    ((_LONG + 5,), "float32", 3),
)


def _draw(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Returns integers of a random distribution, spread and offset, now and then with some of any size or not finite."""
    numbers = getattr(generator, generator.choice(_DISTRIBUTIONS))(size=shape)
    size = np.size(numbers)
    if size >= _LONG:
        numbers = numbers * 10 ** generator.uniform(-0.4, 1)
    elif len(shape) == 2 and generator.random() < 0.5:  # Rows and columns that differ.
        numbers = numbers * np.exp(generator.normal(size=(shape[0], 1)) - 3) * np.exp(generator.normal(size=shape[1]))
    else:
        numbers = numbers * 10 ** generator.uniform(-3, 5)
    numbers = np.round(numbers + generator.choice([0, 0, 0, 100, -(10**6)]))
    if generator.random() < 0.1:
        numbers = np.where(generator.random(shape) < 0.1, generator.integers(-(2**31), 2**31, shape), numbers)
    if np.dtype(dtype).kind == "f":
        odd = generator.choice([0, 2.0**31, np.nan, np.inf], p=[0.94, 0.02, 0.02, 0.02])
        return np.where(np.arange(size).reshape(shape) == size // 2, numbers + odd, numbers.clip(-(2**31), 2**31 - 1)).astype(
            dtype
        )
    limits = np.iinfo(dtype)
    return numbers.clip(max(limits.min, -(2**40)), min(limits.max, 2**40)).astype(dtype)


def _kind(payload: bytes) -> str:
    """Returns what kind of payload this is, as the table names it."""
    first, body = PayloadHeader.unpack(tf.constant(np.frombuffer(payload, np.uint8)))
    coder = int(first.coder)
    if coder == coders.TUPLES:
        return f"tuples of shape {int(TuplesHeader.unpack(body)[0].shape)}"
    names = {coders.ELEMENTS: "elements", coders.ROWS: "rows", coders.VERBATIM: "verbatim", coders.NOT_FINITE: "not finite"}
    return names[coder]


def _alter(generator: np.random.Generator, payload: bytes) -> bytes:
    """Returns the payload with one to three bytes altered, near its start half of the time, or cut short."""
    if generator.random() < 0.2:
        return payload[: generator.integers(len(payload))]
    altered = bytearray(payload)
    end = len(payload) if generator.random() < 0.5 else min(len(payload), 40)
    for at in generator.integers(end, size=generator.integers(1, 4)):
        altered[at] ^= int(generator.integers(1, 256))
    return bytes(altered)


class _Coder:
    """The TensorFlow coder for one shape and dtype, each way a graph."""

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self._shape, self._dtype = shape, tf.as_dtype(dtype)
        self._encode = tf.function(self._encode_graph, input_signature=[tf.TensorSpec(shape, self._dtype)])
        self._decode = tf.function(self._decode_graph, input_signature=[tf.TensorSpec([None], tf.uint8)])

    def _encode_graph(self, x: tf.Tensor) -> tf.Tensor:
        return _STAGE.encode(x, {})[_STAGE.PAYLOAD_KEY]

    def _decode_graph(self, payload: tf.Tensor) -> tf.Tensor:
        encoded = _STAGE.tag(collections.OrderedDict([(_STAGE.PAYLOAD_KEY, payload)]), self._dtype)
        return _STAGE.decode(encoded, {}, shape=list(self._shape))

    def encode(self, x: np.ndarray) -> bytes:
        return self._encode(tf.constant(x)).numpy().tobytes()

    def decode(self, payload: bytes) -> np.ndarray:
        return self._decode(tf.constant(np.frombuffer(payload, np.uint8))).numpy()

    def refuses(self, payload: bytes) -> bool:
        try:
            self.decode(payload)
        except tf.errors.InvalidArgumentError:
            return True
        return False


def _reference_refuses(payload: bytes, x: np.ndarray) -> bool:
    try:
        reference_decoder.decode(payload, x.shape, x.dtype)
    except reference_decoder.PayloadError:
        return True
    return False


def _agree(coder: _Coder, x: np.ndarray, payload: bytes) -> bool:
    """Returns whether both decoders return `x`, or NaN where it is not finite, of its dtype and shape."""
    expected = x if np.isfinite(x).all() else np.full_like(x, np.nan)
    both = coder.decode(payload), reference_decoder.decode(payload, x.shape, x.dtype)
    return all(y.dtype == x.dtype and np.array_equal(y, expected, equal_nan=x.dtype.kind == "f") for y in both)


def main(payloads: int = 10_000, seed: int = 0, quick: bool = False) -> None:
    """Compares the decoders and writes the results.

    Args:
        payloads: How many, at least.
        seed: Of what is encoded and altered.
        quick: Compare a few, into logs/results-quick/.
    """
    generator = np.random.default_rng(seed)
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    cases = _CASES[3:4] if quick else _CASES  # A graph takes seconds to build.
    share = (20 if quick else payloads) / sum(weight for *_, weight in cases)
    for shape, dtype, weight in track(cases, "shapes"):
        coder = _Coder(shape, dtype)
        for k in range(int(np.ceil(share * weight))):
            x = _draw(generator, shape, dtype)
            payload = coder.encode(x)
            row = counts[_kind(payload)]
            row.update(payloads=1, elements=x.size, bytes=len(payload), disagreements=not _agree(coder, x, payload))
            if k % 4 == 0:
                altered = _alter(generator, payload)
                refused = coder.refuses(altered)
                row.update(altered=1, refused=refused, disagreements=refused != _reference_refuses(altered, x))
    names = ("payloads", "elements", "bytes", "altered", "refused", "disagreements")
    counts["all"] = sum(counts.values(), collections.Counter())
    rows = [{"kind": kind, **{name: found[name] for name in names}} for kind, found in sorted(counts.items(), key=_all_last)]
    source = results.Source(
        command="python -m benchmarks.format_agreement",
        data="random integers of five distributions, eleven shapes and seven dtypes",
        seeds=f"seed {seed}",
        spread="none: counts",
    )
    results.write("encoders/format_agreement", rows, source, quick)
    if counts["all"]["disagreements"]:
        raise SystemExit(f"Expected the decoders to agree, found {counts['all']['disagreements']} disagreements.")


def _all_last(item: tuple[str, collections.Counter]) -> tuple[bool, str]:
    return item[0] == "all", item[0]


if __name__ == "__main__":
    tyro.cli(main)
