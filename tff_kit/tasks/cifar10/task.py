"""The settings of CIFAR-10."""

from __future__ import annotations

import tensorflow as tf
from typing_extensions import Literal

from tff_kit.datasets import FederatedDataset
from tff_kit.experiment import Experiment, SettingsError, check_numbers
from tff_kit.tasks.cifar10.data import load
from tff_kit.tasks.cifar10.model import create_net, create_resnet18

Model = Literal["Net", "ResNet18"]


class Cifar10(Experiment):
    """Pictures of CIFAR-10 shared out among clients, as in Flower's text on embedded devices."""

    rounds: int = 3
    """Rounds of federated averaging."""
    clients: int = 2
    """Clients sampled in each round, without replacement."""
    client_lr: float = 0.01
    """Learning rate of the clients. The example behind the text has 0.001 with momentum 0.9, which comes to as much."""
    batch_size: int = 32
    """Pictures in a client's training batch: 781 whole batches for each of two clients, as in the text."""
    eval_every: int = 1
    """Rounds between evaluations on the test pictures; a checkpoint is kept as often."""
    data: str = "auto"
    """auto: CIFAR-10, cached or downloaded, else synthetic pictures. demo: the synthetic ones. Or the folder that holds
    cifar-10-batches-py."""
    partitions: int = 2
    """Clients among which the 50,000 training pictures are shared out."""
    concentration: float = 0.0
    """0 shares pictures out at random. Otherwise a client's shares of the classes are drawn from a Dirichlet distribution of this
    concentration: 0.1 leaves a client few classes, 100 nearly all alike."""
    model: Model = "Net"
    """Net, the text's small network of 62,006 weights, or ResNet18, with group normalization, of 11,173,962 weights."""

    task = "cifar10"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_1=("partitions",), at_least_0=("concentration",))
        if self.model not in _MODELS:
            raise SettingsError(f"Expected --model to be one of {', '.join(_MODELS)}, found {self.model!r}.")

    def load_data(self) -> FederatedDataset:
        return load(self.data, self.partitions, self.concentration, self.batch_size, self.local_epochs, self.seed)

    def build_model(self) -> tf.keras.Model:
        return _MODELS[self.model](self.seed)

    def build_loss(self) -> tf.keras.losses.Loss:
        return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


_MODELS = {"Net": create_net, "ResNet18": create_resnet18}
