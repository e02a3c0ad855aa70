"""A client's process: what it answers through its socket, and what it leaves behind."""

import contextlib
import os
import subprocess
from concurrent import futures

import psutil
import pytest
from conftest import wait_until

from tff_kit.deploy import channel, children, client_process, messages, partition
from tff_kit.deploy.aggregation import Averaging
from tff_kit.deploy.node import Node
from tff_kit.tasks.emnist import Emnist

SETTINGS = {"data": "digits", "filters": 1, "threshold": 1000, "mean": "uniform:8,nearest"}

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    [written] = partition.write_all(Emnist(**SETTINGS).load_data(), ["form03"], folder)
    return written


@pytest.fixture(scope="module")
def asked():
    """A server's settings and the model of a first round."""
    averaging = Averaging(Emnist(**SETTINGS))
    sent = averaging.send(averaging.initial_state())
    train = messages.Train(averaging.settings.key, 1, 7, sent.numbers, sent.params, sent.model)
    return averaging.settings.pack(), train.pack()


@contextlib.contextmanager
def running(folder, socket, **options):
    command = client_process.command("emnist", socket, str(folder), None, os.getpid(), **options)
    with subprocess.Popen(command) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def test_answers_are_those_of_a_node_and_memory_is_free_between_them(tmp_path, folder, asked):
    node = Node(Emnist, str(folder))
    expected = [node.answer(message) for message in asked]
    assert isinstance(messages.unpack(expected[1]), messages.Trained)
    for free_memory in (False, True):
        socket = tmp_path / f"socket{free_memory:d}"
        with running(folder, socket, free_memory=free_memory) as process:
            assert [channel.ask(socket, message, 120) for message in asked] == expected
            mebibytes = process.memory_info().rss / 2**20
            if free_memory:
                assert not process.children(recursive=True)
                assert mebibytes < 100  # TensorFlow alone is several times that.
            else:
                assert mebibytes > 200


def test_client_that_is_never_sampled_starts_no_tensorflow(tmp_path, folder, asked):
    settings, _ = asked
    socket = tmp_path / "socket"
    with running(folder, socket, free_memory=True) as process:
        hello = messages.unpack(channel.ask(socket, settings, 120))
        assert hello == messages.unpack(Node(Emnist, str(folder)).answer(settings))
        assert "libtensorflow" not in "".join(mapped.path for mapped in process.memory_maps())
        assert not process.children()


def test_settings_of_another_task_and_data_of_nobody_are_for_a_new_process(tmp_path, asked):
    fresh = client_process.Fresh(["false"], tmp_path / "socket", "kws", "form03")
    with pytest.raises(ConnectionError, match="Expected a process that listens"):
        fresh.answer(asked[0])
    fresh = client_process.Fresh(["false"], tmp_path / "socket", "emnist", None)
    with pytest.raises(ConnectionError, match="Expected a process that listens"):
        fresh.answer(asked[0])


def test_process_that_dies_answers_nothing_and_the_next_one_does(tmp_path, folder, asked):
    socket = tmp_path / "socket"
    with running(folder, socket, free_memory=True) as process, futures.ThreadPoolExecutor() as pool:
        channel.ask(socket, asked[0], 120)  # Needs no process.
        answer = pool.submit(channel.ask, socket, asked[1], 120)
        wait_until(process.children)
        process.children()[0].kill()
        with pytest.raises(ConnectionError, match="found (that it ended|none)"):
            answer.result(120)
        assert isinstance(messages.unpack(channel.ask(socket, asked[1], 120)), messages.Trained)


def test_tensorflow_takes_no_more_of_a_gpus_memory_than_it_needs(monkeypatch):
    name, found = "TF_FORCE_GPU_ALLOW_GROWTH", []
    monkeypatch.setenv(name, "")  # So that what this test sets is undone.
    monkeypatch.delenv(name)
    monkeypatch.setattr(children.importlib, "import_module", lambda module: found.append((module, os.environ.get(name))))
    children.import_tensorflow()
    assert found == [("tensorflow", "true")]
