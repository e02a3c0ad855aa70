"""Several workers: the same numbers as one, and whatever becomes of a worker, each client counts once."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from conftest import ROOT, wait_until
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te
from test_processes import clients, model_fn

import tff_kit
from tff_kit import __main__ as command_line
from tff_kit import runtime
from tff_kit.algorithm import privacy, processes
from tff_kit.runtime import cluster, sizing

pytestmark = pytest.mark.process

# More than the clients of a test, since TFF's worker has additions, too, wait for their clients in one of these places.
AT_ONCE = 8


class Started:
    """A worker as `python -m tff_kit worker` starts it, which can be started again at the same address."""

    def __init__(self, credential=None):
        self._credential = credential
        self.port = 0
        self.start()

    def start(self):
        with socket.create_server(("127.0.0.1", self.port)) as listening:
            self.port = listening.getsockname()[1]
            command = runtime.worker.worker_command(
                listening, os.getpid(), self._credential, insecure=True, max_concurrent=AT_ONCE
            )
            self.process = psutil.Popen(
                command,
                pass_fds=[listening.fileno()],
                env=runtime.worker_environment(AT_ONCE),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def relay(self):
        (relay,) = self.process.children()
        return relay

    def kill(self):
        processes = [self.process, *self.process.children()]
        self.process.kill()
        self.process.wait(10)
        assert not psutil.wait_procs(processes[1:], timeout=10)[1]


@pytest.fixture(scope="module")
def pair():
    """Two workers."""
    started = [Started(), Started()]
    yield started
    for worker in started:
        worker.kill()


@pytest.fixture
def join():
    """Makes a cluster context of workers, with its size account and what it reported."""
    with contextlib.ExitStack() as stack:

        def make(started, timeout=60.0, credential=None):
            workers = [cluster.RemoteWorker(worker.address, credential, timeout) for worker in started]
            for worker in workers:
                worker.wait_until_ready(60)
            sizes, said = sizing.sizing_executor_factory(), []
            context = cluster.ClusterContext(workers, sizes.for_worker, sizes.one_call, timeout, said.append)
            stack.callback(context.close)
            return context, sizes, said

        yield make


def _round(process, context, sizes, state=None, rounds=1):
    with tff.framework.get_context_stack().install(context):
        state = process.initialize() if state is None else state
        for _ in range(rounds):
            output = process.next(state, clients(5))
            state = output.state
        weights = process.get_model_weights(state).trainable
    return weights, output.metrics, sizes.get_size_info()


def _process(broadcast, mean, change=False):
    return tff_kit.build_federated_averaging_process(
        model_fn,
        tff.learning.optimizers.build_sgdm(0.1),
        None,
        tff_kit.build_encoded_broadcast_process_from_model(model_fn, tff_kit.build_broadcast_encoder_fn(broadcast, 100), change),
        tff_kit.build_encoded_mean_process_from_model(model_fn, tff_kit.build_mean_encoder_fn(mean, 100)),
    )


def _assert_equal(expected, found):
    """Compares weights and metrics but for the order of sums, and bits exactly: a list of calls, a round one here as there."""
    for a, b in zip(expected[0], found[0]):
        np.testing.assert_allclose(a, b, atol=1e-6)
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), expected[1], found[1])
    assert found[2].broadcast_bits == expected[2].broadcast_bits
    assert found[2].aggregate_bits == expected[2].aggregate_bits
    assert found[2].broadcast_bits[-1] > 0


@pytest.mark.parametrize(
    ("broadcast", "mean", "change"),
    [
        ("identity", "identity", False),
        ("uniform:8", "uniform:8", False),
        ("uniform:8", "uniform:4+entropy", True),
    ],
)
def test_two_workers_train_as_one_does(pair, join, broadcast, mean, change):
    process = _process(broadcast, mean, change)
    one = sizing.sizing_executor_factory()
    expected = _round(process, runtime.create_context(one), one)
    context, sizes, said = join(pair)
    _assert_equal(expected, _round(process, context, sizes))
    assert said == []


@pytest.mark.parametrize("private", [False, True])
def test_secure_sums_on_two_workers_are_those_of_one(pair, join, private):
    process = tff_kit.build_federated_averaging_process(
        model_fn,
        tff.learning.optimizers.build_sgdm(0.1),
        aggregation_process=(
            privacy.build_private_mean_process(0, 5, secure=True) if private else privacy.build_secure_mean_process()
        ),
        weighted=not private,
        metrics_aggregator=tff.learning.metrics.secure_sum_then_finalize,
    )
    one = sizing.sizing_executor_factory()
    expected = _round(process, runtime.create_context(one), one, rounds=2)
    context, sizes, _ = join(pair)
    _assert_equal(expected, _round(process, context, sizes, rounds=2))


def test_noise_is_added_once_however_many_workers_there_are(pair, join):
    factory = privacy.build_private_mean_process(1.0, 10)
    process = factory.create(tff.types.to_type([(np.float32, [20_000])]), tff.TensorType(np.float32))
    context, _, _ = join(pair)
    with tff.framework.get_context_stack().install(context):
        output = process.next(process.initialize(), [[np.zeros(20_000, np.float32)]] * 5, [1.0] * 5)
    assert np.std(output.result[0]) == pytest.approx(0.75**-0.5 * 0.1 / 10, rel=0.03)


def test_some_clients_at_a_time_train_as_all_at_once():
    process = _process("identity", "uniform:8")
    rounds = []
    for at_a_time in (5, 2):
        with cluster.open_context(tff_kit.Machines(clients_at_a_time=at_a_time), clients=5) as (context, sizes):
            rounds.append(_round(process, context, sizes))
    _assert_equal(*rounds)


def test_more_workers_than_clients(pair, join):
    context, sizes, _ = join(pair)
    with tff.framework.get_context_stack().install(context):
        assert _total(3.0, [2.0]) == 6
        assert _total(3.0, []) == 0
    assert sizes.get_size_info().broadcast_bits == [32, 32]


@tff.tensorflow.computation(np.float32, np.float32)
def _product(a, b):
    return a * b


@tff.federated_computation(tff.FederatedType(np.float32, tff.SERVER), tff.FederatedType(np.float32, tff.CLIENTS))
def _total(factor, values):
    return tff.federated_sum(tff.federated_map(_product, (values, tff.federated_broadcast(factor))))


def test_arguments_that_tff_would_divide_wrongly_are_refused(pair, join):
    @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS), tff.FederatedType(np.float32, tff.SERVER))
    def total(values, factor):
        return _total(factor, values)

    context, _, _ = join(pair)
    with tff.framework.get_context_stack().install(context), pytest.raises(ValueError, match="as the last argument"):
        total([1.0, 2.0], 3.0)


def test_a_server_that_draws_is_refused_since_each_worker_would_draw_others(pair, join):
    def encoder_fn(spec):
        return te.encoders.as_gather_encoder(te.encoders.hadamard_quantization(8), spec)

    process = processes._EncodedSumFactory(encoder_fn).create(tff.TensorType(np.float32, [8]))
    context, _, _ = join(pair)
    with tff.framework.get_context_stack().install(context), pytest.raises(ValueError, match="found RandomUniform"):
        process.next(process.initialize(), [np.ones(8, np.float32)])


# Faults. Clients say that they began, and go on when told to.


@pytest.fixture
def waiting_sum(pair, join, tmp_path):
    """A computation that sums the clients' numbers, a function that waits for all to begin, and one that lets them go on."""
    del pair, join  # They end after this, when no client waits any more.
    go = tmp_path / "go"

    def wait_until_all_began():
        wait_until(lambda: len(list(tmp_path.glob("began-*"))) == len(NUMBERS))

    @tff.tensorflow.computation(np.int32, np.int32)
    def wait(client, factor):
        began = tf.io.write_file(tf.strings.join([f"{tmp_path}/began-", tf.strings.as_string(client)]), "")
        with tf.control_dependencies([began]):
            return tf.while_loop(
                lambda x: tf.equal(tf.size(tf.io.matching_files(str(go))), 0), lambda x: (x + 0,), [client * factor]
            )[0]

    @tff.federated_computation(tff.FederatedType(np.int32, tff.SERVER), tff.FederatedType(np.int32, tff.CLIENTS))
    def waiting_sum(factor, numbers):
        return tff.federated_sum(tff.federated_map(wait, (numbers, tff.federated_broadcast(factor))))

    yield waiting_sum, wait_until_all_began, go.touch
    go.touch()


