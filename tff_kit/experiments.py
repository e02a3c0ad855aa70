"""The settings of each experiment, with their reasons.

A task is a subclass of `Experiment`: its data, its model, and the settings in which it differs. The defaults are those
of the text that the task is taken from.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf
from typing_extensions import Literal

from tff_kit import datasets, encoders, whisper
from tff_kit.datasets import embeddings, emnist, store_writer
from tff_kit.models.emnist_cnn import create_original_fedavg_cnn_model
from tff_kit.models.kws_head import create_kws_head

CLIENT_OPTIMIZERS = ("sgd", "adam")
SERVER_OPTIMIZERS = ("sgd", "sgdm", "adam", "yogi", "adagrad")


class SettingsError(Exception):
    """A setting that can't be. The message says what was expected and what was found."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What every training can be told, federated or not."""

    batch_size: int = 20
    """Examples in a training batch."""
    seed: int = 0
    """Of everything that is drawn."""
    data: str = "auto"
    """Where the data is."""

    task = ""

    def load_data(self) -> datasets.FederatedDataset:
        """Loads the data; raises `tff_kit.datasets.DataError` where it is missing or broken."""
        raise NotImplementedError

    def build_model(self) -> tf.keras.Model:
        """Returns a new, untrained model; its weights are drawn from the seed."""
        raise NotImplementedError

    def build_loss(self) -> tf.keras.losses.Loss:
        """Returns the loss of what the model puts out."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Experiment(Training):
    """What every federated averaging experiment can be told; the settings of `tff_kit.train`.

    A subclass is a task: it says what is trained on what by `load_data`, `build_model` and `build_loss`, has a name in `task`,
    and may have other defaults and further settings. `python -m tff_kit train emnist --help` explains each setting.
    """

    rounds: int = 10
    """Rounds of federated averaging."""
    clients: int = 10
    """Clients sampled in each round, without replacement."""
    broadcast: str = "identity"
    """Encoder of the model on its way to the clients: identity, tensor_encoding:BITS, uniform:BITS, or stages chained by +,
    such as rotate+uniform:4, eden:0.5, lowrank:8+step:1+entropy; after a slash one for small variables,
    such as eden:1/uniform:8. An unknown one lists the stages."""
    broadcast_change: bool = False
    """Broadcast how the weights differ from the initial ones, which clients draw from the seed, instead of the weights."""
    broadcast_feedback: bool = False
    """Add what encoding lost of a broadcast to the next one: for coarse rounding, not for low rank."""
    mean: str = "identity"
    """Encoder of the clients' updates on their way to the server, likewise."""
    threshold: int = encoders.THRESHOLD
    """Variables with more elements than this are large. Others travel as they are, unless the encoder has a part for them;
    biases are sensitive to error, and small."""
    client_optimizer: Literal["sgd", "adam"] = "sgd"
    """What clients train with."""
    client_lr: float = 0.02
    """Learning rate of the clients."""
    server_optimizer: Literal["sgd", "sgdm", "adam", "yogi", "adagrad"] = "sgd"
    """What the server makes of the clients' mean update: sgd, sgdm with momentum .9, or an adaptive method."""
    server_lr: float = 1.0
    """Learning rate of the server; with sgd, 1 is plain averaging. Adaptive methods want less, such as .01."""
    weighted: bool = True
    """Weight clients by their numbers of examples; --no-weighted for equal weights."""
    noise_multiplier: float = 0.0
    """Differential privacy: the noise on the sum of clipped updates, in units of the norm to which they are clipped; 0 for none.
    It needs --no-weighted and many clients, and a run with it can't be repeated bit for bit."""
    secure: bool = False
    """Add what clients send by secure sums, of which the server sees nothing else. Their protocol is simulated."""
    proximal: float = 0.0
    """Strength of FedProx's term, which keeps clients near the model they received; 0 is federated averaging."""
    dropout: float = 0.0
    """Probability that a sampled client takes no part in its round: it neither receives nor sends. One always stays."""
    straggling: float = 0.0
    """How far apart clients are in time: the standard deviation of the logarithm of a client's time, which is drawn anew in each
    round around a median of 1. With 0 all take as long."""
    deadline: float = 2.0
    """When a round ends, in the time of the median client. Those that take longer have received, and do not send; the fastest one
    is always awaited."""
    local_epochs: int = 1
    """How often a client goes through its examples in a round."""
    batch_size: int = 20
    """Examples in a client's training batch."""
    seed: int = 0
    """Of the initial weights, the sampling of clients, the order of their examples and the encoders."""
    eval_every: int = 10
    """Rounds between evaluations on the held-out data; a checkpoint is kept as often. The last round is evaluated too."""

    fewer_clients_will_do = False  # Whether a round takes all clients where there are fewer than it should sample.

    def __post_init__(self):
        _check_settings(
            self,
            at_least_1=("rounds", "clients", "local_epochs", "batch_size", "eval_every"),
            above_0=("client_lr", "server_lr", "deadline"),
            at_least_0=("threshold", "seed", "noise_multiplier", "proximal", "dropout", "straggling"),
        )
        if self.dropout >= 1:
            raise SettingsError(f"Expected --dropout to be less than 1, found {self.dropout}.")
        for name, known in (("client_optimizer", CLIENT_OPTIMIZERS), ("server_optimizer", SERVER_OPTIMIZERS)):
            if getattr(self, name) not in known:
                expected = f"--{name.replace('_', '-')} to be one of {', '.join(known)}"
                raise SettingsError(f"Expected {expected}, found {getattr(self, name)!r}.")
        for name in ("broadcast", "mean"):
            try:
                encoders.parse_spec(getattr(self, name))
            except encoders.SpecError as error:
                raise SettingsError(f"--{name}: {error}") from error
        self._check_aggregation()

    def _check_aggregation(self) -> None:
        if self.noise_multiplier and self.mean != "identity":
            raise SettingsError(
                f"Expected --mean identity with --noise-multiplier, found {self.mean!r}: the noise is made for the norm to which "
                "an update is clipped, and an encoder would change it afterwards. The broadcast may be encoded."
            )
        if self.noise_multiplier and self.weighted:
            raise SettingsError(
                "Expected equal weights with --noise-multiplier, since the noise is made for what one client can change; found "
                "weights by numbers of examples. Add --no-weighted."
            )
        if self.secure and self.mean != "identity":
            raise SettingsError(
                f"Expected --mean identity with --secure, found {self.mean!r}: secure sums add integers modulo a number, and "
                "what encoders make is decoded before it is added. The broadcast may be encoded."
            )


