"""A deployment without a network: the server's rounds and nodes in one process, equal to the simulation's."""

import dataclasses

import numpy as np
import pytest

from tff_kit.deploy import rounds
from tff_kit.deploy.node import Node
from tff_kit.tasks.emnist import Emnist
from tff_kit.training.rounds import train

CLIENTS = ("form00", "form04", "form09")
SMALL = {"data": "digits", "clients": 3, "rounds": 2, "filters": 4, "threshold": 100, "eval_every": 2}
PATIENT = rounds.Attendance(timeout=60)


class ThreeWriters(Emnist):
    """Digits of the writers that are there in the deployment."""

    task = "emnist"

    def load_data(self):
        return dataclasses.replace(super().load_data(), client_ids=CLIENTS)


class LocalLink:
    """Nodes in this process, each of which answers at once."""

    def __init__(self, answers):
        self.answers = answers  # From a node's number to a function from a message to its answer, or None for no answer.
        self._came = []

    def nodes(self):
        return set(self.answers)

    def send(self, node, message):
        answer = self.answers[node](message)
        if answer is not None:
            self._came.append((node, answer))

    def receive(self):
        came, self._came = self._came, []
        return came

    def forget(self, node):
        self._came = [(its, answer) for its, answer in self._came if its != node]


@pytest.fixture(scope="module")
def nodes():
    """The answers of three nodes, by number."""
    return {number: Node(Emnist, "digits", client).answer for number, client in enumerate(CLIENTS)}


def deploy(tmp_path, answers, attendance=PATIENT, **settings):
    experiment = Emnist(**{**SMALL, **settings})
    return rounds.train(experiment, LocalLink(answers), attendance, tmp_path / "deployed")


@pytest.mark.parametrize(
    "settings",
    [
        {"weighted": False, "proximal": 0.1},
        {"broadcast": "uniform:8", "mean": "uniform:8", "server_optimizer": "adam", "server_lr": 0.01},
        {
            "broadcast": "lowrank:4+step:1+entropy/uniform:8",
            "mean": "rate:0.5+entropy/uniform:8",
            "broadcast_change": True,
            "client_optimizer": "adam",
            "client_lr": 0.001,
        },
    ],
    ids=["plain", "8 bits", "few bits"],
)
def test_rounds_are_those_of_the_simulation(tmp_path, nodes, settings):
    deployed = deploy(tmp_path, nodes, **settings)
    simulated = train(ThreeWriters(**{**SMALL, **settings}), tmp_path / "simulated")

    for ours, theirs in zip(deployed.read_metrics(), simulated.read_metrics()):
        assert (ours["broadcast_bits"], ours["aggregate_bits"]) == (theirs["broadcast_bits"], theirs["aggregate_bits"])
        for name in (
            "train_loss",
            "train_accuracy",
            "test_loss",
            "test_accuracy",
            "aggregate_distortion",
            "broadcast_distortion",
        ):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    for x, y in zip(deployed.load_model().get_weights(), simulated.load_model().get_weights()):
        np.testing.assert_allclose(x, y, atol=2e-6)