def _call(context, computation, *arguments):
    """Calls in a thread; returns the thread and a list for the result or error."""
    outcome = []

    def run():
        try:
            with tff.framework.get_context_stack().install(context):
                outcome.append(computation(*arguments))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


NUMBERS = [1, 10, 100, 1000]


@pytest.mark.parametrize("fault", ["kill -9", "SIGSTOP", "cut off"])
def test_the_others_compute_what_a_lost_worker_had(pair, join, waiting_sum, fault):
    context, sizes, said = join(pair, timeout=3.0)
    computation, wait_until_all_began, go_on = waiting_sum
    thread, outcome = _call(context, computation, 2, NUMBERS)
    wait_until_all_began()
    lost = pair[1]
    stopped = lost.relay if fault == "cut off" else lost.process  # To its driver, a link that is cut is silent.
    if fault == "kill -9":
        lost.kill()
    else:
        stopped.suspend()
    go_on()
    thread.join(30)
    assert outcome == [2222]
    assert sizes.get_size_info().broadcast_bits == [4 * 32]
    assert sizes.get_size_info().aggregate_bits == [4 * 32]
    assert said == [f"The worker {lost.address} does not answer any more; the others compute its clients."]
    if fault == "kill -9":
        lost.start()
        cluster.RemoteWorker(lost.address).wait_until_ready()
    else:
        stopped.resume()
    pair[0].process.suspend()  # So that only the one that was lost can compute.
    try:
        assert _call_and_wait(context, computation, 3, NUMBERS) == 3333
    finally:
        pair[0].process.resume()
    assert said[1] == f"The worker {lost.address} answers again."


