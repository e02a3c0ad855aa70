"""What a run learns from beyond its settings: its clients and its loss, in the few words that settings.json keeps of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tff_kit.datasets import FederatedDataset

_LONGEST = 300  # Characters of a description that are kept.


def describe_clients(data: FederatedDataset) -> str:
    """Returns the number of clients and a digest of their ids, in their order, since a round draws clients by their places."""
    found = hashlib.sha256()
    for client in data.client_ids:
        found.update(f"{len(client.encode())}:".encode() + client.encode())
    return f"{len(data.client_ids)} of SHA-256 {found.hexdigest()}"


def describe_loss(loss: Any) -> str:
    """Returns the class of a loss and its configuration where it has one, as `Huber(delta=1.0, ...)`."""
    text = _describe(loss)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}... of SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"


def _describe(value: Any) -> str:
    if isinstance(value, (tf.Tensor, tf.Variable)):
        value = value.numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_describe(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_describe, value))}]"
    if hasattr(value, "__qualname__"):  # A function or a class, whose own text has its place in memory.
        return str(value.__qualname__)
    return f"{type(value).__name__}({_describe_config(value)})"


def _describe_config(value: Any) -> str:
    try:
        config = value.get_config()
    except Exception:  # No configuration, or one that its class did not write.
        return ""
    # Keras adds `fn` in some states of a process, and not in others.
    return ", ".join(f"{key}={_describe(config[key])}" for key in sorted(config) if key != "fn")
