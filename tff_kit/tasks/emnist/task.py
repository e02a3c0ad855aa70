"""The settings of digits by writer."""

from __future__ import annotations

import tensorflow as tf

from tff_kit.datasets import FederatedDataset
from tff_kit.experiment import Experiment, check_numbers
from tff_kit.tasks.emnist.data import load
from tff_kit.tasks.emnist.model import create_original_fedavg_cnn_model


class Emnist(Experiment):
    """Handwritten digits by writer, as in the compression tutorial of TensorFlow Federated."""

    data: str = "auto"
    """auto is EMNIST, cached or downloaded, or else the digits inside scikit-learn. emnist and digits are just one of the two.
    mnist-by-writer is the digits of 700 writers in MNIST. A folder holds emnist_all.sqlite or QMNIST's files, or gets them."""
    only_digits: bool = True
    """Ten classes. --no-only-digits has EMNIST's 62 classes."""
    filters: int = 32
    """Filters of the network's first convolution. The other layers grow in proportion. The default is the tutorial's; fewer
    filters make a smaller network and fewer bits."""

    task = "emnist"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_1=("filters",))

    def load_data(self) -> FederatedDataset:
        return load(self.data, self.only_digits, self.batch_size, self.local_epochs)

    def build_model(self) -> tf.keras.Model:
        return create_original_fedavg_cnn_model(self.only_digits, self.seed, self.filters)

    def build_loss(self) -> tf.keras.losses.Loss:
        return tf.keras.losses.SparseCategoricalCrossentropy()  # Of probabilities, as in the tutorial.
