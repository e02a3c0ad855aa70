"""A message: the encoded tensors of all variables as one string of bytes.

    byte 0      VERSION
    bytes 1-4   digest of the layout: the first bytes of a SHA-256
    bytes 5-8   CRC-32 of all bytes that follow, little-endian
    sizes       each dimension that the layout leaves open, as a varint: 7 bits a byte, lowest first, the top bit says "more"
    elements    of one tensor behind another, in C order, little-endian; a bool is a byte, 0 or 1

Sender and receiver know the layout (which tensors there are, their dtypes and known dimensions) from the SPEC and the
variables' shapes, so none of it is in the message. `docs/format.md` specifies the container.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

VERSION = 2
HEADER_BYTES = 9
_DIGEST = slice(1, 5)
_CHECKSUM = slice(5, 9)
_LARGEST_SIZE = 2**35 - 1  # Five bytes of a varint.


class PayloadError(ValueError):
    """Bytes that are no message of the expected layout, or that decode to something that must not be used."""


class Layout:
    """What a message holds: tensors of known dtypes whose dimensions are known up to a few.

    Args:
      tensors: A nested structure of `tf.TensorSpec`s, of numbers or bools, with None where a dimension varies.
      label: Names what is sent, in errors and for the digest: `broadcast by uniform:8`, say.
      context: Lines of what else both sides have to agree on, for the digest.

    Raises:
      TypeError: If a tensor is neither of numbers nor of bools, or its rank is unknown.
    """

    def __init__(self, tensors: Any, label: str, context: Sequence[str] = ()):
        self.tensors = tensors
        self.label = label
        self._specs: list[tf.TensorSpec] = tf.nest.flatten(tensors)
        for spec in self._specs:
            if spec.shape.rank is None or not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool):
                raise TypeError(f"Expected encoded tensors of numbers and of known rank, found {spec} in the {label}.")
        self.digest = hashlib.sha256("\n".join([label, *context, *map(describe, self._specs)]).encode()).digest()

    def pack(self, tensors: Any) -> bytes:
        """Returns the message that holds `tensors`, a structure of the layout's with a tensor for each spec.

        Raises:
          ValueError: If a tensor has another shape or dtype than its spec.
        """
        arrays = [_array(tensor, spec) for tensor, spec in zip(tf.nest.flatten(tensors), self._specs)]
        sizes = [n for x, spec in zip(arrays, self._specs) for n, known in zip(x.shape, spec.shape) if known is None]
        body = b"".join([*map(_varint, sizes), *(x.tobytes() for x in arrays)])
        return self.seal(body)

    def seal(self, body: bytes) -> bytes:
        """Returns the message whose sizes and elements are `body`: the header, and that."""
        return bytes([VERSION]) + self.digest[:4] + zlib.crc32(body).to_bytes(4, "little") + body

    def unpack(self, message: bytes) -> Any:
        """Returns the structure of tensors that `message` holds.

        Raises:
          PayloadError: If it holds none of this layout. Nothing is allocated that the message's own length does not cover.
        """
        self._check_header(message)
        shapes, start = self._read_shapes(message)
        counts = [math.prod(shape) for shape in shapes]
        needed = start + sum(count * spec.dtype.size for count, spec in zip(counts, self._specs))
        if needed != len(message):
            raise PayloadError(f"Expected a {self.label} of {needed:,} bytes, as its sizes say; found {len(message):,}.")
        tensors = []
        for spec, shape, count in zip(self._specs, shapes, counts):
            tensors.append(self._read_tensor(message, spec, shape, count, start))
            start += count * spec.dtype.size
        return tf.nest.pack_sequence_as(self.tensors, tensors)

    def _check_header(self, message: bytes) -> None:
        if len(message) < HEADER_BYTES:
            raise PayloadError(f"Expected a {self.label} of at least {HEADER_BYTES} bytes, found {len(message)}.")
        if message[0] != VERSION:
            raise PayloadError(f"Expected a message of version {VERSION}, found {message[0]}; both sides need one tff_kit.")
        if message[_DIGEST] != self.digest[:4]:
            raise PayloadError(
                f"Expected a {self.label} (digest {self.digest[:4].hex()}), found digest {message[_DIGEST].hex()}; "
                "both sides need the same SPEC, threshold and model."
            )
        if int.from_bytes(message[_CHECKSUM], "little") != zlib.crc32(memoryview(message)[HEADER_BYTES:]):
            raise PayloadError(f"Expected a {self.label} with its checksum, found bytes that were altered or cut.")

    def _read_shapes(self, message: bytes) -> tuple[list[list[int]], int]:
        """Returns the tensors' shapes, and where their elements begin."""
        shapes, start = [], HEADER_BYTES
        for spec in self._specs:
            shape = []
            for known in spec.shape:
                size = known
                if known is None:
                    size, start = self._read_varint(message, start)
                shape.append(size)
            shapes.append(shape)
        return shapes, start

    def _read_varint(self, message: bytes, start: int) -> tuple[int, int]:
        value = 0
        for place, byte in enumerate(message[start : start + 5]):
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                if not byte and place:
                    break
                return value, start + place + 1
        raise PayloadError(f"Expected a size of one to five bytes at byte {start} of the {self.label}, found none.")

    def _read_tensor(self, message: bytes, spec: tf.TensorSpec, shape: list[int], count: int, start: int) -> tf.Tensor:
        array = np.frombuffer(message, np.uint8 if spec.dtype.is_bool else spec.dtype.as_numpy_dtype, count, start)
        if spec.dtype.is_bool:
            if np.any(array > 1):
                raise PayloadError(f"Expected bools of 0 or 1 in the {self.label}, found {array.max()}.")
            array = array.astype(bool)
        return tf.constant(array.reshape(shape), spec.dtype)


def describe(spec: tf.TensorSpec) -> str:
    """Returns dtype and dimensions as text: `float32[40,30]`, with ? for a dimension that varies."""
    return f"{spec.dtype.name}[{','.join('?' if size is None else str(size) for size in spec.shape)}]"


def _array(tensor: Any, spec: tf.TensorSpec) -> np.ndarray:
    tensor = tf.convert_to_tensor(tensor, spec.dtype)
    if not spec.shape.is_compatible_with(tensor.shape):
        raise ValueError(f"Expected an encoded tensor of shape {spec.shape}, found {tensor.shape}.")
    return np.asarray(tensor.numpy(), spec.dtype.as_numpy_dtype)


def _varint(value: int) -> bytes:
    if value > _LARGEST_SIZE:
        raise ValueError(f"Expected a dimension of at most {_LARGEST_SIZE:,}, found {value:,}.")
    digits = []
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
