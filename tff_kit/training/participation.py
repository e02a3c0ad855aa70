"""Draws who takes part in a round: the sampled clients, and those of them that drop out or are late."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tff_kit.experiment import Experiment

# The Lehmer generator by which TFF's own sampling goes from round to round: S. K. Park, K. W. Miller: Random Number Generators:
# Good Ones Are Hard to Find. Communications of the ACM 31, 1988.
_MODULUS = 2**31 - 1
_MULTIPLIER = 16807


def sample_clients(client_ids: Sequence[str], count: int, round_num: int, seed: int) -> list[str]:
    """Returns `count` clients of a round, drawn without replacement as `tff.simulation.build_uniform_sampling_fn` draws them.

    TFF's function is written again here because a server of real clients has no TFF, and has to draw the same clients.

    Args:
      client_ids: All clients.
      count: Number of clients to draw, at most all.
      round_num: The round's number, from 1 on.
      seed: The seed of the training.
    """
    start = int(np.random.RandomState(seed).randint(1, _MODULUS - 1))
    drawn = np.random.RandomState(pow(_MULTIPLIER, round_num, _MODULUS) * start % _MODULUS)
    # Drawn by their places: an array of NumPy's would take zeros from the end of an id.
    return [client_ids[place] for place in drawn.choice(len(client_ids), size=count, replace=False)]


def client_seeds(count: int, round_num: int, seed: int) -> np.ndarray:
    """Returns the seeds by which a round's clients draw the order of their examples, int64 [count]."""
    return np.random.default_rng([seed, round_num]).integers(2**31, size=count)


def draw_missing(experiment: Experiment, round_num: int, clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of a round's clients drop out and which others are late, bool [clients] each; one is always neither.

    Late clients are others in each round, as in T. Li et al.: Federated Optimization in Heterogeneous Networks, MLSys 2020.
    """
    dropped = np.random.default_rng([experiment.seed, round_num, 1]).random(clients) < experiment.dropout
    dropped[0] &= not dropped.all()
    times = np.random.default_rng([experiment.seed, round_num, 2]).lognormal(sigma=experiment.straggling, size=clients)
    times[dropped] = np.inf
    return dropped, ~dropped & (times > max(experiment.deadline, times.min()))
