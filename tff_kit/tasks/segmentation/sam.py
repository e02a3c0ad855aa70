"""Segment Anything's frozen image encoder: it turns an image into embeddings, once, and is never trained.

A. Kirillov et al.: Segment Anything. ICCV 2023, arXiv 2304.02643. `transformers` has it for TensorFlow; PyTorch is not needed.

`tiny` is a SAM of the true architecture with an encoder that nobody trained: its weights are drawn once, and always the same. It
is for trying everything without the hub. Its embeddings hold what an image looks like, but nothing of what is in it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf
from PIL import Image

from tff_kit.datasets import DataError
from tff_kit.embeddings import frozen
from tff_kit.tasks.segmentation.decoder import PROMPT_WEIGHTS
from tff_kit.tasks.segmentation.sizes import Sizes, scaled_size
from tff_kit.tasks.segmentation.weights import of_decoder

DEFAULT_MODEL = "facebook/sam-vit-base"
TINY = "tiny"
_SEED = 0
# Of ImageNet, as all published SAMs have it.
_MEAN, _DEVIATION = (np.array(x, np.float32) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
_TINY = Sizes(image_size=128, patch_size=8, hidden_size=64, mlp_dim=256, num_attention_heads=4, iou_head_hidden_dim=64)


@dataclasses.dataclass(frozen=True)
class Sam:
    """A SAM whose encoder is frozen.

    Attributes:
      encoder: The image encoder. It takes images of `prepare`, float32 [batch, image_size, image_size, 3].
      sizes: The sizes of its mask decoder.
      prompts: The frozen prompt encoder's weights for boxes, by the names of `PROMPT_WEIGHTS`.
      decoder: The trained mask decoder's weights by Hugging Face's names; `None` for tiny, whose decoder nobody trained.
    """

    encoder: frozen.Encoder
    sizes: Sizes
    prompts: dict[str, np.ndarray]
    decoder: Optional[dict[str, np.ndarray]]


def load_sam(model: Union[str, os.PathLike] = DEFAULT_MODEL) -> Sam:
    """Loads a SAM.

    Args:
      model: `tiny`; or an id of the Hugging Face hub, or a local folder with `config.json` and `model.safetensors`.

    Raises:
      DataError: If the model cannot be found, downloaded or read, or is no SAM.
    """
    if os.fspath(model) == TINY:
        return _wrap(TINY, _create_tiny(), trained=False)
    folder = frozen.find_model(os.fspath(model), "SAM", DEFAULT_MODEL)
    return _wrap(frozen.model_name(model), _load(folder), trained=True)


def prepare(pixels: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Returns an image as the encoder takes it, float32 [image_size, image_size, 3].

    Its longer side becomes `image_size`, and zeros fill the frame below or to the right, as Hugging Face's `SamProcessor` does.

    Args:
      pixels: uint8 [height, width, 3].
      sizes: The sizes.
    """
    height, width = scaled_size(pixels.shape[:2], sizes.image_size)
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    framed = np.zeros([sizes.image_size, sizes.image_size, 3], np.float32)
    framed[:height, :width] = (resized / np.float32(255) - _MEAN) / _DEVIATION
    return framed


def save_sam(model: Any, folder: pathlib.Path) -> None:
    """Writes a `TFSamModel` as the hub has SAMs: `config.json`, and `model.safetensors` with PyTorch's names and shapes."""
    import safetensors.numpy

    model.config.save_pretrained(folder)
    named = {name: np.ascontiguousarray(value) for name, value in _named_weights(model).items()}
    named["prompt_encoder.shared_embedding.positional_embedding"] = named["shared_image_embedding.positional_embedding"].copy()
    safetensors.numpy.save_file(named, str(folder / "model.safetensors"), {"format": "pt"})


def _wrap(name: str, model: Any, trained: bool) -> Sam:
    sizes = _sizes(model.config)
    vision = model.vision_encoder

    @tf.function(input_signature=[tf.TensorSpec([None, sizes.image_size, sizes.image_size, 3], tf.float32)])
    def embed(images):
        embedded = vision(tf.transpose(images, [0, 3, 1, 2]), training=False)[0]
        return tf.reshape(tf.transpose(embedded, [0, 2, 3, 1]), [-1, sizes.positions, sizes.hidden_size])

    named = _named_weights(model)
    sha256 = frozen.sha256(value for key, value in sorted(named.items()) if key.startswith("vision_encoder."))
    return Sam(
        frozen.Encoder(name, sha256, sizes.window, sizes.positions, sizes.hidden_size, embed),
        sizes,
        {key: named[key] for key in PROMPT_WEIGHTS},
        of_decoder(named) if trained else None,
    )


def _sizes(config: Any) -> Sizes:
    vision, of_decoder = config.vision_config, config.mask_decoder_config
    taken = [field.name for field in dataclasses.fields(Sizes) if field.name not in ("image_size", "patch_size")]
    return Sizes(vision.image_size, vision.patch_size, **{name: getattr(of_decoder, name) for name in taken})


def _named_weights(model: Any) -> dict[str, np.ndarray]:
    """Returns a TensorFlow model's weights under PyTorch's names and in PyTorch's shapes."""
    from transformers import modeling_tf_pytorch_utils as names

    found = {}
    for variable in model.weights:
        of_model = re.sub(r"^tf_sam_model(_\d+)?/", "", variable.name)  # transformers' function drops what stands first.
        name, transpose = names.convert_tf_weight_name_to_pt_weight_name(f"sam/{of_model}", tf_weight_shape=variable.shape)
        found[name] = names.apply_transpose(transpose, variable.numpy(), pt_to_tf=False)
    return found


def _create_tiny() -> Any:
    """Draws a small SAM. All its weights are drawn here, since Keras's own initializers draw differently in each process."""
    import transformers

    config = transformers.SamConfig(
        vision_config={
            "image_size": _TINY.image_size,
            "patch_size": _TINY.patch_size,
            "hidden_size": 96,
            "output_channels": _TINY.hidden_size,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "global_attn_indexes": [2],
            "window_size": 8,
            "mlp_dim": 384,
            "num_pos_feats": _TINY.hidden_size // 2,
        },
        prompt_encoder_config={
            "hidden_size": _TINY.hidden_size,
            "image_size": _TINY.image_size,
            "patch_size": _TINY.patch_size,
        },
        mask_decoder_config={name: value for name, value in vars(_TINY).items() if name not in ("image_size", "patch_size")},
    )
    model = transformers.TFSamModel(config)
    model.build()
    drawn = np.random.default_rng(_SEED)
    for variable in sorted(model.weights, key=lambda weight: weight.name):
        if len(variable.shape) > 1:
            variable.assign(drawn.standard_normal(variable.shape) / np.sqrt(np.prod(variable.shape[:-1])))
    return model


def _load(folder: pathlib.Path) -> Any:
    import transformers

    with frozen.reading("SAM", folder):
        config = transformers.SamConfig.from_pretrained(folder)
        frozen.check_kind(config, "sam", "SAM", folder)
        model, info = transformers.TFSamModel.from_pretrained(folder, config=config, output_loading_info=True)
    missing = [name for name in info["missing_keys"] if "mask_embed" not in name]  # Masks are no prompts here.
    if missing or info["mismatched_keys"]:
        raise DataError(f"Expected all weights of a SAM in {folder}, found none for {missing or info['mismatched_keys']}.")
    return model
