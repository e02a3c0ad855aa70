"""Federated learning with compressed communication, every bit counted.

Importing this package loads and changes nothing. A name is loaded when it is first used. Encoders, tasks and settings need only
TensorFlow. The simulation also needs TensorFlow Federated 0.87.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tff_kit import datasets, encoders, runtime
    from tff_kit.algorithm.processes import (
        build_encoded_broadcast_process_from_model,
        build_encoded_mean_process_from_model,
        build_federated_averaging_process,
    )
    from tff_kit.analysis.updates import client_updates
    from tff_kit.datasets import from_arrays
    from tff_kit.encoders import build_broadcast_encoder_fn, build_mean_encoder_fn
    from tff_kit.encoders.size import format_size
    from tff_kit.experiment import Experiment
    from tff_kit.metrics import Metric
    from tff_kit.runtime.cluster import Machines
    from tff_kit.runtime.sizing import set_sizing_environment, sizing_executor_factory
    from tff_kit.tasks.emnist import Emnist
    from tff_kit.tasks.keywords import CentralizedKeywordSpotting, KeywordSpotting
    from tff_kit.training.centralized import train as train_centralized
    from tff_kit.training.evaluation import evaluate
    from tff_kit.training.rounds import train

__version__ = "0.1.0"

_HOMES = {
    "CentralizedKeywordSpotting": "tasks.keywords",
    "Emnist": "tasks.emnist",
    "Experiment": "experiment",
    "KeywordSpotting": "tasks.keywords",
    "Machines": "runtime.cluster",
    "Metric": "metrics",
    "build_broadcast_encoder_fn": "encoders",
    "build_encoded_broadcast_process_from_model": "algorithm.processes",
    "build_encoded_mean_process_from_model": "algorithm.processes",
    "build_federated_averaging_process": "algorithm.processes",
    "build_mean_encoder_fn": "encoders",
    "client_updates": "analysis.updates",
    "evaluate": "training.evaluation",
    "format_size": "encoders.size",
    "from_arrays": "datasets",
    "set_sizing_environment": "runtime.sizing",
    "sizing_executor_factory": "runtime.sizing",
    "train": "training.rounds",
    "train_centralized": "training.centralized:train",
}
"""The module of each public name: MODULE, or MODULE:NAME if the name differs there."""
_ROOMS = ("algorithm", "analysis", "datasets", "embeddings", "encoders", "experiment", "runtime", "tasks", "training")

__all__ = [
    "CentralizedKeywordSpotting",
    "Emnist",
    "Experiment",
    "KeywordSpotting",
    "Machines",
    "Metric",
    "build_broadcast_encoder_fn",
    "build_encoded_broadcast_process_from_model",
    "build_encoded_mean_process_from_model",
    "build_federated_averaging_process",
    "build_mean_encoder_fn",
    "client_updates",
    "datasets",
    "encoders",
    "evaluate",
    "format_size",
    "from_arrays",
    "runtime",
    "set_sizing_environment",
    "sizing_executor_factory",
    "train",
    "train_centralized",
]


def __getattr__(name: str) -> Any:
    """Loads a public name, or one of the package's rooms, when it is first used."""
    if name in _HOMES:
        module, _, there = _HOMES[name].partition(":")
        value = getattr(importlib.import_module(f"{__name__}.{module}"), there or name)
    elif name in _ROOMS:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