def _call_and_wait(context, computation, *arguments):
    thread, outcome = _call(context, computation, *arguments)
    thread.join(60)
    return outcome[0]


def test_without_any_worker_a_call_ends_in_time_with_a_sentence(pair, join, waiting_sum):
    context, sizes, _ = join(pair, timeout=1.0)
    computation, wait_until_all_began, go_on = waiting_sum
    thread, outcome = _call(context, computation, 2, NUMBERS)
    wait_until_all_began()
    for worker in pair:
        worker.process.suspend()
    thread.join(30)
    try:
        assert isinstance(outcome[0], cluster.LostError)
        assert "to answer, but none did for 1 s" in str(outcome[0])
        assert sizes.get_size_info().broadcast_bits == []
    finally:
        for worker in pair:
            worker.process.resume()
    go_on()
    assert _call_and_wait(context, computation, 2, NUMBERS) == 2222


def test_a_worker_without_a_clients_data_says_so_and_is_not_lost(pair, join, tmp_path):
    @tff.tensorflow.computation(np.str_)
    def length(name):
        return tf.strings.length(tf.io.read_file(name))

    @tff.federated_computation(tff.FederatedType(np.str_, tff.CLIENTS))
    def total(names):
        return tff.federated_sum(tff.federated_map(length, names))

    context, _, said = join(pair)
    (tmp_path / "here").write_text("four")
    with tff.framework.get_context_stack().install(context):
        assert total([str(tmp_path / "here")] * 3) == 12
        with pytest.raises(Exception, match="missing"):
            total([str(tmp_path / "here"), str(tmp_path / "missing")])
        assert total([str(tmp_path / "here")] * 3) == 12
    assert said == [f"The worker {pair[1].address} could not compute its clients."]


