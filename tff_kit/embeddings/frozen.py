"""A frozen encoder: found in a folder or on the Hugging Face hub, known by the SHA-256 of its weights, and never trained."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Union

import numpy as np
import tensorflow as tf

from tff_kit.datasets.federated import DataError

_CONNECT_SECONDS = 5.0
_FILES = ("config.json", "model.safetensors")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen encoder of one kind of input.

    Attributes:
      model: The hub id or the local folder's name of the weights.
      weights_sha256: SHA-256 of the encoder's weights as float32. Equal weights in different files have the same one.
      window: What the encoder is given of an example, by the task's name for it, such as "30s" or "1024px".
      positions: Number of embeddings an example: 1500 for 30 s of sound, 4096 for SAM's grid of 64 x 64.
      width: Number of elements of an embedding.
      embed: A `tf.function` from a batch, float32 [batch, ...], to embeddings, float32 [batch, positions, width]. Keep the
        batch size the same from call to call.
    """

    model: str
    weights_sha256: str
    window: str
    positions: int
    width: int
    embed: Callable[[tf.Tensor], tf.Tensor]


def model_name(model: Union[str, os.PathLike]) -> str:
    """Returns what a store calls a model: its id on the hub, or the name of its folder."""
    folder = pathlib.Path(model).expanduser()
    return (folder.name or folder.resolve().name) if folder.is_dir() else os.fspath(model)


def sha256(weights: Iterable[np.ndarray]) -> str:
    """Returns the SHA-256 of weights as little-endian float32, in their order."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(np.ascontiguousarray(weight, "<f4").tobytes())
    return digest.hexdigest()


def find_model(model: str, kind: str, example: str) -> pathlib.Path:
    """Returns the folder with a model's config.json and model.safetensors. Downloads them from the hub if they are missing.

    Args:
      model: A local folder, or an id of the Hugging Face hub.
      kind: The kind of model, such as "Whisper".
      example: An id of such a model, for messages.

    Raises:
      DataError: If there is no such model, or the hub cannot be reached.
    """
    folder = pathlib.Path(model).expanduser()
    if folder.is_dir():
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise DataError(f"Expected {' and '.join(_FILES)} in {folder}, found no {' and no '.join(missing)}.")
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise DataError(
            f"Expected a folder, or an id of the Hugging Face hub such as {example}; found {model!r}, which is neither."
        )
    import huggingface_hub
    from huggingface_hub import errors

    cached = [huggingface_hub.try_to_load_from_cache(model, name) for name in _FILES]
    if all(isinstance(path, str) for path in cached):
        return pathlib.Path(str(cached[0])).parent
    try:
        # Without a network, downloads are retried for a long time. This request is made once.
        huggingface_hub.model_info(model, timeout=_CONNECT_SECONDS)
        paths = [huggingface_hub.hf_hub_download(model, name) for name in _FILES]
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(model) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.HFValidationError) as error:
        raise DataError(
            f"Expected a {kind} model {model} with {' and '.join(_FILES)} on the Hugging Face hub, found none. Check the id."
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:  # OSError: any fault of the network.
        raise _unreachable(model) from error
    return pathlib.Path(paths[0]).parent


@contextlib.contextmanager
def reading(kind: str, folder: pathlib.Path) -> Iterator[None]:
    """Reads a model with transformers: quietly, and with a `DataError` for files that cannot be read."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # It would warn of parts that are missing and not needed.
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds of exceptions for broken files.
        raise DataError(f"Expected {kind}'s weights in {folder}, found files that cannot be read: {error}") from error
    finally:
        transformers.logging.set_verbosity(before)


def check_kind(config: Any, model_type: str, kind: str, folder: pathlib.Path) -> None:
    """Raises `DataError` if transformers' configuration is of another type of model."""
    if config.model_type != model_type:
        raise DataError(f"Expected a {kind} model in {folder}, found a {config.model_type} model.")


def _unreachable(model: str) -> DataError:
    return DataError(
        f"Expected to find {model} on the Hugging Face hub, but it is not on this machine yet and the hub cannot be reached. "
        "Try again with a network, or give a local folder with the model."
    )
