"""Federated averaging with encoded communication: where encoders meet TensorFlow Federated."""

from tff_kit.simulation import require_tff

require_tff()
