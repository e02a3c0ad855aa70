"""What a server and a node say to each other: bytes, one message a round and direction, and the settings once.

A message is one byte for its kind, a fixed head, and parts with their lengths. Tensors are in the container of
`tff_kit.encoders.message`, which checks them. Nothing in a message is ever executed. Nothing here imports TensorFlow: a client's
process reads what a message is before it starts it.

| kind | from | head | parts |
|---|---|---|---|
| settings | server | | JSON: format, task, settings, digest of the initial weights |
| hello | node | | JSON: client, examples, versions |
| train | server | key of the settings, round, seed | the client optimizer's numbers, parameters of the update's encoding, model |
| update | node | round | scalars, encoded update |
| unknown | node | | nothing: the node has started anew and needs the settings |
| refusal | node | | a sentence |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any, Union

FORMAT = 1
"""Of these messages. Both sides need the same."""

_SETTINGS, _HELLO, _TRAIN, _UPDATE, _UNKNOWN, _REFUSAL = range(6)
_TRAIN_HEAD = struct.Struct("<8sIQ")
_UPDATE_HEAD = struct.Struct("<I")
_LENGTH = struct.Struct("<I")


class MessageError(ValueError):
    """A message that isn't one. The sentence says what was expected and what was found."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a node needs to know once.

    Attributes:
      task: The task's name.
      settings: Those of the experiment, as `settings.json` has them.
      initial: Digest of the initial weights, where a node must draw the same; else empty.
    """

    task: str
    settings: Mapping[str, Any]
    initial: str = ""

    @property
    def key(self) -> bytes:
        """Eight bytes that tell these settings from others."""
        return hashlib.sha256(self.pack()).digest()[:8]

    def pack(self) -> bytes:
        """Returns the message."""
        fields = {"format": FORMAT, "task": self.task, "settings": self.settings, "initial": self.initial}
        return _pack(_SETTINGS, b"", json.dumps(fields, sort_keys=True).encode())


@dataclasses.dataclass(frozen=True)
class Hello:
    """A node's answer to the settings: which client it is."""

    client: str
    versions: Mapping[str, str]

    def pack(self) -> bytes:
        """Returns the message."""
        return _pack(_HELLO, b"", json.dumps(dataclasses.asdict(self)).encode())


@dataclasses.dataclass(frozen=True)
class Train:
    """The model of a round, for one client."""

    key: bytes
    round_num: int
    seed: int
    numbers: bytes
    params: bytes
    model: bytes

    def pack(self) -> bytes:
        """Returns the message."""
        return _pack(_TRAIN, _TRAIN_HEAD.pack(self.key, self.round_num, self.seed), self.numbers, self.params, self.model)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A client's update in a round."""

    round_num: int
    scalars: bytes
    update: bytes

    def pack(self) -> bytes:
        """Returns the message."""
        return _pack(_UPDATE, _UPDATE_HEAD.pack(self.round_num), self.scalars, self.update)


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A node's answer where it does not have the settings."""

    def pack(self) -> bytes:
        """Returns the message."""
        return _pack(_UNKNOWN, b"")


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A node's answer where it can't take part; or what an engine says of a node that it lost."""

    sentence: str

    def pack(self) -> bytes:
        """Returns the message."""
        return _pack(_REFUSAL, b"", self.sentence.encode())


Message = Union[Settings, Hello, Train, Trained, Unknown, Refusal]


def unpack(data: bytes) -> Message:
    """Returns the message that `data` holds; raises `MessageError` where it holds none."""
    if not data or data[0] > _REFUSAL:
        raise MessageError(f"Expected a message of a kind from 0 to {_REFUSAL}, found {data[:1].hex() or 'nothing'}.")
    kind, body = data[0], memoryview(data)[1:]
    try:
        return _READERS[kind](body)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MessageError(
            f"Expected a whole message of kind {kind}, found {len(data):,} bytes that are none: {error}."
        ) from None


def _read_settings(body: memoryview) -> Settings:
    (text,) = _parts(body, 1)
    fields = json.loads(text)
    if fields["format"] != FORMAT:
        raise MessageError(f"messages of format {fields['format']}, not {FORMAT}; both sides need the same tff_kit")
    return Settings(str(fields["task"]), dict(fields["settings"]), str(fields["initial"]))


def _read_hello(body: memoryview) -> Hello:
    (text,) = _parts(body, 1)
    fields = json.loads(text)
    return Hello(str(fields["client"]), {str(key): str(value) for key, value in fields["versions"].items()})


def _read_train(body: memoryview) -> Train:
    return Train(*_TRAIN_HEAD.unpack(body[: _TRAIN_HEAD.size]), *_parts(body[_TRAIN_HEAD.size :], 3))


def _read_trained(body: memoryview) -> Trained:
    return Trained(*_UPDATE_HEAD.unpack(body[: _UPDATE_HEAD.size]), *_parts(body[_UPDATE_HEAD.size :], 2))


def _read_unknown(body: memoryview) -> Unknown:
    _parts(body, 0)
    return Unknown()


def _read_refusal(body: memoryview) -> Refusal:
    (text,) = _parts(body, 1)
    return Refusal(text.decode())


_READERS = (_read_settings, _read_hello, _read_train, _read_trained, _read_unknown, _read_refusal)


def _pack(kind: int, head: bytes, *parts: bytes) -> bytes:
    return bytes([kind]) + head + b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def _parts(body: memoryview, number: int) -> list[bytes]:
    """Returns so many parts, which must fill `body`."""
    found = []
    for _ in range(number):
        (length,) = _LENGTH.unpack(body[: _LENGTH.size])
        found.append(bytes(body[_LENGTH.size : _LENGTH.size + length]))
        if len(found[-1]) != length:
            raise ValueError(f"a part of {length:,} bytes that has {len(found[-1]):,}")
        body = body[_LENGTH.size + length :]
    if body:
        raise ValueError(f"{len(body):,} bytes after the last part")
    return found
