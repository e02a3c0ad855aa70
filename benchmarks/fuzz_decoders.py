"""What decoders do with bytes that a stranger made: random bytes, and real payloads that were cut or altered.

    python -m benchmarks.fuzz_decoders --inputs 300000

Every input passes through the container, nearly always with a valid header, since a stranger can write one too. It has to
give tensors of the expected shapes and dtypes, or a PayloadError. Each stage is fuzzed in a process of its own, so that a
crash is counted and not suffered: `crashes` are other errors and ended processes, `hangs` inputs of more than 20 s. The
largest allocation is the growth of the process's resident memory during one decoding, over the bytes of the tensor.

A run that was ended goes on where it stopped. Writes results/encoders/fuzz_decoders.csv; ends with an error after a crash or
a hang.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import gc
import json
import math
import os
import pathlib
import subprocess
import sys
import time
import traceback
from typing import Union

import numpy as np
import tensorflow as tf
import tyro
from rich.progress import track

from benchmarks import results
from tff_kit import encoders
from tff_kit.encoders.message import HEADER_BYTES, Layout

SPECS = (
    "identity",
    "tensor_encoding:8",
    "tensor_encoding:5",
    "uniform:8",
    "uniform:11,dithered",
    "uniform:3,nearest,16",
    "uniform:6+rice",
    "uniform:4+entropy",
    "step:1+rice",
    "step:1,dithered+rice",
    "step:0.5,price=0.1,centroids=yes+entropy",
    "step:3+entropy",
    "rate:2+rice",
    "rate:1+entropy",
    "rotate",
    "rotate+uniform:4",
    "eden:1.5",
    "eden:2+rice",
    "topk:0.1",
    "topk:0.1+uniform:6",
    "randk:0.2+uniform:5",
    "lowrank:2",
    "lowrank:2+step:1+entropy",
)
_SMALL = ((40, 25), (7,))
_LARGE = ((512, 512),)
_MEASURED = 25  # Payloads of the large tensor a stage.
_HANGS_AFTER = 20.0  # Seconds of the clock.

Codec = Union[encoders.BroadcastCodec, encoders.MeanCodec]


class Target:
    """A codec, real payloads of it, and what it decodes to.

    Args:
      spec: The SPEC; one with a rate is used for clients' updates, the others for broadcasts.
      shapes: Those of the variables.
      dtype: That of the variables.
    """

    def __init__(self, spec: str, shapes: tuple[tuple[int, ...], ...] = _SMALL, dtype: tf.DType = tf.float32):
        self._specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
        self.codec: Codec
        if spec.startswith("rate"):
            self.codec = encoders.MeanCodec(self._specs, spec, threshold=0)
            params = self.codec.params(self.codec.initial_state())
            self.payloads = [self.codec.encode(values, 2.0, params).payload for values in self._values()]
        else:
            self.codec = encoders.BroadcastCodec(self._specs, spec, threshold=0)
            state = self.codec.initial_state()
            self.payloads = [self.codec.encode(values, state).payload for values in self._values()]

    def _values(self) -> list[list[tf.Tensor]]:
        generator = np.random.default_rng(0)
        shapes = [tuple(spec.shape) for spec in self._specs]
        kinds: list[list[np.ndarray]] = [
            [generator.normal(size=shape) for shape in shapes],
            [generator.standard_cauchy(shape) for shape in shapes],
            [generator.integers(0, 2, shape) for shape in shapes],
        ]
        return [[tf.cast(x, spec.dtype) for x, spec in zip(arrays, self._specs)] for arrays in kinds]

    def decode(self, payload: bytes) -> str:
        """Returns `decoded` or `refused`; raises where neither is right."""
        try:
            decoded = self.codec.decode(payload)
        except encoders.PayloadError as error:
            assert "\n" not in str(error), error
            return "refused"
        values = decoded["values"] if isinstance(decoded, dict) else decoded
        for value, spec in zip(values, self._specs):
            assert (value.shape, value.dtype) == (spec.shape, spec.dtype), (value.shape, value.dtype)
            assert not value.dtype.is_floating or np.isfinite(value.numpy().astype(np.float64)).all()
        return "decoded"


def mutated(generator: np.random.Generator, layout: Layout, payloads: list[bytes]) -> bytes:
    """Returns bytes that somebody might send in place of one of `payloads`."""
    payload, other = (payloads[generator.integers(len(payloads))] for _ in range(2))
    kind = generator.integers(10)
    if kind == 0:
        return generator.bytes(generator.integers(2 * len(payload)))
    if kind == 1:
        return payload[: generator.integers(len(payload))]
    if kind <= 6:
        return layout.seal(_altered(generator, payload[HEADER_BYTES:], other[HEADER_BYTES:]))
    return _with_another_field(generator, layout, payload)


def _altered(generator: np.random.Generator, body: bytes, other: bytes) -> bytes:
    kind, place = generator.integers(5), generator.integers(len(body) + 1)
    if kind == 0:
        return generator.bytes(2 * place)
    if kind == 1:
        return body[:place] + generator.bytes(generator.integers(3))
    if kind == 2:
        return body[:place] + other[place:]
    return _flipped(generator, body)


def _flipped(generator: np.random.Generator, body: bytes) -> bytes:
    flipped = np.frombuffer(body, np.uint8).copy()
    if flipped.size:
        # A coder's header is at the beginning of what it wrote: half of all flips go there.
        size = min(flipped.size, 40) if generator.integers(2) else flipped.size
        places = generator.integers(size, size=generator.integers(1, 9))
        flipped[places] ^= (1 << generator.integers(8, size=places.size)).astype(np.uint8)
    return flipped.tobytes()


def _with_another_field(generator: np.random.Generator, layout: Layout, payload: bytes) -> bytes:
    """Returns the payload with one tensor's elements, and where it varies its size, replaced."""
    tensors = [np.asarray(x.numpy()) for x in tf.nest.flatten(layout.unpack(payload))]
    specs = tf.nest.flatten(layout.tensors)
    varying = [i for i, spec in enumerate(specs) if None in spec.shape.as_list()]
    which = generator.choice(varying) if varying and generator.integers(2) else generator.integers(len(tensors))
    old, spec = tensors[which], specs[which]
    shape = [_size(generator, n) if known is None else n for n, known in zip(old.shape, spec.shape)]
    count, width = int(np.prod(shape)) * spec.dtype.size, old.size * spec.dtype.size
    raw = np.resize(np.frombuffer(old.tobytes(), np.uint8), count) if width else np.zeros(count, np.uint8)
    kind = generator.integers(5)
    if kind == 0:
        raw = np.full(count, generator.choice([0, 0x7F, 0x80, 0xFF]), np.uint8)
    elif kind == 1:
        raw = np.frombuffer(generator.bytes(count), np.uint8)
    elif kind <= 3:
        raw = np.frombuffer(_flipped(generator, raw.tobytes()), np.uint8)
    tensors[which] = np.frombuffer(raw.tobytes(), spec.dtype.as_numpy_dtype).reshape(shape)
    return layout.pack(tf.nest.pack_sequence_as(layout.tensors, tensors))


