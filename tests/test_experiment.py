"""Settings: groups, defaults of subclasses, what follows from a loss; who takes part in a round."""

import dataclasses
import decimal
import math
import pathlib
from typing import Optional

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import tff_kit
from tff_kit.experiment import Algorithm, Communication, Experiment, Participation, Privacy, SettingsError, Training
from tff_kit.training import participation

losses = tf.keras.losses


class Undecorated(Experiment):
    client_lr = 0.5
    client_optimizer = "adam"
    height: int = 3


@dataclasses.dataclass(frozen=True)
class Decorated(Undecorated):
    seed: int = 7


def test_a_subclass_sets_defaults_with_and_without_annotation_and_decorator():
    assert (Undecorated().client_lr, Undecorated().client_optimizer, Undecorated().height) == (0.5, "adam", 3)
    assert Undecorated(client_lr=0.25, height=4) == dataclasses.replace(Undecorated(height=4), client_lr=0.25)
    assert (Decorated().client_lr, Decorated().seed) == (0.5, 7)
    assert Experiment().client_lr == 0.02


@pytest.mark.parametrize("settings", [Undecorated(), Decorated()])
def test_settings_stay_as_they_are(settings):
    for name in ("client_lr", "height", "new"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del settings.client_lr


def test_a_bad_default_is_refused_as_a_bad_value_is():
    class Wrong(Experiment):
        client_lr = -1.0

    with pytest.raises(SettingsError, match="Expected --client-lr to be more than 0, found -1.0"):
        Wrong()


_RATE = tf.keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
_BY_TYPE = {
    "bool": ("False", 0, 1.0, None, np.array(True)),
    "int": (1.5, 2.0, "2", None, True, math.nan, 2**63, 10**400, np.uint64(2**63), np.float32(2), np.array([1])),
    "float": ("0.1", None, True, math.inf, -math.inf, math.nan, 1e300, 1e-300, 10**400, np.float32("nan"), 1j, _RATE, lambda: 1),
    "str": (None, 8, b"identity", ["identity"], np.array("identity")),
    "ClientOptimizer": (None, 1, ["sgd"], tf.keras.optimizers.SGD, "SGD"),
}
_BY_TYPE["ServerOptimizer"] = _BY_TYPE["ClientOptimizer"]


@pytest.mark.parametrize("field", dataclasses.fields(Experiment), ids=lambda field: field.name)
def test_a_value_of_another_type_is_refused_by_every_setting(field):
    for value in _BY_TYPE[field.type]:
        with pytest.raises(SettingsError) as refused:
            Experiment(**{field.name: value})
        (line,) = str(refused.value).split("\n")
        assert line.startswith(f"Expected --{field.name.replace('_', '-')} to be ")
        assert f" of type {type(value).__name__}. Give it such a value, as in {field.name}=" in line
        assert len(line) < 250


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (lambda: tff_kit.Emnist(only_digits="False"), "only-digits"),
        (lambda: tff_kit.Emnist(filters=2.5), "filters"),
        (lambda: tff_kit.KeywordSpotting(window="2s"), "window"),
        (lambda: tff_kit.CentralizedKeywordSpotting(epochs=1.5), "epochs"),
        (lambda: tff_kit.CentralizedKeywordSpotting(learning_rate=math.inf), "learning-rate"),
        (lambda: tff_kit.CentralizedKeywordSpotting(checkpoint=3), "checkpoint"),
        (lambda: Undecorated(batch_size=2**31), "batch-size"),
        (lambda: dataclasses.replace(Decorated(), rounds="2"), "rounds"),
    ],
)
def test_so_it_is_by_those_of_tasks_and_of_subclasses(settings, name):
    with pytest.raises(SettingsError, match=f"^Expected --{name} to be "):
        settings()


def test_numbers_of_numpy_whole_numbers_and_paths_become_what_is_declared():
    taken = Experiment(
        rounds=np.uint8(200),
        client_lr=np.float32(0.5),
        server_lr=2,
        weighted=np.bool_(False),
        data=pathlib.Path("a/b"),
        deadline=10**9,
    )
    assert (taken.rounds, taken.client_lr, taken.server_lr, taken.weighted, taken.data) == (200, 0.5, 2, False, "a/b")
    types = [type(getattr(taken, name)) for name in ("rounds", "client_lr", "server_lr", "weighted", "data")]
    assert types == [int, float, float, bool, str]
    assert Experiment(seed=2**32 - 1, threshold=2**62, dropout=0).threshold == 2**62
    assert tff_kit.CentralizedKeywordSpotting(checkpoint=pathlib.Path("x")).checkpoint == "x"


