"""What clients minimize and what is measured: overlap of masks.

The loss is Dice plus cross-entropy, as in Hugging Face's example of fine-tuning SAM, where it is MONAI's `DiceCELoss` with
squared predictions. Dice: F. Milletari, N. Navab, S.-A. Ahmadi: V-Net. 3DV 2016, arXiv 1606.04797.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tff_kit.metrics import Metric

_SMOOTH = 1e-5


@tf.keras.utils.register_keras_serializable(package="tff_kit")
class DiceCrossEntropy(tf.keras.losses.Loss):
    """Dice loss plus cross-entropy of logits, [batch, side, side]; each mask counts the same, whatever its size."""

    def call(self, y_true, y_pred):
        y_true = tf.cast(y_true, y_pred.dtype)
        entropy = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y_true, y_pred), axis=[1, 2])
        return dice_loss(y_true, tf.sigmoid(y_pred)) + entropy


def dice_loss(masks: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Returns 1 - 2 sum(mp) / (sum(m^2) + sum(p^2)) of each mask, float32 [batch]."""
    overlap = tf.reduce_sum(masks * probabilities, axis=[1, 2])
    sizes = tf.reduce_sum(tf.square(masks) + tf.square(probabilities), axis=[1, 2])
    return 1 - (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)


def intersection_over_union(masks: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns common elements divided by all elements of a mask and its prediction, float32 [batch]."""
    common, of_mask, predicted = _count(masks, logits)
    return tf.math.divide_no_nan(common, of_mask + predicted - common)


def dice(masks: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns twice the common elements divided by the elements of a mask and of its prediction, float32 [batch]."""
    common, of_mask, predicted = _count(masks, logits)
    return tf.math.divide_no_nan(2 * common, of_mask + predicted)


METRICS: Sequence[Metric] = (
    Metric("iou", lambda: tf.keras.metrics.MeanMetricWrapper(intersection_over_union, name="iou")),
    Metric("dice", lambda: tf.keras.metrics.MeanMetricWrapper(dice, name="dice")),
)


def _count(masks: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    masks, predicted = tf.cast(masks > 0.5, tf.float32), tf.cast(logits > 0, tf.float32)
    common, of_mask, of_predicted = (tf.reduce_sum(x, axis=[1, 2]) for x in (masks * predicted, masks, predicted))
    return common, of_mask, of_predicted