# Who may connect.


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    """Two credentials of different clusters."""
    folder = tmp_path_factory.mktemp("credentials")
    for name in ("ours", "theirs"):
        subprocess.run(["bash", ROOT / "scripts/credential.sh", folder / name], check=True)
    assert (folder / "ours").stat().st_mode & 0o077 == 0
    return folder / "ours", folder / "theirs"


def test_only_who_has_the_credential_can_compute(credentials, join):
    ours, theirs = credentials
    worker = Started(ours)
    try:
        context, _, _ = join([worker], credential=ours)
        for wrong in (theirs, None):
            with pytest.raises(cluster.LostError, match="found none that answers within 1 s"):
                cluster.RemoteWorker(worker.address, wrong, timeout=1.0).wait_until_ready()
        with tff.framework.get_context_stack().install(context):
            assert _total(3.0, [1.0, 2.0]) == 9
        encrypted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        encrypted.load_verify_locations(ours)
        encrypted.maximum_version = ssl.TLSVersion.TLSv1_2  # Which tells at once.
        with socket.create_connection(("127.0.0.1", worker.port)) as plain, pytest.raises(ssl.SSLError):
            encrypted.wrap_socket(plain, server_hostname="tff-kit")
    finally:
        worker.kill()


def test_garbage_at_a_workers_port_disturbs_nobody(pair, join, waiting_sum):
    context, _, said = join(pair)
    computation, wait_until_all_began, go_on = waiting_sum
    thread, outcome = _call(context, computation, 2, NUMBERS)
    wait_until_all_began()
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 4096, b""):
        with socket.create_connection(("127.0.0.1", pair[0].port)) as connection, contextlib.suppress(OSError):
            connection.sendall(garbage)
    go_on()
    thread.join(30)
    assert outcome == [2222]
    assert said == []


