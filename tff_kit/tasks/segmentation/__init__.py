"""Segmentation: Segment Anything's mask decoder on image embeddings computed once, the task of the text on federated SAM."""

from tff_kit.tasks.segmentation.task import CentralizedSegmentation, Segmentation

__all__ = ["CentralizedSegmentation", "Segmentation"]
