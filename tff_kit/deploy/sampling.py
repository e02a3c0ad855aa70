"""Who takes part in a round: the simulation's draws, without TensorFlow Federated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Of TFF's `build_uniform_sampling_fn`: a multiplicative congruential generator (Lehmer's) from round to round.
_MODULUS = 2**31 - 1
_MULTIPLIER = 16807


def sample_clients(clients: Sequence[str], round_num: int, size: int, seed: int) -> list[str]:
    """Returns the clients of a round, without replacement, as `tff.simulation.build_uniform_sampling_fn` draws them."""
    start = np.random.RandomState(seed).randint(1, _MODULUS - 1)
    state = pow(_MULTIPLIER, round_num, _MODULUS) * start % _MODULUS
    return np.random.RandomState(state).choice(list(clients), size=size, replace=False).tolist()


def draw_seeds(round_num: int, size: int, seed: int) -> list[int]:
    """Returns the seed of each sampled client's data in a round, in the order in which they were sampled."""
    return np.random.default_rng([seed, round_num]).integers(2**31, size=size).tolist()
