"""A deployment over Flower: server and clients as processes of the other environment, with TLS and authentication."""

import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile

import h5py
import numpy as np
import psutil
import pytest

from tff_kit.deploy import checkpoints, relay
from tff_kit.deploy.aggregation import Averaging
from tff_kit.tasks.emnist import Emnist
from tff_kit.training import runs
from tff_kit.training.rounds import train as simulate

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-deploy" / "bin" / "python"
CLIENTS = ("form00", "form04")
SETTINGS = {"data": "digits", "clients": 2, "filters": 4, "broadcast": "uniform:8", "mean": "uniform:8", "threshold": 1000}
FLAGS = [flag for name, value in SETTINGS.items() for flag in (f"--{name}", str(value))]

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not PYTHON.exists(), reason="There is no .venv-deploy, which `make setup-deploy` makes."),
]


class TwoWriters(Emnist):
    """Digits of the writers whose clients join."""

    def load_data(self):
        return dataclasses.replace(super().load_data(), client_ids=CLIENTS)


def command(*arguments):
    return [str(PYTHON), "-m", "tff_kit", *map(str, arguments)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with credentials and the clients' data."""
    folder = tmp_path_factory.mktemp("deployment")
    subprocess.run(command("credential", folder / "credentials", "--nodes", *CLIENTS), check=True)
    subprocess.run(command("partition", "emnist", "--data", "digits", "--only", *CLIENTS, "--out", folder / "data"), check=True)
    return folder


@pytest.fixture(scope="module")
def address():
    with socket.create_server(("127.0.0.1", 0)) as any_server:
        return f"127.0.0.1:{any_server.getsockname()[1]}"


@pytest.fixture(scope="module")
def clients(place, address):
    """Two clients that stay for all tests, whatever server is there."""
    with contextlib.ExitStack() as stack:
        started = []
        for client in CLIENTS:
            data, credential = place / "data" / client, place / "credentials" / client
            started.append(stack.enter_context(running("join", address, "emnist", "--data", data, "--credential", credential)))
        yield started


@contextlib.contextmanager
def running(*arguments):
    """A command of the other environment while the context lasts; it must leave no process behind."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        process.terminate()
        process.communicate(timeout=60)
        gone, alive = psutil.wait_procs([x for x in family if x is not process], timeout=20)
        assert not alive


def serve(place, address, logdir, *flags):
    return subprocess.run(
        command("serve", "emnist", *FLAGS, "--address", address, "--credential", place / "credentials/server", "--logdir", logdir)
        + list(flags),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def weights(run, rounds_done):
    """The weights in a deployment's checkpoint."""
    state = Averaging(Emnist(**SETTINGS)).initial_state()
    return checkpoints.load_last(run.checkpoints, state, {})[0].weights


def test_deployment_trains_as_the_simulation_does(tmp_path, place, address, clients):
    served = serve(place, address, tmp_path / "deployed", "--rounds", "2")
    assert served.returncode == 0, served.stdout + served.stderr
    simulated = simulate(TwoWriters(rounds=2, **SETTINGS), tmp_path / "simulated")
    deployed = runs.RunDirectory(tmp_path / "deployed")
    for ours, theirs in zip(deployed.read_metrics(), simulated.read_metrics()):
        assert (ours["broadcast_bits"], ours["aggregate_bits"]) == (theirs["broadcast_bits"], theirs["aggregate_bits"])
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
    for ours, theirs in zip(weights(deployed, 2), simulated.load_model().get_weights()):
        # Encoded by 8 bits, an update that differs in its last digit may be rounded to the next level.
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert deployed.model.exists()


def test_wire_carries_the_payload_and_little_more(tmp_path, place, address, clients):
    pass