def _size(generator: np.random.Generator, size: int) -> int:
    return int(generator.choice([0, 1, max(size - 1, 0), size, size + 1, 2 * size, generator.integers(4 * size + 2)]))


@dataclasses.dataclass
class Counts:
    """What became of the inputs of one SPEC so far."""

    spec: str
    decoded: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    worst: float = 0.0
    """Seconds."""
    allocated: float = 0.0
    """Largest allocation over the bytes of the tensor."""
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def inputs(self) -> int:
        return self.decoded + self.refused + self.crashes + self.hangs

    def row(self) -> results.Row:
        """Returns the line of the results."""
        counted = {name: getattr(self, name) for name in ("inputs", "decoded", "refused", "crashes", "hangs")}
        measured = {"slowest_seconds": round(self.worst, 3), "allocated_over_tensor": round(self.allocated, 2)}
        return {"encoder": self.spec, **counted, **measured}

    def add(self, outcome: str, seconds: float) -> None:
        """Counts one input."""
        if outcome not in ("decoded", "refused"):
            self.failures.append(f"input {self.inputs}: {outcome}")
            outcome = outcome.partition(":")[0]
        setattr(self, outcome, getattr(self, outcome) + 1)
        self.worst = max(self.worst, seconds)


def fuzz(number: int, first: int, count: int) -> None:
    """Decodes the inputs `first` to `first + count` of a SPEC, and prints outcome and seconds of each."""
    target = Target(SPECS[number])
    for payload in target.payloads:
        target.decode(payload)  # The first run of a graph also optimizes it.
    for i in range(first, first + count):
        payload = mutated(np.random.default_rng([number, i]), target.codec.layout, target.payloads)
        faulthandler.dump_traceback_later(_HANGS_AFTER, exit=True)
        began = time.perf_counter()
        try:
            outcome = target.decode(payload)
        except Exception:
            outcome = "crashes: " + traceback.format_exc(limit=-2)[-400:]
        seconds = time.perf_counter() - began
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([outcome, seconds]), flush=True)


