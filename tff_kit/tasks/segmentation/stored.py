"""What a store of embeddings has of its SAM, so that training needs neither the hub nor the image encoder."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from tff_kit.datasets import DataError
from tff_kit.tasks.segmentation import weights
from tff_kit.tasks.segmentation.sizes import Sizes

SAM_FILE = "sam.safetensors"
"""The prompt encoder's weights for boxes, and the mask decoder's where it is trained."""
_SIZES = "sizes"


@dataclasses.dataclass(frozen=True)
class StoredSam:
    """What a store has of its SAM.

    Attributes:
      sizes: The sizes of its mask decoder.
      prompts: The frozen prompt encoder's weights for boxes.
      decoder: The trained mask decoder's weights by Hugging Face's names; empty where nobody trained it.
    """

    sizes: Sizes
    prompts: Mapping[str, np.ndarray]
    decoder: Mapping[str, np.ndarray]


def read_sam(folder: pathlib.Path) -> StoredSam:
    """Returns what the store in `folder` has of its SAM; raises `DataError` if it has none."""
    tensors, metadata = weights.read(folder / SAM_FILE)
    try:
        sizes = Sizes(**json.loads(metadata[_SIZES]))
        prompts = {name: value for name, value in tensors.items() if not name.startswith(weights.PREFIX)}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"Expected the sizes of a SAM in {folder / SAM_FILE}, found none. Run the same embed again.") from error
    return StoredSam(sizes, prompts, weights.of_decoder(tensors))


def write_sam(folder: pathlib.Path, sam: StoredSam) -> None:
    """Writes what the store in `folder` has of its SAM, completely or not at all."""
    path = folder / SAM_FILE
    decoder = {weights.PREFIX + name: np.ascontiguousarray(value) for name, value in sam.decoder.items()}
    tensors = {**{name: np.ascontiguousarray(value) for name, value in sam.prompts.items()}, **decoder}
    part = path.with_suffix(".part")
    safetensors.numpy.save_file(tensors, os.fspath(part), {"format": "pt", _SIZES: json.dumps(vars(sam.sizes))})
    part.replace(path)
