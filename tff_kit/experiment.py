"""The settings that every experiment has, grouped by what they are about, and what a task adds to them.

`Experiment` joins four groups: `Communication`, what travels and in how many bits; `Algorithm`, how clients and server learn;
`Privacy`, what the server may see; `Participation`, who takes part in a round. A task is a subclass: its data, its model, its
loss, and the settings in which it differs. The defaults are those of the text that a task is taken from.

Nothing here imports TensorFlow Federated, so a device can read an experiment as well as a simulation can.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Callable, Optional, get_type_hints

import tensorflow as tf
from typing_extensions import Literal, dataclass_transform, get_args

from tff_kit import encoders
from tff_kit.checks import SettingsError, check_numbers, check_types
from tff_kit.datasets import DataError, FederatedDataset, PooledDataset
from tff_kit.requirements import require_keras_2

require_keras_2()  # After encoders, which make it so.

from tff_kit.metrics import Metric, metrics_of_loss

_COMPRESS: dict[str, float] = {"light": 1.0, "strong": 1.5}
_DOWN, _UP = 2.0, 4.0  # Steps of `auto`, in units of the root mean square.
_LOST = 0.04  # Of a broadcast's squared norm at most, and of the mean of a round's updates.
_MOST_LOST = 0.6  # Of one update: what its encoder leaves out does not average out if all clients leave out the same.
ClientOptimizer = Literal["sgd", "adam"]
ServerOptimizer = Literal["sgd", "sgdm", "adam", "yogi", "adagrad"]


@dataclass_transform(frozen_default=True)
class _Settings:
    """Makes each subclass a frozen dataclass, decorated or not.

    `client_lr = 0.5` in the body of a subclass is a new default. A dataclass takes it only where it is annotated, and would
    otherwise go on with the old default in silence; so it is annotated here, as the field that it overrides.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 - typing_extensions 4.5 has no function for it.
        bases = [base for base in reversed(cls.__mro__[1:]) if dataclasses.is_dataclass(base)]
        inherited = {field.name for base in bases for field in dataclasses.fields(base)}
        if overridden := inherited.intersection(cls.__dict__).difference(own):
            hints = {name: hint for base in bases for name, hint in get_type_hints(base).items()}
            cls.__annotations__ = {**own, **{name: hints[name] for name in overridden}}
        dataclasses.dataclass(frozen=True)(cls)
        # A subclass that is decorated as well would find these two here, and refuse. `_Settings` has them for all.
        del cls.__setattr__, cls.__delattr__

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"Settings can't be changed; make others by dataclasses.replace(..., {name}=...).")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"Settings can't be changed, and {name} can't be removed.")


class Training(_Settings):
    """The settings of every training, federated or not."""

    batch_size: int = 20
    """Examples in a training batch."""
    seed: int = 0
    """Seed of all random draws."""
    data: str = "auto"
    """The data to train on."""

    task = ""
    """The task's name, on the command line and in files."""

    def load_data(self) -> FederatedDataset:
        """Loads the data; raises `tff_kit.datasets.DataError` if it is missing or broken."""
        raise NotImplementedError

    def build_model(self) -> tf.keras.Model:
        """Returns a new, untrained model; its weights are drawn from the seed."""
        raise NotImplementedError

    def build_loss(self) -> tf.keras.losses.Loss:
        """Returns the loss of the model's outputs."""
        raise NotImplementedError

    def metrics(self) -> Sequence[Metric]:
        """Returns what is measured besides the loss. The first metric is the one that is shown, plotted and compared.

        By default it follows from the loss: accuracy for a cross-entropy, mean absolute error for a regression.

        Raises:
          SettingsError: If nothing follows from the loss.
        """
        found = metrics_of_loss(self.build_loss())
        if not found:
            raise SettingsError(
                f"Expected {type(self).__name__} to say what it measures, since nothing follows from the loss "
                f"{type(self.build_loss()).__name__}. Override metrics() to return a list of tff_kit.Metric."
            )
        return found


