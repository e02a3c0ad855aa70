"""Federated learning with compressed communication on TensorFlow Federated 0.87, every bit counted."""

import os
import platform
import sys

if not (3, 9) <= sys.version_info[:2] <= (3, 11) or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
    raise ImportError(
        "tff_kit needs Python 3.9, 3.10 or 3.11 on Linux x86-64, the only ones for which TensorFlow Federated 0.87 exists; "
        f"found Python {platform.python_version()} on {platform.system()} {platform.machine()}."
    )

# Both have to be set before TensorFlow is imported, and workers inherit them: no start-up messages, and the faster kernels
# of oneDNN, which TensorFlow itself takes on the newest processors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from tff_kit import runtime
from tff_kit.centralized import train as train_centralized
from tff_kit.cluster import Machines
from tff_kit.datasets import from_arrays
from tff_kit.encoders import build_broadcast_encoder_fn, build_mean_encoder_fn
from tff_kit.evaluation import evaluate
from tff_kit.experiments import CentralizedKeywordSpotting, Emnist, Experiment, KeywordSpotting
from tff_kit.processes import (
    build_encoded_broadcast_process_from_model,
    build_encoded_mean_process_from_model,
    build_federated_averaging_process,
)
from tff_kit.sizing import set_sizing_environment, sizing_executor_factory
from tff_kit.training import train
from tff_kit.units import format_size
from tff_kit.updates import client_updates

__all__ = [
    "CentralizedKeywordSpotting",
    "Emnist",
    "Experiment",
    "KeywordSpotting",
    "Machines",
    "build_broadcast_encoder_fn",
    "build_encoded_broadcast_process_from_model",
    "build_encoded_mean_process_from_model",
    "build_federated_averaging_process",
    "build_mean_encoder_fn",
    "client_updates",
    "evaluate",
    "format_size",
    "from_arrays",
    "set_sizing_environment",
    "sizing_executor_factory",
    "train",
    "train_centralized",
]

# As TFF does when it is imported; from here on with a worker that ends with this process.
runtime.set_default_context()
