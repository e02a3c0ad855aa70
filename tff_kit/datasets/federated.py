"""The interface of all datasets: client ids, a function that reads one client's batches, and held-out test data."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from typing import Any, Callable, Optional

import tensorflow as tf

from tff_kit.errors import UserError


class DataError(UserError, ValueError):
    """Data that is missing, broken, or does not fit. The message says what was expected, what was found, what to do."""


@dataclasses.dataclass(frozen=True)
class FederatedDataset:
    """Clients' training data and held-out test data.

    Attributes:
      name: The data, in a few words. It appears in the terminal, in the settings and in the title of every figure.
      client_ids: The clients that have training examples, different strings of any characters.
      client_dataset: From a client's id, a string tensor in UTF-8, and a seed, an int64 tensor, to the client's training batches
        of `(inputs, labels)` in one round, shuffled by the seed. Made of TensorFlow operations only, since the worker
        runs it: what travels to the worker is the id and the seed, not the data.
      test: Batches of `(inputs, labels)` of the held-out examples, always in the same order.
      notes: Sentences that a user should read before trusting a result on this data.
      write_client: Writes a client's files, by its id, to a folder that the task reads as its data: for data that is not examples
        which each client shuffles whole. `None` for data that is.

    Raises:
      DataError: If there is no client, or its id can't be one.
    """

    name: str
    client_ids: tuple[str, ...]
    client_dataset: Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]
    test: tf.data.Dataset
    notes: tuple[str, ...] = ()
    write_client: Optional[Callable[[str, pathlib.Path], None]] = None

    def __post_init__(self) -> None:
        if not self.client_ids:
            raise DataError(f"Expected clients in {self.name}, found none.")
        if twice := [client for client, count in collections.Counter(self.client_ids).items() if count > 1]:
            raise DataError(f"Expected different ids of the clients in {self.name}, found {twice[0]!r} twice.")
        for client in self.client_ids:
            try:
                client.encode()
            except (AttributeError, UnicodeEncodeError) as error:
                raise DataError(f"Expected ids of clients in {self.name} to be strings in UTF-8, found {client!r}.") from error

    @property
    def element_spec(self) -> Any:
        """The `tf.TensorSpec`s of a training batch."""
        return self.client_dataset(tf.constant(self.client_ids[0]), tf.constant(0, tf.int64)).element_spec


@dataclasses.dataclass(frozen=True)
class PooledDataset(FederatedDataset):
    """Clients' data that can also be read together, for training without federation.

    Attributes:
      validation: Batches of `(inputs, labels)` of other held-out examples than those of `test`, always in the same order.
      all_clients: From a seed, an int64 tensor, to one epoch of training batches of all clients' examples together.
      all_batches: The number of these batches.
    """

    validation: Optional[tf.data.Dataset] = None
    all_clients: Optional[Callable[[tf.Tensor], tf.data.Dataset]] = None
    all_batches: int = 0