class Communication(_Settings):
    """The settings of what travels between server and clients, and in how many bits."""

    compress: str = "none"
    """Encoders of both directions that need no other setting, for any model: light, strong, which takes fewer bits, or auto:STEP,
    whose STEP is 1 in light and 1.5 in strong. It sets broadcast, broadcast_change and mean. none leaves them as they are."""
    broadcast: str = "identity"
    """SPEC of the downlink's encoder, which sends the model to the clients. A SPEC is identity, tensor_encoding:BITS,
    uniform:BITS, or stages chained by +, such as rotate+uniform:4, eden:0.5 or lowrank:8+step:1+entropy. A second chain after a
    slash is for small variables, as in eden:1/uniform:8. An unknown name lists the stages."""
    broadcast_change: bool = False
    """Send the change since the initial weights instead of the weights: it is easier to compress. Clients draw the initial
    weights from the seed. If the model has others, trained before or drawn without a seed, each client receives them once."""
    broadcast_feedback: bool = False
    """Add what the last encoding lost to the next broadcast. It helps coarse steps. With low rank it costs bits and gains
    nothing."""
    mean: str = "identity"
    """SPEC of the uplink's encoder, which sends the clients' updates to the server; see broadcast."""
    threshold: int = encoders.THRESHOLD
    """A variable with more elements than this is large. Small variables travel unencoded unless the SPEC has a part for them:
    biases are few, and sensitive to error. The default is the tutorial's."""

    def _check_communication(self) -> None:
        check_numbers(self, at_least_0=("threshold",))
        if self.compress != "none":
            self._set_by_compress()
        for name in ("broadcast", "mean"):
            try:
                encoders.parse_spec(getattr(self, name))
            except encoders.SpecError as error:
                raise SettingsError(f"--{name}: {error}") from error

    def _set_by_compress(self) -> None:
        own = re.fullmatch(r"auto:([0-9]+\.?[0-9]*)", self.compress)
        step = float(own[1]) if own else _COMPRESS.get(self.compress)
        if not step:
            raise SettingsError(f"Expected --compress to be none, {', '.join(_COMPRESS)} or auto:STEP, found {self.compress!r}.")
        # All clients receive one message, whose error does not average out, and which is one of many: it is finer. The errors of
        # the clients' messages do, so that each may be as many times larger.
        down = min(_MOST_LOST, _LOST * step**2)
        up = min(_MOST_LOST, down * getattr(self, "clients", 1))
        chosen = {
            "broadcast": f"auto:{_DOWN * step:g},64,{down:.3g}",
            "broadcast_change": True,
            "mean": f"auto:{_UP * step:g},32,{up:.3g}",
        }
        defaults = {field.name: field.default for field in dataclasses.fields(Communication)}
        for name, value in chosen.items():
            found = getattr(self, name)
            if found not in (defaults[name], value) and not (name == "mean" and _of_other_clients(found, str(value), down)):
                raise SettingsError(f"Expected --{name.replace('_', '-')} to be left to --compress, found {found!r}.")
            object.__setattr__(self, name, value)


def _of_other_clients(found: str, chosen: str, lost: float) -> bool:
    """Returns whether `--compress` chooses `found` for other clients a round: `dataclasses.replace` brings what it chose before.

    Args:
      found: A SPEC of the uplink.
      chosen: That of these clients, which differs in its end.
      lost: Of the squared norm, in a broadcast.
    """
    begin, _, end = found.rpartition(",")
    if begin != chosen.rpartition(",")[0] or not re.fullmatch(r"[0-9]*\.?[0-9]+(e-[0-9]+)?", end):
        return False
    clients = round(float(end) / lost)
    return clients >= 1 and end == f"{min(_MOST_LOST, clients * lost):.3g}"


class Algorithm(_Settings):
    """The settings of how clients and server learn."""

    client_optimizer: ClientOptimizer = "sgd"
    """Optimizer of the clients."""
    client_lr: float = 0.02
    """Learning rate of the clients. The default is the tutorial's; 0.1 learns faster on digits."""
    server_optimizer: ServerOptimizer = "sgd"
    """Optimizer that applies the clients' mean update to the model: sgd, sgdm (momentum 0.9), or an adaptive method."""
    server_lr: float = 1.0
    """Learning rate of the server. With sgd, 1 is plain averaging. Adaptive methods need less, such as 0.01."""
    weighted: bool = True
    """Weight clients by their numbers of examples. --no-weighted gives all clients equal weight."""
    proximal: float = 0.0
    """Strength of FedProx's term, which keeps clients near the model that they received. 0 is federated averaging."""
    local_epochs: int = 1
    """How often a client goes through its examples in a round. A batch may hold the end of one turn and the beginning of the
    next."""

    def _check_algorithm(self) -> None:
        check_numbers(self, at_least_1=("local_epochs",), above_0=("client_lr", "server_lr"), at_least_0=("proximal",))
        for name, known in (("client_optimizer", get_args(ClientOptimizer)), ("server_optimizer", get_args(ServerOptimizer))):
            if getattr(self, name) not in known:
                expected = f"--{name.replace('_', '-')} to be one of {', '.join(known)}"
                raise SettingsError(f"Expected {expected}, found {getattr(self, name)!r}.")


class Privacy(_Settings):
    """The settings of what the server may see of a client."""

    noise_multiplier: float = 0.0
    """Differential privacy: the standard deviation of the noise on the sum of clipped updates, in units of the clipping norm. 0
    adds no noise. It needs --no-weighted and many clients. A run with noise does not repeat bit for bit."""
    secure: bool = False
    """Add the clients' messages by secure sums, so that the server sees only the sums. The protocol is simulated."""

    def _check_privacy(self, mean: str, weighted: bool) -> None:
        check_numbers(self, at_least_0=("noise_multiplier",))
        if self.noise_multiplier and mean != "identity":
            raise SettingsError(
                f"Expected --mean identity with --noise-multiplier, found {mean!r}: the noise is made for the norm to which "
                "an update is clipped, and an encoder would change it afterwards. The broadcast may be encoded."
            )
        if self.noise_multiplier and weighted:
            raise SettingsError(
                "Expected equal weights with --noise-multiplier, since the noise is made for what one client can change; found "
                "weights by numbers of examples. Add --no-weighted."
            )
        if self.secure and mean != "identity":
            raise SettingsError(
                f"Expected --mean identity with --secure, found {mean!r}: secure sums add integers modulo a number, and "
                "what encoders make is decoded before it is added. The broadcast may be encoded."
            )


