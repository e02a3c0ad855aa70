"""Client data: who has which examples, and how a client's examples become batches."""

from tff_kit.datasets.federated import DataError, FederatedDataset

__all__ = ["DataError", "FederatedDataset"]
