"""The sizes of SAM's mask decoder, under the names of Hugging Face's configuration. The defaults are ViT-B's."""

from __future__ import annotations

import dataclasses

UPSCALING = 4
"""A mask has so many rows and columns for each one of the image's embeddings."""
BOX_TOKENS = 2
"""A box is two tokens, its corners."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of the mask decoder's weights follow from.

    Attributes:
      image_size: Rows and columns of the image that the encoder is given, in pixels.
      patch_size: Rows and columns of a patch, which becomes one embedding, in pixels.
      hidden_size: Width of an embedding.
      mlp_dim: Width inside of the transformer's feed-forward layers.
      num_hidden_layers: Layers of the transformer.
      num_attention_heads: Heads of an attention.
      attention_downsample_rate: How many times narrower an attention between tokens and image is.
      num_multimask_outputs: Masks for a prompt that may mean several things. One more is for a prompt that means one.
      iou_head_depth: Layers of the head that predicts a mask's quality.
      iou_head_hidden_dim: Width of these layers.
      layer_norm_eps: Epsilon of the transformer's normalizations.
    """

    image_size: int = 1024
    patch_size: int = 16
    hidden_size: int = 256
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    layer_norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Rows and columns of an image's embeddings."""
        return self.image_size // self.patch_size

    @property
    def positions(self) -> int:
        """Embeddings of an image."""
        return self.grid**2

    @property
    def side(self) -> int:
        """Rows and columns of a mask."""
        return UPSCALING * self.grid

    @property
    def window(self) -> str:
        """A store's name for what the encoder is given of an image."""
        return f"{self.image_size}px"

    @property
    def masks(self) -> int:
        """Masks that the decoder makes of a prompt."""
        return self.num_multimask_outputs + 1


def scaled_size(size: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Returns height and width of an image whose longer side becomes `longest`; each is at least 1."""
    scale = longest / max(size)
    height, width = (max(1, int(x * scale + 0.5)) for x in size)
    return height, width


def weight_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each weight of the mask decoder, by its name in Hugging Face's `state_dict`.

    They are PyTorch's own shapes: a matrix is [outputs, inputs], a transposed convolution [inputs, outputs, 2, 2].
    """
    width, narrow = sizes.hidden_size, sizes.hidden_size // sizes.attention_downsample_rate
    shapes: dict[str, tuple[int, ...]] = {"iou_token.weight": (1, width), "mask_tokens.weight": (sizes.masks, width)}
    for i in range(sizes.num_hidden_layers):
        layer = f"transformer.layers.{i}"
        shapes.update(
            {
                **_attention(f"{layer}.self_attn", width, width),
                **_norm(f"{layer}.layer_norm1", width),
                **_attention(f"{layer}.cross_attn_token_to_image", width, narrow),
                **_norm(f"{layer}.layer_norm2", width),
                **_dense(f"{layer}.mlp.lin1", width, sizes.mlp_dim),
                **_dense(f"{layer}.mlp.lin2", sizes.mlp_dim, width),
                **_norm(f"{layer}.layer_norm3", width),
                **_norm(f"{layer}.layer_norm4", width),
                **_attention(f"{layer}.cross_attn_image_to_token", width, narrow),
            }
        )
    shapes.update(_attention("transformer.final_attn_token_to_image", width, narrow))
    shapes.update(_norm("transformer.layer_norm_final_attn", width))
    for name, inputs, outputs in (("upscale_conv1", width, width // 4), ("upscale_conv2", width // 4, width // 8)):
        shapes.update({f"{name}.weight": (inputs, outputs, 2, 2), f"{name}.bias": (outputs,)})
    shapes.update(_norm("upscale_layer_norm", width // 4))
    for i in range(sizes.masks):
        shapes.update(_feed_forward(f"output_hypernetworks_mlps.{i}", width, width, width // 8, depth=3))
    shapes.update(_feed_forward("iou_prediction_head", width, sizes.iou_head_hidden_dim, sizes.masks, sizes.iou_head_depth))
    return shapes


def _attention(name: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    projections = {key: shape for part in "qkv" for key, shape in _dense(f"{name}.{part}_proj", width, inner).items()}
    return {**projections, **_dense(f"{name}.out_proj", inner, width)}


def _feed_forward(name: str, inputs: int, hidden: int, outputs: int, depth: int) -> dict[str, tuple[int, ...]]:
    between = [f"{name}.layers.{i}" for i in range(depth - 2)]
    shapes = _dense(f"{name}.proj_in", inputs, hidden)
    for layer in between:
        shapes.update(_dense(layer, hidden, hidden))
    return {**shapes, **_dense(f"{name}.proj_out", hidden, outputs)}


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
