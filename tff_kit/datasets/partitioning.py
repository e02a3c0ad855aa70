"""Shares out the examples of one data set among clients: evenly, or so that clients have different classes.

The second way draws each client's shares of the classes from a Dirichlet distribution: T.-M. H. Hsu, H. Qi, M. Brown: Measuring
the Effects of Non-Identical Data Distribution for Federated Visual Classification. 2019, arXiv 1909.06335.
"""

from __future__ import annotations

import numpy as np

from tff_kit.datasets.federated import DataError


def split_evenly(labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
    """Shares examples out at random, so that all clients have about the same classes.

    Args:
      labels: int [examples], the class of each.
      clients: Number of clients.
      seed: Seed of the shuffling.

    Returns:
      For each client the places of its examples, int64, in ascending order. Sizes differ by one at most.

    Raises:
      DataError: If there are fewer examples than clients.
    """
    _check_enough(labels, clients)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [np.sort(order[client::clients]) for client in range(clients)]


def split_by_class(labels: np.ndarray, clients: int, concentration: float, seed: int) -> list[np.ndarray]:
    """Shares examples out so that each client has classes of its own. All clients have as many examples, up to one.

    A client's shares of the classes are drawn from a Dirichlet distribution whose mean is the data's own shares. Clients take
    their examples in turns, one at a time; once a class is used up, the other shares grow in proportion.

    Args:
      labels: int [examples], the class of each.
      clients: Number of clients.
      concentration: The distribution's concentration, more than 0. At 0.1 a client has one or two classes; at 100 all are alike.
      seed: Seed of all random draws.

    Returns:
      For each client the places of its examples, int64, in ascending order.

    Raises:
      DataError: If there are fewer examples than clients.
    """
    _check_enough(labels, clients)
    drawn = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    left = [list(drawn.permutation(np.flatnonzero(labels == one))) for one in classes]
    # A share of exactly zero for every class that is left would have no way to grow.
    shares = drawn.dirichlet(concentration * len(classes) * counts / counts.sum(), clients) + 1e-9
    taken: list[list[int]] = [[] for _ in range(clients)]
    for turn in range(len(labels)):
        client = turn % clients
        weights = shares[client] * [bool(places) for places in left]
        taken[client].append(left[drawn.choice(len(classes), p=weights / weights.sum())].pop())
    return [np.sort(np.array(places)) for places in taken]


def _check_enough(labels: np.ndarray, clients: int) -> None:
    if len(labels) < clients:
        raise DataError(f"Expected an example for each of {clients:,} clients, found {len(labels):,}. Use fewer clients.")