@dataclasses.dataclass(frozen=True)
class Emnist(Experiment):
    """Handwritten digits by writer, as in the compression tutorial of TensorFlow Federated."""

    data: str = "auto"
    """auto: EMNIST, cached or downloaded, else the digits inside scikit-learn. emnist, digits: just the one. Or the
    folder that holds emnist_all.sqlite."""
    only_digits: bool = True
    """Ten classes; --no-only-digits for EMNIST's 62."""
    filters: int = 32
    """Filters of the network's first convolution, to which its other layers are in proportion. Fewer make a smaller network,
    and fewer bits."""

    task = "emnist"

    def __post_init__(self):
        super().__post_init__()
        _check_settings(self, at_least_1=("filters",))

    def load_data(self) -> datasets.FederatedDataset:
        return emnist.load(self.data, self.only_digits, self.batch_size, self.local_epochs)

    def build_model(self) -> tf.keras.Model:
        return create_original_fedavg_cnn_model(self.only_digits, self.seed, self.filters)

    def build_loss(self) -> tf.keras.losses.Loss:
        return tf.keras.losses.SparseCategoricalCrossentropy()  # Of probabilities, as in the tutorial.


@dataclasses.dataclass(frozen=True)
class KeywordSpotting(Experiment):
    """A head on Whisper's embeddings of Speech Commands, as in Flower's Whisper example."""

    clients: int = 21
    """Clients sampled in each round, without replacement; all where there are fewer."""
    client_optimizer: Literal["sgd", "adam"] = "adam"
    """What clients train with."""
    client_lr: float = 1e-3
    """Learning rate of the clients."""
    batch_size: int = 8
    """Clips in a client's training batch; the last, smaller one is dropped."""
    eval_every: int = 1
    """Rounds between evaluations on the held-out speakers; a checkpoint is kept as often."""
    data: str = "embeddings"
    """Folder of the embeddings that `python -m tff_kit embed` makes, or demo for synthetic ones."""
    window: Literal["30s", "1s"] = "30s"
    """Sound that the embeddings were made of: Whisper's 30 s, 1500 positions, or just the clip's 1 s, 50 positions."""
    filters: int = 128
    """Filters of the head's convolution. Fewer make a smaller head, and fewer bits."""
    balanced: bool = False
    """Whether clients draw clips with replacement so that classes are about balanced, as in Flower's example, instead of taking
    each clip once in a local epoch."""

    task = "kws"
    fewer_clients_will_do = True

    def __post_init__(self):
        super().__post_init__()
        _check_settings(self, at_least_1=("filters",))

    def load_data(self) -> embeddings.EmbeddingDataset:
        return _load_embeddings(self.data, self.batch_size, self.window, self.local_epochs, self.balanced)

    def build_model(self) -> tf.keras.Model:
        return create_kws_head(whisper.positions(self.window), filters=self.filters, seed=self.seed)

    def build_loss(self) -> tf.keras.losses.Loss:
        return _kws_loss()


