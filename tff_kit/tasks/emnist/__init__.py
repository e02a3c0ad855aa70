"""Handwritten digits by writer, the task of TensorFlow Federated's compression tutorial."""

from tff_kit.tasks.emnist.task import Emnist

__all__ = ["Emnist"]
