"""Headers: the named fields in front of each part of a payload, all written and read here.

A header is a dataclass whose attributes are fields of fixed widths. They stand in the bytes in the same order, lowest bits
first, padded with zeros to whole bytes. `docs/format.md` lists them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, TypeVar

import tensorflow as tf

from tff_kit.encoders.checks import checked, split_bytes
from tff_kit.encoders.entropy.fields import pack_fields, unpack_fields

VERSION = 2
"""Of the format. A change of any byte that a decoder reads makes it one more; see "Changing the format" in docs/format.md."""

AnyHeader = TypeVar("AnyHeader", bound="Header")


def _width(bits: int, lowest: int = 0) -> dict[str, int]:
    """Returns what makes an attribute a field for integers from `lowest` to lowest + 2^bits - 1, which int32 must hold."""
    return {"bits": bits, "lowest": lowest}


@dataclasses.dataclass(frozen=True)
class Header:
    """Fields of a header, each an integer tensor: the base of all headers."""

    name: ClassVar[str]

    @classmethod
    def bits(cls) -> list[int]:
        """Returns the fields' widths."""
        return [f.metadata["bits"] for f in dataclasses.fields(cls)]

    @classmethod
    def lowest(cls) -> list[int]:
        """Returns the smallest number that each field holds."""
        return [f.metadata["lowest"] for f in dataclasses.fields(cls)]

    @classmethod
    def size(cls) -> int:
        """Returns the bytes of the header."""
        return -(-sum(cls.bits()) // 8)

    def pack(self) -> tf.Tensor:
        """Returns the header's bytes, uint8 [size()].

        Raises:
          tf.errors.InvalidArgumentError: When the graph runs, if a field does not hold its number.
        """
        numbers = tf.stack([tf.cast(getattr(self, f.name), tf.int64) for f in dataclasses.fields(self)])
        codes, widths = numbers - tf.constant(self.lowest(), tf.int64), tf.constant(self.bits(), tf.int64)
        fits = tf.reduce_all((codes >= 0) & (codes < tf.constant([2**bits for bits in self.bits()], tf.int64)))
        names = ", ".join(f"{f.name} ({bits} bits)" for f, bits in zip(dataclasses.fields(self), self.bits()))
        codes = checked(codes, fits, f"Expected numbers that the {self.name} header holds for {names}, found {{}}.", numbers)
        return pack_fields(codes, widths)

    @classmethod
    def unpack(cls: type[AnyHeader], body: tf.Tensor) -> tuple[AnyHeader, tf.Tensor]:
        """Returns the header, int32 scalars, at the start of uint8 [bytes], and the bytes behind it.

        Raises:
          tf.errors.InvalidArgumentError: When the graph runs, if there are fewer bytes than a header's.
        """
        packed, rest = split_bytes(body, tf.constant(cls.size()), f"the {cls.name} header")
        codes = unpack_fields(packed, tf.constant(cls.bits(), tf.int64))
        numbers = tf.cast(codes + tf.constant(cls.lowest(), tf.int64), tf.int32)
        return cls(*tf.unstack(numbers, len(cls.bits()))), rest


@dataclasses.dataclass(frozen=True)
class PayloadHeader(Header):
    """In front of every payload."""

    name = "payload"

    coder: tf.Tensor = dataclasses.field(metadata=_width(4))
    version: tf.Tensor = dataclasses.field(metadata=_width(4))


@dataclasses.dataclass(frozen=True)
class ElementsHeader(Header):
    """In front of integers that are coded one by one."""

    name = "elements"

    offset: tf.Tensor = dataclasses.field(metadata=_width(32, lowest=-(2**31)))
    lanes: tf.Tensor = dataclasses.field(metadata=_width(16))
    signs_bypass: tf.Tensor = dataclasses.field(metadata=_width(1))
    events: tf.Tensor = dataclasses.field(metadata=_width(31))


@dataclasses.dataclass(frozen=True)
class TuplesHeader(Header):
    """In front of integers that are coded several at once."""

    name = "tuples"

    offset: tf.Tensor = dataclasses.field(metadata=_width(32, lowest=-(2**31)))
    lanes: tf.Tensor = dataclasses.field(metadata=_width(16))
    shape: tf.Tensor = dataclasses.field(metadata=_width(8))


@dataclasses.dataclass(frozen=True)
class RowsHeader(Header):
    """In front of a matrix of integers that are coded by how large their rows and columns are."""

    name = "rows"

    offset: tf.Tensor = dataclasses.field(metadata=_width(32, lowest=-(2**31)))
    lanes: tf.Tensor = dataclasses.field(metadata=_width(16))
    sections: tf.Tensor = dataclasses.field(metadata=_width(8))
    first_level: tf.Tensor = dataclasses.field(metadata=_width(7))
    levels: tf.Tensor = dataclasses.field(metadata=_width(7, lowest=1))