@dataclasses.dataclass(frozen=True)
class CentralizedKeywordSpotting(Training):
    """The same head on all clients' clips together, without federation: what federated averaging is compared with."""

    epochs: int = 3
    """Epochs of training; the head is kept that was best on the validation speakers."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    batch_size: int = 8
    """Clips in a training batch, drawn so that classes are about balanced."""
    seed: int = 0
    """Of the initial weights and the drawing of clips."""
    checkpoint: Optional[str] = None
    """A head to start from: model.keras of a run, or safetensors in the names of the PyTorch module's state_dict."""
    data: str = "embeddings"
    """Folder of the embeddings that `python -m tff_kit embed` makes, or demo for synthetic ones."""
    window: Literal["30s", "1s"] = "30s"
    """Sound that the embeddings were made of: Whisper's 30 s, 1500 positions, or just the clip's 1 s, 50 positions."""

    task = "kws-centralized"

    def __post_init__(self):
        _check_settings(self, at_least_1=("epochs", "batch_size"), above_0=("learning_rate",), at_least_0=("seed",))

    def load_data(self) -> embeddings.EmbeddingDataset:
        return _load_embeddings(self.data, self.batch_size, self.window)

    def build_model(self) -> tf.keras.Model:
        return create_kws_head(whisper.positions(self.window), seed=self.seed)

    def build_loss(self) -> tf.keras.losses.Loss:
        return _kws_loss()


def _kws_loss() -> tf.keras.losses.Loss:
    # Of probabilities it would end at 16.1 inside TFF, where Keras no longer sees the softmax, and a clip that the first steps
    # of Adam throw further than that would teach nothing.
    return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _load_embeddings(data: str, batch_size: int, window: str, *of_clients) -> embeddings.EmbeddingDataset:
    folder = store_writer.demo(window=window).folder if data == "demo" else pathlib.Path(data)
    return embeddings.load(folder, batch_size, window, *of_clients)


def _check_settings(
    settings, at_least_1: Sequence[str] = (), above_0: Sequence[str] = (), at_least_0: Sequence[str] = ()
) -> None:
    checks = (
        (at_least_1, lambda x: x >= 1, "at least 1"),
        (above_0, lambda x: x > 0, "more than 0"),
        (at_least_0, lambda x: x >= 0, "0 or more"),
    )
    for names, is_valid, expected in checks:
        for name in names:
            if not is_valid(getattr(settings, name)):
                raise SettingsError(f"Expected --{name.replace('_', '-')} to be {expected}, found {getattr(settings, name)}.")