def measure(number: int) -> None:
    """Prints the largest allocation of decoding altered payloads of a large tensor, over its bytes."""
    target = Target(SPECS[number], _LARGE)
    size = 4 * math.prod(_LARGE[0])
    target.decode(target.payloads[0])
    largest = 0.0
    for i in range(_MEASURED):
        payload = mutated(np.random.default_rng([number, i]), target.codec.layout, target.payloads)
        before = _resident_bytes()
        target.decode(payload)
        largest = max(largest, float(_peak_bytes() - before) / size)
    print(json.dumps(largest))


def _resident_bytes() -> int:
    """Gives what is free back to the system, forgets the peak, and returns what is resident."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak_bytes() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _run(number: int, wanted: int, counts: Counts, file: pathlib.Path) -> None:
    """Fuzzes a SPEC in another process until it has `wanted` inputs; a process that ends early costs one input."""
    while counts.inputs < wanted:
        before = counts.inputs
        with _child("fuzz", number, counts.inputs, wanted - counts.inputs) as child:
            for line in child.stdout or ():
                counts.add(*json.loads(line))
                if counts.inputs % 500 == 0:
                    _save(counts, file)
        if counts.inputs == before:
            raise SystemExit(f"Expected a process that decodes messages of {counts.spec}, found exit status {child.returncode}.")
        if child.returncode:
            counts.add("hangs" if child.returncode == 1 else f"crashes: exit status {child.returncode}", _HANGS_AFTER)
        _save(counts, file)
    if not counts.allocated:
        with _child("measure", number) as child:
            counts.allocated = json.loads(child.communicate()[0])
        _save(counts, file)


def _child(what: str, *arguments: int) -> subprocess.Popen:
    code = f"import sys; from benchmarks.fuzz_decoders import {what}; {what}(*map(int, sys.argv[1:]))"
    one_thread = {"TF_NUM_INTEROP_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}  # Small graphs gain nothing by more.
    environment = {**os.environ, **one_thread, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def _save(counts: Counts, file: pathlib.Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(counts), indent=1))
    part.replace(file)


def main(inputs: int = 300_000, quick: bool = False) -> None:
    """Fuzzes and writes the results.

    Args:
      inputs: How many, in equal parts for all SPECs.
      quick: Try a few inputs of two SPECs, into logs/results-quick/.
    """
    specs = SPECS[3:5] if quick else SPECS
    wanted = 20 if quick else -(-inputs // len(specs))
    folder = results.runs_folder("fuzz_decoders", quick)
    rows = []
    for spec in track(specs, "fuzzing"):
        file = folder / f"{spec.replace('/', '_')}.json"
        counts = Counts(**json.loads(file.read_text())) if file.exists() else Counts(spec)
        _run(SPECS.index(spec), wanted, counts, file)
        rows.append(counts.row())
    source = results.Source(
        command=f"python -m benchmarks.fuzz_decoders --inputs {inputs}",
        data="altered messages of normal, Cauchy and binary numbers, of 40 x 25 and 7 elements; allocations of 512 x 512",
        seeds="one an input",
        spread="none: counts and maxima",
    )
    results.write("encoders/fuzz_decoders", rows, source, quick)
    if any(row["crashes"] or row["hangs"] for row in rows):
        raise SystemExit(f"Expected no crash and no hang; {folder} says which inputs ended so.")


if __name__ == "__main__":
    tyro.cli(main)
