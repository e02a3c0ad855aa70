"""What must be installed for a part of the package, and the one sentence that says so where it is missing."""

from __future__ import annotations

import importlib.util
import platform


def require_tff() -> None:
    """Raises `ImportError` where TensorFlow Federated is not installed."""
    if importlib.util.find_spec("tensorflow_federated") is None:
        raise ImportError(
            "Expected TensorFlow Federated 0.87, which simulates the clients, found none. It exists for Python 3.9 to 3.11 "
            f"on Linux x86-64 only, and this is Python {platform.python_version()} on {platform.system()} {platform.machine()}. "
            "Install it with `make setup` in a clone of tff_kit, or as docs/install.md says. Encoders, tasks and settings work "
            "without it."
        )


def require_keras_2() -> None:
    """Raises `ImportError` where `tf.keras` is Keras 3.

    Run directories hold models of Keras 2, and Keras 3 refuses some of the tasks' layers. From TensorFlow 2.16 on, `tf.keras` is
    what its first use makes of it, for the whole process: Keras 2 after tensorflow-model-optimization was imported, as encoders
    do, or with TF_USE_LEGACY_KERAS=1; else Keras 3.
    """
    import tensorflow as tf

    version = getattr(tf.keras, "version", None)  # Keras 2 has no such function.
    if version is not None:
        raise ImportError(
            f"Expected Keras 2 as tf.keras, found Keras {version()}, since tf.keras was used before tff_kit. Import "
            "tff_kit.experiment before the first use of tf.keras, or set the environment variable TF_USE_LEGACY_KERAS=1 before "
            "TensorFlow is imported."
        )
