"""Weights of a mask decoder as safetensors, under the names of Hugging Face's PyTorch `SamModel`.

`SamModel.load_state_dict(load_file(FILE), strict=False)` puts a trained decoder into PyTorch's SAM. In the other direction, a
SAM's own `model.safetensors` may be read: what is not of the mask decoder is left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from tff_kit.datasets import DataError
from tff_kit.tasks.segmentation.decoder import decoder_layer
from tff_kit.tasks.segmentation.sizes import Sizes, weight_shapes

PREFIX = "mask_decoder."
_ENCODER = "encoder_sha256"


def save_decoder(model: tf.keras.Model, path: os.PathLike, encoder_sha256: str = "") -> None:
    """Writes the weights of a model of `create_decoder`.

    Args:
      model: The model.
      path: The file.
      encoder_sha256: SHA-256 of the encoder whose embeddings it was trained on, which `load_decoder` checks; "" for any.
    """
    named = {PREFIX + name: np.ascontiguousarray(value) for name, value in decoder_layer(model).named_weights().items()}
    metadata = {"format": "pt", **({_ENCODER: encoder_sha256} if encoder_sha256 else {})}
    safetensors.numpy.save_file(named, os.fspath(path), metadata)


def load_decoder(path: os.PathLike, sizes: Sizes, encoder_sha256: str) -> dict[str, np.ndarray]:
    """Returns a mask decoder's weights, float32, by the names of `weight_shapes`.

    Args:
      path: A file of `save_decoder`, or a PyTorch SAM's `model.safetensors`.
      sizes: The sizes that it must have.
      encoder_sha256: SHA-256 of the encoder whose embeddings it is for.

    Raises:
      DataError: If the file cannot be read, or is a decoder of other sizes or for another encoder.
    """
    tensors, metadata = read(path)
    found = of_decoder(tensors)
    expected = weight_shapes(sizes)
    different = [name for name in expected if name not in found or found[name].shape != expected[name]]
    different += [name for name in found if name not in expected]
    if different:
        name = different[0]
        expects = f"the shape {list(expected[name])}" if name in expected else "no such tensor"
        has = f"{list(found[name].shape)}" if name in found else "none"
        raise DataError(
            f"Expected the mask decoder of the SAM that made the embeddings in {path}: of {PREFIX}{name} {expects}, found {has}. "
            "Sizes follow from the SAM: a decoder of ViT-B fits embeddings of ViT-B."
        )
    trained_on = metadata.get(_ENCODER, encoder_sha256)
    if trained_on != encoder_sha256:
        raise DataError(
            f"Expected a mask decoder for the encoder with weights {encoder_sha256[:12]}, which made the embeddings; found "
            f"{path}, trained on those of {trained_on[:12]}. Make the embeddings with that encoder, or take another decoder."
        )
    return {name: value.astype(np.float32) for name, value in found.items()}


def of_decoder(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the mask decoder's tensors of those of a SAM, by the names of `weight_shapes`."""
    return {name[len(PREFIX) :]: value for name, value in tensors.items() if name.startswith(PREFIX)}


def set_decoder(model: tf.keras.Model, path: os.PathLike, encoder_sha256: str) -> None:
    """Sets the weights of a model of `create_decoder` to those in a file; raises `DataError` as `load_decoder`."""
    layer = decoder_layer(model)
    layer.set_named_weights(load_decoder(path, layer.sizes, encoder_sha256))


def read(path: os.PathLike) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """Returns the tensors of a safetensors file and what is written beside them; raises `DataError` if it cannot be read."""
    try:
        with safetensors.safe_open(os.fspath(path), framework="np") as file:
            names: Any = file.keys()
            metadata: Optional[Mapping[str, Any]] = file.metadata()
            return {name: file.get_tensor(name) for name in names}, metadata or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"Expected weights as safetensors in {path}, found: {error}.") from error
