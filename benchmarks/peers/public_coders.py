"""Public coders on a client's tensors: bits, squared error and time at many settings. Runs in an environment of its own.

    python -m benchmarks.peers.public_coders TENSORS.npz ANSWER.json

* NNCodec 2.1.3, of the standard ISO/IEC 15938-17: trellis-coded quantization, CABAC, row skipping. By its step, qp.
* SZ3 and ZFP, which are made for the arrays of simulations: by their bound of the absolute error.
* zstd over steps: the nearest multiples of a step, a byte each or two, by zstd at its highest level.
* zstd over float16: float16. Of numbers of two bytes, all higher bytes come first.

A setting is given in units of the root mean square of all tensors, so it suits tensors of any size. Each coder gets the tensors
as PyTorch has them, output channels first, which NNCodec's rows are; ZFP and SZ3 get matrices.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable
from unittest import mock

import numpy as np
import zfpy
import zstandard
from pysz import sz, szConfig, szErrorBoundMode

Tensors = dict[str, np.ndarray]
_Coded = tuple[int, Callable[[], Sequence[np.ndarray]]]  # Bytes, and what decodes them.
_STEPS = tuple(float(step) for step in np.geomspace(0.1, 6, 14))
_QP_DENSITY = 2  # NNCodec's step is (4 + qp mod 4) * 2^(qp / 4 - 2).
_ZSTD_LEVEL = 22


class _Unneeded(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands for what NNCodec imports to train models: coding needs none of it."""

    _NAMES = frozenset(["torchvision", "pandas", "tqdm", "sklearn", "torchmetrics", "ptflops", "cv2", "h5py", "click"])

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self._NAMES else None

    def create_module(self, spec: Any) -> Any:
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: Any) -> None:
        pass


sys.meta_path.insert(0, _Unneeded())
from nncodec import nnc


def _matrices(tensors: Tensors) -> Iterator[np.ndarray]:
    yield from (np.ascontiguousarray(x.reshape(len(x), -1)) for x in tensors.values())


def _nncodec(tensors: Tensors, step: float) -> _Coded:
    qp = round(4 * math.log2(step))
    options = {"qp_density": _QP_DENSITY, "nonweight_qp": qp, "use_dq": True, "row_skipping": True}
    with tempfile.NamedTemporaryFile() as written:  # It writes what it returns.
        coded = nnc.compress(dict(tensors), written.name, qp=qp, return_bitstream=True, **options)

    def decode() -> list[np.ndarray]:
        decoded = nnc.decompress(coded)
        return [decoded[name] for name in tensors]

    return len(coded), decode


def _sz3(tensors: Tensors, step: float) -> _Coded:
    coded = []
    for x in _matrices(tensors):
        config = szConfig(x.shape)
        config.errorBoundMode, config.absErrorBound = szErrorBoundMode.ABS, step / 2
        coded.append((sz.compress(x, config)[0], x.shape))
    return sum(len(c) for c, _ in coded), lambda: [sz.decompress(c, np.float32, shape)[0] for c, shape in coded]


def _zfp(tensors: Tensors, step: float) -> _Coded:
    coded = [zfpy.compress_numpy(x, tolerance=step, write_header=True) for x in _matrices(tensors)]
    return sum(map(len, coded)), lambda: [zfpy.decompress_numpy(c) for c in coded]


def _zstd_steps(tensors: Tensors, step: float) -> _Coded:
    levels = [np.rint(x.ravel() / step) for x in tensors.values()]
    width = np.int8 if max(np.abs(x).max() for x in levels) < 128 else np.int16
    return _zstd(tensors, np.concatenate(levels).astype(width), step)


def _zstd_float16(tensors: Tensors, step: float) -> _Coded:
    del step
    return _zstd(tensors, np.concatenate([x.ravel() for x in tensors.values()]).astype(np.float16), 1.0)


def _zstd(tensors: Tensors, numbers: np.ndarray, step: float) -> _Coded:
    """Codes numbers whose multiples by `step` are the tensors'."""
    planes = numbers.view(np.uint8).reshape(len(numbers), -1).T[::-1]
    coded = zstandard.compress(planes.tobytes(), _ZSTD_LEVEL)

    def decode() -> list[np.ndarray]:
        planes = np.frombuffer(zstandard.decompress(coded), np.uint8).reshape(-1, len(numbers))[::-1]
        flat = np.ascontiguousarray(planes.T).view(numbers.dtype)[:, 0].astype(np.float32) * np.float32(step)
        return np.split(flat, np.cumsum([x.size for x in tensors.values()])[:-1])

    return len(coded) + 4, decode  # And the step.


_CODERS = {
    "NNCodec": (_nncodec, _STEPS),
    "SZ3": (_sz3, _STEPS),
    "ZFP": (_zfp, tuple(6 * step for step in _STEPS)),  # Its errors stay far below its bound.
    "zstd over steps": (_zstd_steps, _STEPS),
    "zstd over float16": (_zstd_float16, (1.0,)),
}


def _measure(coder: str, tensors: Tensors, step: float) -> dict[str, Any]:
    size = sum(x.size for x in tensors.values())
    unit = math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in tensors.values()) / size)
    began = time.process_time()
    length, decode = _CODERS[coder][0](tensors, step * unit)
    between = time.process_time()
    decoded = decode()
    ended = time.process_time()
    error = sum(float(np.sum(np.square(x.ravel() - y.ravel(), dtype=np.float64))) for x, y in zip(tensors.values(), decoded))
    return {
        "coder": coder,
        "setting": round(step, 4),
        "payload_bits": 8 * length / size,
        "nmse": error / (size * unit**2),
        "encode_ns": (between - began) / size * 1e9,
        "decode_ns": (ended - between) / size * 1e9,
    }


def main(source: str, answer: str) -> None:
    """Measures every coder on the tensors of the file `source` and writes a list of rows to the file `answer`, as JSON."""
    with np.load(source) as arrays:
        tensors = {name: np.ascontiguousarray(np.moveaxis(arrays[name], -1, 0)) for name in arrays.files}
    rows = [_measure(coder, tensors, step) for coder, (_, steps) in _CODERS.items() for step in steps]
    with open(answer, "w") as file:
        json.dump(rows, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
