"""An object to segment, as a store keeps it: the number of its image, its box, and its mask in bits.

    image   int32                 the image's number in its folder, from 0
    box     4 float32             x_min, y_min, x_max, y_max, in pixels of the encoder's image
    mask    side x side bits      row by row, the first one in the highest bit of a byte

The box touches the mask, as in Hugging Face's example of fine-tuning. A client moves its sides outwards, by another distance each
time.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_kit.tasks.segmentation.sizes import Sizes, scaled_size

_HEAD = 20
JITTER_UNITS = 256
"""A jitter is in 256ths of the encoder's image: pixels of the example's images."""


def object_bytes(sizes: Sizes) -> int:
    """Returns the size of an object in a store, in bytes."""
    return _HEAD + sizes.side**2 // 8


def pack_object(image: int, mask: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Returns an object as a store keeps it, uint8 [object_bytes].

    Args:
      image: The image's number.
      mask: bool [height, width] in the image's own size, not all `False`.
      sizes: The sizes.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    scale = sizes.image_size / max(mask.shape)
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], "<f4") * np.float32(scale)
    head = np.array([image], "<i4").tobytes() + box.astype("<f4").tobytes()
    return np.concatenate([np.frombuffer(head, np.uint8), np.packbits(scale_mask(mask, sizes))])


def scale_mask(mask: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Returns a mask in the decoder's frame, bool [side, side]: what is at least half covered, and never nothing.

    Args:
      mask: bool [height, width].
      sizes: The sizes.
    """
    from PIL import Image  # Devices, which only read objects, have none.

    height, width = scaled_size(mask.shape, sizes.side)
    covered = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    framed = np.zeros([sizes.side, sizes.side], bool)
    # An object that covers half of no element keeps the one that it covers most.
    framed[:height, :width] = covered >= min(0.5, covered.max())
    return framed


def image_numbers(objects: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of the images of objects, int32 [n]; `objects` is uint8 [n, object_bytes]."""
    return tf.bitcast(tf.reshape(objects[:, :4], [-1, 1, 4]), tf.int32)[:, 0]


def unpack_objects(objects: tf.Tensor, sizes: Sizes) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns images int32 [n], boxes float32 [n, 4] and masks float32 [n, side, side] of objects, uint8 [n, object_bytes]."""
    box = tf.bitcast(tf.reshape(objects[:, 4:_HEAD], [-1, 4, 4]), tf.float32)
    bits = tf.bitwise.right_shift(objects[:, _HEAD:, tf.newaxis], tf.constant([7, 6, 5, 4, 3, 2, 1, 0], tf.uint8)) & 1
    return image_numbers(objects), box, tf.cast(tf.reshape(bits, [-1, sizes.side, sizes.side]), tf.float32)


def jitter_boxes(boxes: tf.Tensor, jitter: int, seed: tf.Tensor, sizes: Sizes) -> tf.Tensor:
    """Returns boxes, float32 [n, 4], each side moved outwards by 0 to `jitter` - 1 units, but not out of the frame."""
    drawn = tf.random.stateless_uniform(tf.shape(boxes), seed, 0, max(1, jitter), tf.int32)
    outwards = tf.cast(drawn, tf.float32) * (sizes.image_size / JITTER_UNITS) * tf.constant([-1.0, -1.0, 1.0, 1.0])
    return tf.clip_by_value(boxes + outwards, 0.0, float(sizes.image_size))


def box_masks(boxes: tf.Tensor, sizes: Sizes) -> tf.Tensor:
    """Returns the boxes themselves as masks, float32 [n, side, side]: what a decoder has to beat."""
    middles = (tf.range(sizes.side, dtype=tf.float32) + 0.5) * (sizes.image_size / sizes.side)

    def inside(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        return tf.cast((middles >= low[:, tf.newaxis]) & (middles <= high[:, tf.newaxis] + 1), tf.float32)

    return inside(boxes[:, 1], boxes[:, 3])[:, :, tf.newaxis] * inside(boxes[:, 0], boxes[:, 2])[:, tf.newaxis]