def test_a_users_own_settings_have_any_type():
    class Inside:
        pass

    class Own(Experiment):
        folder: pathlib.Path = pathlib.Path("a")
        other: Optional[float] = None
        price: decimal.Decimal = decimal.Decimal(1)
        horizon: float = math.inf
        late: int = None
        unknown: "Inside" = None
        data: pathlib.Path = pathlib.Path("b")

    assert Own(unknown=Inside(), horizon=1e300, data=pathlib.Path("c")).horizon == 1e300
    with pytest.raises(SettingsError, match="--rounds"):
        Own(rounds=1.5)


def test_every_setting_belongs_to_one_group_and_plain_resets_what_is_encoded_or_private():
    groups = [
        {f.name for f in dataclasses.fields(group)} for group in (Communication, Algorithm, Participation, Privacy, Training)
    ]
    assert sum(map(len, groups)) == len(set().union(*groups))
    experiment = Undecorated(broadcast="uniform:8", mean="eden:1", broadcast_change=True, server_lr=0.5, rounds=3)
    assert experiment.plain() == Undecorated(rounds=3)


@pytest.mark.parametrize(
    ("loss", "metric", "labels", "outputs", "value"),
    [
        (losses.SparseCategoricalCrossentropy(), "accuracy", [1, 0], [[0.2, 0.8], [0.3, 0.7]], 0.5),
        (losses.CategoricalCrossentropy(), "accuracy", [[0, 1], [1, 0]], [[0.2, 0.8], [0.3, 0.7]], 0.5),
        (losses.BinaryCrossentropy(), "accuracy", [[1], [0]], [[0.6], [0.4]], 1.0),
        (losses.BinaryCrossentropy(from_logits=True), "accuracy", [[1], [0]], [[0.1], [-0.1]], 1.0),
        (losses.MeanSquaredError(), "mean_absolute_error", [[1.0], [2.0]], [[1.5], [2.0]], 0.25),
    ],
)
def test_what_is_measured_follows_from_the_loss(loss, metric, labels, outputs, value):
    class Task(Experiment):
        def build_loss(self):
            return loss

    (found,) = Task().metrics()
    keras_metric = found.build()
    keras_metric.update_state(tf.constant(labels), tf.constant(outputs))
    assert (found.name, found.higher_is_better) == (metric, metric == "accuracy")
    assert float(keras_metric.result()) == pytest.approx(value)


def test_a_loss_that_tells_nothing_needs_a_task_that_does():
    class Task(Experiment):
        def build_loss(self):
            return losses.KLDivergence()

    with pytest.raises(SettingsError, match="Expected Task to say what it measures"):
        Task().metrics()


def test_clients_are_drawn_as_tff_draws_them():
    clients = [f"client{i}" for i in range(50)]
    for seed in (0, 1, 2**31):
        sample = tff.simulation.build_uniform_sampling_fn(clients, replace=False, random_seed=seed)
        for round_num in (1, 2, 500):
            assert participation.sample_clients(clients, 10, round_num, seed) == sample(round_num, 10)


def test_public_names_are_there():
    for name in tff_kit.__all__:
        assert getattr(tff_kit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tff_kit.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("compress", "clients", "broadcast", "mean"),
    [
        ("light", 10, "auto:2,64,0.04", "auto:4,32,0.4"),
        ("light", 4, "auto:2,64,0.04", "auto:4,32,0.16"),  # Errors of fewer clients average out less.
        ("light", 500, "auto:2,64,0.04", "auto:4,32,0.6"),
        ("strong", 10, "auto:3,64,0.09", "auto:6,32,0.6"),
        ("auto:0.5", 10, "auto:1,64,0.01", "auto:2,32,0.1"),
    ],
)
def test_one_setting_chooses_the_encoders_of_both_directions(compress, clients, broadcast, mean):
    chosen = tff_kit.Emnist(compress=compress, clients=clients)
    assert (chosen.broadcast, chosen.mean, chosen.broadcast_change) == (broadcast, mean, True)
    assert dataclasses.replace(chosen, rounds=7).mean == mean
    assert dataclasses.replace(dataclasses.replace(chosen, clients=3), clients=clients).mean == mean


@pytest.mark.parametrize("compress", ["heavy", "auto", "auto:0", "auto:-1", "auto:x", ""])
def test_another_setting_is_refused_by_name(compress):
    with pytest.raises(SettingsError, match="Expected --compress to be none, light, strong or auto:STEP, found"):
        tff_kit.Emnist(compress=compress)


@pytest.mark.parametrize("mean", ["uniform:8", "auto:4,32,0.05", "auto:4,32,x", "auto:4,32", "auto:6,32,0.4"])
def test_one_setting_and_an_encoder_of_ones_own_are_refused(mean):
    with pytest.raises(SettingsError, match=f"Expected --mean to be left to --compress, found '{mean}'"):
        tff_kit.Emnist(compress="light", mean=mean)
