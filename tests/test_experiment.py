"""Settings: groups, defaults of subclasses, what follows from a loss; who takes part in a round."""

import dataclasses

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
