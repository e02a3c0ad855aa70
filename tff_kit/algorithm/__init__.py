"""Federated averaging with encoded communication: where encoders meet TensorFlow Federated."""

from tff_kit.requirements import require_tff

require_tff()
