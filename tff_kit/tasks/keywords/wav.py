"""Wav files of 16-bit PCM, with the plain header or with the extensible one that Windows and some recorders write.

The `wave` module of Python reads the extensible header from version 3.12 on only.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from typing import BinaryIO

import numpy as np

_EXTENSIBLE = 0xFFFE
_NAMES = {1: "PCM", 3: "floating point", 6: "A-law", 7: "mu-law"}
_LONGEST_FORM = 40
_KSDATAFORMAT = bytes.fromhex("000000001000800000aa00389b71")  # What follows the format's number in an extensible header.


class WavError(ValueError):
    """A file that is no wav file. The message says why."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a wav file says.

    Attributes:
      encoding: How samples are written, such as PCM.
      channels: How many channels there are.
      rate: Samples a second and channel.
      bits: Bits a sample.
      start: The first sample's place in the file, in bytes.
      samples: How many samples a channel should have; the file may be shorter.
    """

    encoding: str
    channels: int
    rate: int
    bits: int
    start: int
    samples: int


def read_header(path: os.PathLike) -> Header:
    """Reads the header of the wav file `path`.

    Raises:
      EOFError: If the file ends within its header.
      WavError: If it is no wav file.
      OSError: If it can't be read.
    """
    with open(path, "rb") as file:
        magic = _read(file, 12)
        if magic[:4] != b"RIFF" or magic[8:] != b"WAVE":
            raise WavError("it does not begin with RIFF and WAVE")
        form = b""
        while True:
            name, size = struct.unpack("<4sI", _read(file, 8))
            if name == b"data":
                return _header(form, file.tell(), size)
            end = file.tell() + size + size % 2
            if name == b"fmt ":
                form = _read(file, min(size, _LONGEST_FORM))
            file.seek(end)


def read_samples(path: os.PathLike, start: int, count: int) -> np.ndarray:
    """Returns up to `count` samples from `start` on, int16 [samples], of a file of one channel of 16-bit PCM; raises as above."""
    header = read_header(path)
    there = max(0, min(count, header.samples - start))
    with open(path, "rb") as file:
        file.seek(header.start + 2 * start)
        read = file.read(2 * there)
    return np.frombuffer(read[: len(read) // 2 * 2], "<i2")


def _header(form: bytes, start: int, size: int) -> Header:
    if len(form) < 16:
        raise WavError("it does not say how its samples are written")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if code == _EXTENSIBLE and form[26:40] == _KSDATAFORMAT:
        (code,) = struct.unpack("<H", form[24:26])
    samples = size // max(1, channels * ((bits + 7) // 8))
    return Header(_NAMES.get(code, f"format {code:#06x}"), channels, rate, bits, start, samples)


def _read(file: BinaryIO, size: int) -> bytes:
    read = file.read(size)
    if len(read) < size:
        raise EOFError
    return read
