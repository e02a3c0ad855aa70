"""Client data: who has which examples, and how a client's examples become batches."""

from tff_kit.datasets.arrays import from_arrays
from tff_kit.datasets.federated import DataError, FederatedDataset, PooledDataset

__all__ = ["DataError", "FederatedDataset", "PooledDataset", "from_arrays"]