def test_workers_listen_on_loopback_only(pair):
    if os.readlink("/proc/self/ns/net") == os.readlink(f"/proc/{pair[0].process.pid}/ns/net"):
        pytest.skip("this system allows no network namespace")
    own = runtime.Worker()
    own.stub()
    pids = {process.pid for worker in (psutil.Process(own.pid), pair[0].process) for process in (worker, *worker.children())}
    listening = [x.laddr for x in psutil.net_connections("inet") if x.pid in pids and x.status == psutil.CONN_LISTEN]
    own.stop()
    assert [address.ip for address in listening] == ["127.0.0.1"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bind", "0.0.0.0"], "Expected --credential for a worker beyond this machine's loopback address"),
        (["--credential", "nowhere.pem"], "Expected a PEM file with a key and its certificate in nowhere.pem"),
        (["--credential", __file__], "Expected a PEM file with a key and its certificate"),
    ],
)
def test_workers_that_would_serve_everybody_are_refused(arguments, message, capsys):
    assert command_line.main(["worker", "--port", "0", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused(pair, capsys):
    assert command_line.main(["worker", "--port", str(pair[0].port)]) == 2
    assert "Address already in use" in capsys.readouterr().err


# The commands.


def test_the_worker_command_ends_with_who_started_it():
    program = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'tff_kit', 'worker', '--port', '0', '--insecure'])"
    parent = psutil.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout.readline().startswith("worker at 127.0.0.1:")
    (worker,) = parent.children()
    wait_until(lambda: len(worker.children()) == 1)
    started = [worker, *worker.children()]
    parent.kill()
    assert not psutil.wait_procs(started, timeout=10)[1]
    parent.communicate(timeout=30)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_by_signals(sent):
    worker = Started()
    cluster.RemoteWorker(worker.address).wait_until_ready()
    started = [worker.process, *worker.process.children()]
    worker.process.send_signal(sent)
    assert not psutil.wait_procs(started, timeout=10)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "localhost"], "Expected --workers to be HOST:PORT,HOST:PORT, found 'localhost'"),
        (["--workers", "localhost:1,"], "found ''"),
        (["--clients-at-a-time", "0"], "Expected --clients-at-a-time to be at least 1"),
        (["--worker-timeout", "0"], "Expected --worker-timeout to be more than 0"),
        (["--max-concurrent", "0"], "Expected --max-concurrent to be at least 1, found 0"),
        (["--max-concurrent", "1", "--workers", "127.0.0.1:1"], "Expected --max-concurrent without --workers, found both"),
        (["--credential", "nowhere.pem"], "Expected a PEM file at --credential nowhere.pem"),
        (["--workers", "127.0.0.1:1", "--worker-timeout", "0.5"], "Expected a worker at 127.0.0.1:1, found none that answers"),
    ],
)
def test_bad_machines_are_refused(arguments, message, tmp_path, capsys):
    base = ["train", "emnist", "--data", "digits", "--rounds", "1", "--logdir", str(tmp_path / "run")]
    assert command_line.main([*base, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_training_that_loses_its_workers_goes_on_elsewhere(pair, tmp_path, capsys):
    logdir = str(tmp_path / "run")
    base = ["train", "emnist", "--data", "digits", "--filters", "2", "--clients", "2", "--logdir", logdir]
    addresses = ",".join(worker.address for worker in pair)

    def fail_later(line=None):
        wait_until(lambda: (tmp_path / "run/metrics.csv").exists() and len(_rows(tmp_path)) >= 2, 120)
        for worker in pair:
            worker.process.suspend()

    fault = threading.Thread(target=fail_later)
    fault.start()
    arguments = ["--rounds", "500", "--eval-every", "1", "--workers", addresses, "--worker-timeout", "3"]
    assert command_line.main([*base, *arguments]) == 2
    fault.join()
    for worker in pair:
        worker.process.resume()
    error = capsys.readouterr().err
    assert "none did for 3 s. The run goes on with --resume --logdir" in error
    done = len(_rows(tmp_path))
    per_round = int(_rows(tmp_path)[0]["aggregate_bits"])
    with open(tmp_path / "run/settings.json") as file:
        text = file.read().replace('"rounds": 500', f'"rounds": {done}')  # A shorter run, to see its end.
    (tmp_path / "run/settings.json").write_text(text)
    assert command_line.main(["train", "emnist", "--resume", "--logdir", logdir, "--rounds", str(done + 1)]) == 0
    rows = _rows(tmp_path)
    assert [int(row["round"]) for row in rows] == list(range(1, done + 2))
    assert [int(row["aggregate_bits"]) for row in rows] == [per_round * (n + 1) for n in range(done + 1)]


def _rows(folder):
    import csv

    with open(folder / "run/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="the script runs the project's own .venv")
def test_a_worker_started_over_ssh_computes_and_ends_with_the_training(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ssh = tmp_path / "ssh"  # Of one host, this one; what it would forward is here already.
    ssh.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/arguments\necho $$ > {tmp_path}/pid\nexec bash -c "${{@: -1}}"\n')
    ssh.chmod(0o755)
    settings = ["--data", "digits", "--filters", "2", "--rounds", "1", "--clients", "2", "--logdir", str(tmp_path / "run")]
    subprocess.run(
        [str(ROOT / "scripts" / "workers_over_ssh.sh"), "first", "emnist", *settings],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        timeout=300,
        check=True,
    )
    assert f"-L 127.0.0.1:{port}:127.0.0.1:{port} first" in (tmp_path / "arguments").read_text()
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["machines"]["workers"] == f"127.0.0.1:{port}"
    worker = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(worker))
