"""A deployment over Flower: server and clients as processes of the other environment, with TLS and authentication."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import time

import numpy as np
import psutil
import pytest
from conftest import wait_until

from tff_kit.deploy import checkpoints
from tff_kit.deploy.aggregation import Averaging
from tff_kit.tasks.emnist import Emnist
from tff_kit.training import runs
from tff_kit.training.rounds import train as simulate

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-deploy" / "bin" / "python"
CLIENTS = ("form00", "form04")
SETTINGS = {"data": "digits", "clients": 2, "filters": 4, "threshold": 1000}
SETTINGS |= {"broadcast": "uniform:8,nearest", "mean": "uniform:8,nearest"}
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


def finished(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=600, check=False)


@contextlib.contextmanager
def running(log, *arguments):
    """A command while the context lasts. It ends when it is asked to, and leaves no process behind."""
    with open(log, "w") as output, subprocess.Popen(command(*arguments), stdout=output, stderr=subprocess.STDOUT) as process:
        family = {}
        try:
            yield process, family
        finally:
            family.update({child.pid: child for child in children_of(process)})
            process.terminate()
            process.wait(120)
    _, alive = psutil.wait_procs(family.values(), timeout=120)
    assert not alive


def children_of(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def executors_of(node):
    """Returns a node's SuperExec. It starts other programs, too, which end at once."""
    found = []
    for child in children_of(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] * ("flower-superexec" in " ".join(child.cmdline()))
    return found


def wait_for(process, log, text, seconds=300):
    until = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, f"no {text!r} in {log.read_text()}"
        time.sleep(0.2)


def wait_for_end(process, logs, seconds=300):
    """Waits until a server has ended well. Where it has not, the test says what all sides have said."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = f"nothing in {seconds} s"
    assert code == 0, "\n".join(f"{log.name}:\n{log.read_text()}" for log in logs)


def last_weights(run):
    """The weights of a deployment's last checkpoint, which both environments can read."""
    state, _, _ = checkpoints.load_last(run.checkpoints, Averaging(Emnist(**SETTINGS)).initial_state(), {})
    return state.weights


def test_real_clients_train_as_simulated_ones_do_and_a_killed_server_goes_on(tmp_path):
    finished("credential", tmp_path / "keys", "--nodes", *CLIENTS)
    finished("partition", "emnist", "--data", "digits", "--only", *CLIENTS, "--out", tmp_path / "data")
    with socket.create_server(("127.0.0.1", 0)) as any_server:
        address = f"localhost:{any_server.getsockname()[1]}"
    server = ["serve", "emnist", *FLAGS, "--rounds", "3", "--address", address.replace("localhost", "127.0.0.1")]
    server += ["--credential", tmp_path / "keys/server", "--logdir", tmp_path / "run"]
    with contextlib.ExitStack() as stack:
        for client in CLIENTS:
            own = ["--data", tmp_path / "data" / client, "--credential", tmp_path / "keys" / client]
            stack.enter_context(running(tmp_path / f"{client}.log", "join", address, "emnist", *own))
        with running(tmp_path / "killed.log", *server) as (process, family):
            wait_for(process, tmp_path / "killed.log", "round   1:")
            family.update({child.pid: child for child in children_of(process)})
            process.send_signal(signal.SIGKILL)
        resumed = tmp_path / "resumed.log"
        with running(resumed, *server, "--resume") as (process, _):
            wait_for_end(process, [resumed, *(tmp_path / f"{client}.log" for client in CLIENTS)])

    run = runs.RunDirectory(tmp_path / "run")
    simulated = simulate(TwoWriters(rounds=3, **SETTINGS), tmp_path / "simulated")
    rows = run.read_metrics()
    assert [row["round"] for row in rows] == [1, 2, 3]
    for ours, theirs in zip(rows, simulated.read_metrics()):
        assert (ours["broadcast_bits"], ours["aggregate_bits"]) == (theirs["broadcast_bits"], theirs["aggregate_bits"])
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["clients_dropped"] == ours["clients_late"] == ours["clients_left_out"] == 0
    for ours, theirs in zip(last_weights(run), simulated.load_model().get_weights()):
        # An update that differs in its last digit may be rounded to the next of 256 levels.
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert run.model.exists()
    # The sockets carry the payload and, for two clients, three rounds and what a second server adds, some dozens of kB more.
    for bits, wire in (("broadcast_bits", "wire_bytes_down"), ("aggregate_bits", "wire_bytes_up")):
        assert rows[-1][bits] / 8 < rows[-1][wire] < rows[-1][bits] / 8 + 400_000


def test_a_server_that_is_ended_while_it_waits_leaves_no_process_behind(tmp_path):
    server = ["serve", "emnist", *FLAGS, "--address", "127.0.0.1:0", "--logdir", tmp_path / "run"]
    with running(tmp_path / "log", *server) as (process, family):
        wait_for(process, tmp_path / "log", "waits for 2 clients")
        family.update({child.pid: child for child in children_of(process)})
        assert any("flwr-serverapp" in " ".join(child.cmdline()) for child in family.values())


@contextlib.contextmanager
def lonely_node(folder, *options):
    """Runs a SuperNode whose server is not there."""
    with socket.create_server(("127.0.0.1", 0)) as nobody, socket.create_server(("127.0.0.1", 0)) as own:
        ports = [any_server.getsockname()[1] for any_server in (nobody, own)]
    own_link = ["--host", "127.0.0.1", "--port", str(ports[1]), *options]
    command = [PYTHON, "-m", "tff_kit.deploy.supernode", "--insecure", "--superlink", f"127.0.0.1:{ports[0]}", *own_link]
    environment = {**os.environ, "PATH": f"{PYTHON.parent}:{os.environ['PATH']}", "FLWR_HOME": str(folder)}
    with open(folder / "log", "w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as node:
        try:
            yield node
        finally:
            node.kill()


def test_a_node_without_a_server_for_long_ends_so_that_join_starts_it_again(tmp_path):
    with lonely_node(tmp_path, "--max-wait-time", "1") as node:
        assert node.wait(60) != 0
    assert "retrying in" in (tmp_path / "log").read_text()


def test_a_node_ends_with_its_executor_and_is_not_left_deaf(tmp_path):
    with lonely_node(tmp_path) as node:
        wait_until(lambda: executors_of(node), 60)
        executors_of(node)[0].kill()
        assert node.wait(30) == 4
    assert "Expected Flower's SuperExec to stay, found that it ended" in (tmp_path / "log").read_text()


def test_beyond_this_machine_a_credential_is_needed(tmp_path):
    for arguments in (
        ("serve", "emnist", *FLAGS, "--address", "0.0.0.0:0"),
        ("join", "server.example:9092", "emnist", "--data", "digits"),
    ):
        refused = finished(*arguments)
        assert refused.returncode == 2
        assert "which is beyond this machine, found none" in refused.stderr
    wrong = finished("join", "localhost:9092", "emnist", "--data", "digits", "--credential", tmp_path)
    assert wrong.returncode == 2
    assert f"Expected a node's credential in {tmp_path}, found no certificate.pem there." in wrong.stderr