class Participation(_Settings):
    """The settings of which clients take part in a round, and which of them are missing or late."""

    clients: int = 10
    """Clients sampled in each round, without replacement."""
    dropout: float = 0.0
    """Probability that a sampled client takes no part in its round: it receives and sends nothing. One client always stays."""
    straggling: float = 0.0
    """Spread of the clients' times: the standard deviation of the logarithm of a client's time. Each round draws new times with a
    median of 1. With 0 all clients take equally long."""
    deadline: float = 2.0
    """The time at which a round ends, in units of the median client's time. Clients that miss the deadline have received the
    model but send nothing. The fastest client is always awaited."""

    fewer_clients_will_do = False
    """Whether a round takes all clients if there are fewer than it should sample."""

    def _check_participation(self) -> None:
        check_numbers(self, at_least_1=("clients",), above_0=("deadline",), at_least_0=("dropout", "straggling"))
        if self.dropout >= 1:
            raise SettingsError(f"Expected --dropout to be less than 1, found {self.dropout}.")


class Experiment(Privacy, Participation, Algorithm, Communication, Training):
    """The settings of every federated averaging experiment, which `tff_kit.train` takes.

    A subclass is a task. It defines `load_data`, `build_model`, `build_loss` and the name `task`. It may have other defaults and
    further settings. `python -m tff_kit train emnist --help` explains each setting.
    """

    rounds: int = 10
    """Rounds of federated averaging."""
    batch_size: int = 20
    """Examples in a client's training batch."""
    seed: int = 0
    """Seed of the initial weights, the sampling of clients, the order of their examples, and the encoders."""
    eval_every: int = 10
    """Rounds between evaluations on the held-out data, and between checkpoints. The last round is always evaluated."""

    def __post_init__(self) -> None:
        check_types(self)
        check_numbers(self, at_least_1=("rounds", "batch_size", "eval_every"), at_least_0=("seed",))
        self._check_communication()
        self._check_algorithm()
        self._check_privacy(self.mean, self.weighted)
        self._check_participation()

    def build_aggregation_process(self, model_fn: Callable) -> Optional[Any]:
        """Returns an aggregation of one's own, instead of the encoded mean that the settings name; by default `None`.

        Args:
          model_fn: Returns the `tff.learning.models.VariableModel` whose trainable weights are aggregated.

        Returns:
          A `tff.aggregators.WeightedAggregationFactory`, or a `tff.aggregators.UnweightedAggregationFactory` where clients count
          the same whatever their weight, as in a median.
        """
        del model_fn
        return None

    def build_server_optimizer(self) -> Optional[Any]:
        """Returns a server's `tff.learning.optimizers.Optimizer` of one's own, instead of the setting's; by default `None`."""
        return None

    def clients_per_round(self, data: FederatedDataset) -> int:
        """Returns how many clients of `data` a round samples.

        Raises:
          tff_kit.datasets.DataError: If there are fewer than `clients`, and fewer won't do.
        """
        if self.clients > len(data.client_ids) and not self.fewer_clients_will_do:
            raise DataError(
                f"Expected at most {len(data.client_ids)} clients a round, since {data.name} has no more; "
                f"found --clients {self.clients}."
            )
        return min(self.clients, len(data.client_ids))

    def plain(self) -> Experiment:
        """Returns the experiment with nothing encoded, no noise and a server that adds the mean update as it is."""
        reset: dict[str, Any] = {f.name: f.default for group in (Communication, Privacy) for f in dataclasses.fields(group)}
        return dataclasses.replace(self, **reset, server_optimizer="sgd", server_lr=1.0)


class CentralizedTraining(Training):
    """The settings of a training without federation, which `tff_kit.train_centralized` takes.

    Its data is federated data that can be read as a whole, too: a `tff_kit.datasets.PooledDataset`.
    """

    epochs: int = 3
    """Epochs of training. The model that was best on the validation data is kept."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    checkpoint: Optional[str] = None
    """A model to start from: the model.keras of a run."""

    def __post_init__(self) -> None:
        check_types(self)
        check_numbers(self, at_least_1=("epochs", "batch_size"), above_0=("learning_rate",), at_least_0=("seed",))

    def load_data(self) -> PooledDataset:
        """Loads the data; raises `tff_kit.datasets.DataError` if it is missing or broken."""
        raise NotImplementedError

    def load_weights(self, model: tf.keras.Model, path: pathlib.Path) -> None:
        """Sets the weights of `model` to those of the model in `path`; raises `OSError` or `ValueError` where that can't be."""
        model.set_weights(tf.keras.models.load_model(path, compile=False).get_weights())

    def export(self, model: tf.keras.Model, folder: pathlib.Path) -> None:
        """Writes the trained model to a run directory in other formats than Keras's; by default none."""
