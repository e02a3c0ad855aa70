"""SAM's mask decoder: from an image's embeddings and a box to a mask. Clients train it; the rest of SAM stays as it is.

A. Kirillov et al.: Segment Anything. ICCV 2023, arXiv 2304.02643, section 3 and appendix A. The weights have the names, the
shapes and the meaning of Hugging Face's PyTorch `SamModel`, so that they go both ways as they are. The decoder is written for
TensorFlow alone: a device needs no `transformers`, and TFF's worker no operation that it lacks.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tff_kit.tasks.segmentation.sizes import Sizes, weight_shapes

Weights = Mapping[str, Any]
_UPSCALE_EPSILON = 1e-6
_TOKENS = ("iou_token.weight", "mask_tokens.weight")


def create_decoder(
    sizes: Sizes,
    prompts: Mapping[str, np.ndarray],
    seed: Optional[int] = None,
    weights: Optional[Mapping[str, np.ndarray]] = None,
) -> tf.keras.Model:
    """Returns the mask decoder as a Keras model.

    It takes `{"image": float32 [batch, positions, hidden_size], "box": float32 [batch, 4]}`: embeddings row by row, and a box of
    x_min, y_min, x_max, y_max in pixels of the encoder's image. It puts out logits, float32 [batch, side, side].

    Args:
      sizes: ViT-B's have 4,058,340 weights.
      prompts: The frozen prompt encoder's weights for boxes, by the names of `PROMPT_WEIGHTS`.
      seed: Seed of the initial weights, which are spread as PyTorch's are; `None` for different ones in each call.
      weights: Initial weights instead, by the names of `weight_shapes`.
    """
    image = tf.keras.Input([sizes.positions, sizes.hidden_size], name="image")
    box = tf.keras.Input([4], name="box")
    layer = MaskDecoder(sizes, prompts, seed)
    model = tf.keras.Model({"image": image, "box": box}, layer({"image": image, "box": box}))
    if weights is not None and tf.executing_eagerly():  # In TFF's graphs, weights come from outside.
        layer.set_named_weights(weights)
    return model


PROMPT_WEIGHTS = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.point_embed.2.weight",
    "prompt_encoder.point_embed.3.weight",
    "prompt_encoder.no_mask_embed.weight",
)
"""What the prompt encoder makes a box's tokens of: the positions' frequencies, the two corners, and no mask given."""


@tf.keras.utils.register_keras_serializable(package="tff_kit")
class MaskDecoder(tf.keras.layers.Layer):
    """The layer of `create_decoder`. The prompt encoder's weights are constants of it, and no variables: nothing crosses."""

    def __init__(self, sizes: Any, prompts: Mapping[str, Any], seed: Optional[int] = None, **kwargs):
        super().__init__(**kwargs)
        self.sizes = Sizes(**sizes) if isinstance(sizes, dict) else sizes
        self.prompts = {name: np.asarray(prompts[name], np.float32) for name in PROMPT_WEIGHTS}
        self._seed = seed

    def build(self, input_shape):
        shapes = weight_shapes(self.sizes)
        self._variables = {
            variable: self.add_weight(
                variable, _stacked_shape(names, shapes), initializer=_Stacked(names, shapes, self._seed).draw
            )
            for variable, names in stacks(self.sizes).items()
        }
        super().build(input_shape)

    def call(self, inputs):
        # What predicts a mask's quality has no gradient otherwise, of which Keras would warn: here it is zero.
        unused = tf.add_n([tf.reduce_sum(x) for name, x in self._variables.items() if name.startswith("iou_prediction_head.")])
        return self.decode(inputs, masks=1)[0][:, 0] + 0 * unused

    def decode(self, inputs: Mapping[str, tf.Tensor], masks: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns masks as logits, [batch, masks, side, side], and the predicted quality of all masks, [batch, all masks]."""
        return decode_masks(self._weights(), self.prompts, self.sizes, inputs["image"], inputs["box"], masks)

    def named_weights(self) -> dict[str, np.ndarray]:
        """Returns the weights by Hugging Face's names, in PyTorch's shapes."""
        shapes = weight_shapes(self.sizes)
        return {name: value.numpy().reshape(shapes[name]) for name, value in self._weights().items()}

    def set_named_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Sets the weights to those of Hugging Face's names and PyTorch's shapes."""
        shapes = weight_shapes(self.sizes)
        for variable, names in stacks(self.sizes).items():
            parts = [np.asarray(weights[name], np.float32).reshape(_kept_shape(shapes[name])) for name in names]
            self._variables[variable].assign(np.concatenate(parts))

    def _weights(self) -> dict[str, tf.Tensor]:
        shapes = weight_shapes(self.sizes)
        found: dict[str, tf.Tensor] = {}
        for variable, names in stacks(self.sizes).items():
            parts = tf.split(self._variables[variable], [_kept_shape(shapes[name])[0] for name in names])
            found.update(zip(names, parts))
        return found

    def get_config(self):
        prompts = {name: value.tolist() for name, value in self.prompts.items()}
        return {**super().get_config(), "sizes": vars(self.sizes), "prompts": prompts}


def stacks(sizes: Sizes) -> dict[str, list[str]]:
    """Returns which weights are kept as one variable, one below the other, by the variable's name.

    The decoder has 120 weights, most of them small. Each variable costs TFF time to build, and an encoder its side information.
    So all vectors are two variables, norms' scales and the rest; queries, keys and values are one; and so are the layers that
    each of the masks has.
    """
    found: dict[str, list[str]] = {}
    for name, shape in weight_shapes(sizes).items():
        if len(shape) == 1:
            variable = "scales" if "layer_norm" in name and name.endswith("weight") else "shifts"
        else:
            variable = re.sub(r"\.[qkv]_proj\.", ".qkv_proj.", re.sub(r"mlps\.\d\.", "mlps.", name))
            variable = "tokens.weight" if variable in _TOKENS else variable
        found.setdefault(variable, []).append(name)
    return found


def decoder_layer(model: tf.keras.Model) -> MaskDecoder:
    """Returns the mask decoder in a model of `create_decoder`."""
    return next(layer for layer in model.layers if isinstance(layer, MaskDecoder))


def decode_masks(
    weights: Weights, prompts: Weights, sizes: Sizes, image: tf.Tensor, box: tf.Tensor, masks: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns masks of a box, logits [batch, masks, side, side], and their predicted quality [batch, all masks].

    Args:
      weights: The mask decoder's weights.
      prompts: The prompt encoder's weights.
      sizes: The sizes.
      image: Embeddings, float32 [batch, positions, hidden_size].
      box: Float32 [batch, 4].
      masks: How many masks to make. The first one is that of a prompt that means one thing.
    """
    batch = tf.shape(image)[0]
    own = tf.concat([weights["iou_token.weight"], weights["mask_tokens.weight"]], axis=0)
    tokens = tf.concat([tf.repeat(own[tf.newaxis], batch, axis=0), embed_box(prompts, sizes, box)], axis=1)
    image = image + prompts["prompt_encoder.no_mask_embed.weight"]
    tokens, image = _transform(weights, sizes, tokens, image, embed_grid(prompts, sizes))
    upscaled = _upscale(weights, sizes, image)
    hyper = [_feed_forward(weights, f"output_hypernetworks_mlps.{i}", 3, tokens[:, 1 + i]) for i in range(masks)]
    flat = tf.matmul(tf.stack(hyper, axis=1), upscaled, transpose_b=True)
    quality = _feed_forward(weights, "iou_prediction_head", sizes.iou_head_depth, tokens[:, 0])
    return tf.reshape(flat, [batch, masks, sizes.side, sizes.side]), quality


def embed_box(prompts: Weights, sizes: Sizes, box: tf.Tensor) -> tf.Tensor:
    """Returns the tokens of a box's corners, float32 [batch, 2, hidden_size]."""
    corners = (tf.reshape(box, [-1, 2, 2]) + 0.5) / sizes.image_size  # From a pixel's number to its middle.
    which = tf.concat([prompts[f"prompt_encoder.point_embed.{i}.weight"] for i in (2, 3)], axis=0)
    return _positions(prompts, corners) + which


def embed_grid(prompts: Weights, sizes: Sizes) -> tf.Tensor:
    """Returns the positions of an image's embeddings, float32 [positions, hidden_size]."""
    middles = (tf.range(sizes.grid, dtype=tf.float32) + 0.5) / sizes.grid
    x, y = tf.meshgrid(middles, middles)
    return _positions(prompts, tf.reshape(tf.stack([x, y], axis=-1), [-1, 2]))


def _positions(prompts: Weights, places: tf.Tensor) -> tf.Tensor:
    """Returns places between 0 and 1, [..., 2] as x and y, as sines and cosines of random frequencies."""
    angles = 2 * np.pi * tf.matmul(2 * places - 1, prompts["shared_image_embedding.positional_embedding"])
    return tf.concat([tf.sin(angles), tf.cos(angles)], axis=-1)


def _transform(
    weights: Weights, sizes: Sizes, tokens: tf.Tensor, image: tf.Tensor, grid: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokens and image attend to each other. Each attention is told again where its queries and keys are."""
    place, epsilon = tokens, sizes.layer_norm_eps
    for i in range(sizes.num_hidden_layers):
        layer = f"transformer.layers.{i}"
        if i:
            attended = _attend(weights, f"{layer}.self_attn", sizes, tokens + place, tokens + place, tokens)
            tokens = tokens + attended
        else:  # The first layer's tokens are their own places.
            tokens = _attend(weights, f"{layer}.self_attn", sizes, tokens, tokens, tokens)
        tokens = _normalize(weights, f"{layer}.layer_norm1", tokens, epsilon)
        attended = _attend(weights, f"{layer}.cross_attn_token_to_image", sizes, tokens + place, image + grid, image)
        tokens = _normalize(weights, f"{layer}.layer_norm2", tokens + attended, epsilon)
        hidden = tf.nn.relu(_dense(weights, f"{layer}.mlp.lin1", tokens))
        tokens = _normalize(weights, f"{layer}.layer_norm3", tokens + _dense(weights, f"{layer}.mlp.lin2", hidden), epsilon)
        attended = _attend(weights, f"{layer}.cross_attn_image_to_token", sizes, image + grid, tokens + place, tokens)
        image = _normalize(weights, f"{layer}.layer_norm4", image + attended, epsilon)
    attended = _attend(weights, "transformer.final_attn_token_to_image", sizes, tokens + place, image + grid, image)
    return _normalize(weights, "transformer.layer_norm_final_attn", tokens + attended, epsilon), image


def _attend(weights: Weights, name: str, sizes: Sizes, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    def heads(part: str, x: tf.Tensor) -> tf.Tensor:
        x = _dense(weights, f"{name}.{part}_proj", x)
        per_head = x.shape[-1] // sizes.num_attention_heads
        return tf.transpose(tf.reshape(x, [tf.shape(x)[0], -1, sizes.num_attention_heads, per_head]), [0, 2, 1, 3])

    q, k, v = heads("q", query), heads("k", key), heads("v", value)
    attention = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / np.sqrt(q.shape[-1]).astype(np.float32))
    joined = tf.transpose(tf.matmul(attention, v), [0, 2, 1, 3])
    flat = tf.reshape(joined, [tf.shape(joined)[0], -1, sizes.num_attention_heads * v.shape[-1]])
    return _dense(weights, f"{name}.out_proj", flat)


def _upscale(weights: Weights, sizes: Sizes, image: tf.Tensor) -> tf.Tensor:
    """Returns an embedding of each element of the mask, float32 [batch, side * side, hidden_size // 8]."""
    first = _double(weights, "upscale_conv1", image, sizes.grid)
    first = tf.nn.gelu(_normalize(weights, "upscale_layer_norm", first, _UPSCALE_EPSILON))
    return tf.nn.gelu(_double(weights, "upscale_conv2", first, 2 * sizes.grid))


def _double(weights: Weights, name: str, image: tf.Tensor, side: int) -> tf.Tensor:
    """A transposed convolution of size and stride 2: each embedding becomes 2 x 2, and no two overlap, so it is a product."""
    filters = weights[f"{name}.bias"].shape[0]
    blocks = tf.reshape(tf.matmul(image, weights[f"{name}.weight"]), [-1, side, side, filters, 2, 2])
    rows = tf.transpose(blocks, [0, 1, 4, 2, 5, 3])
    return tf.reshape(rows, [-1, 4 * side * side, filters]) + weights[f"{name}.bias"]


def _feed_forward(weights: Weights, name: str, depth: int, x: tf.Tensor) -> tf.Tensor:
    for layer in ["proj_in", *(f"layers.{i}" for i in range(depth - 2))]:
        x = tf.nn.relu(_dense(weights, f"{name}.{layer}", x))
    return _dense(weights, f"{name}.proj_out", x)


def _dense(weights: Weights, name: str, x: tf.Tensor) -> tf.Tensor:
    return tf.matmul(x, weights[f"{name}.weight"], transpose_b=True) + weights[f"{name}.bias"]


def _normalize(weights: Weights, name: str, x: tf.Tensor, epsilon: float) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _kept_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Transposed convolutions are kept as matrices, which their products take and encoders find the rank of."""
    return (shape[0], int(np.prod(shape[1:]))) if len(shape) > 2 else shape


def _stacked_shape(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    kept = [_kept_shape(shapes[name]) for name in names]
    return (sum(shape[0] for shape in kept), *kept[0][1:])


class _Stacked:
    """Draws initial weights, each spread as PyTorch's: norms 1 and 0, tokens normal, all others uniform by their inputs."""

    def __init__(self, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], seed: Optional[int]):
        self._names, self._shapes, self._seed = names, shapes, seed

    def draw(self, shape: Any, dtype: Any = tf.float32) -> tf.Tensor:
        """Returns the initial values of the stack; its shape follows from the weights."""
        del shape, dtype
        return tf.concat([self._initializer(name)(_kept_shape(self._shapes[name])) for name in self._names], axis=0)

    def _initializer(self, name: str) -> tf.keras.initializers.Initializer:
        own_seed = None if self._seed is None else zlib.crc32(f"{self._seed} {name}".encode()) % 2**31
        module, _, kind = name.rpartition(".")
        if "layer_norm" in module:
            return tf.keras.initializers.Constant(1.0 if kind == "weight" else 0.0)
        if name in _TOKENS:
            return tf.keras.initializers.RandomNormal(stddev=1.0, seed=own_seed)
        limit = float(np.prod(self._shapes[f"{module}.weight"][1:])) ** -0.5
        return tf.keras.initializers.RandomUniform(-limit, limit, own_seed)
