"""Federated averaging with encoded communication: where encoders meet TensorFlow Federated."""

from tff_kit.requirements import require_tff

require_tff()

from tff_kit import runtime as runtime  # What is built here computes on a worker that ends with this process.
