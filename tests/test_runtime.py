"""Workers: none is left behind, whatever happens to the process that started it."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from conftest import ROOT

from tff_kit import runtime

_SCRIPT = """
import os, sys, time
import tff_kit, tensorflow_federated as tff
tff_kit.build_federated_averaging_process  # Whoever builds a process has no worker of TFF's own, which would be left behind.

@tff.federated_computation
def hello_world():
    return 'Hello, World!'

assert hello_world() == b'Hello, World!'
from tff_kit import runtime
print(runtime.worker._shared_worker.pid, flush=True)
sys.stdin.readline()
{ending}
"""


@pytest.fixture
def start(start_program):
    """Starts a program that runs a computation and then some ending; returns it and its worker, which runs."""

    def start(ending):
        return _with_its_worker(start_program(_SCRIPT.format(ending=ending)))

    return start


def _with_its_worker(program):
    worker = psutil.Process(int(program.stdout.readline()))
    assert "worker_binary" in worker.cmdline()[0]
    program.stdin.write(b"\n")
    return program, worker


def _assert_gone(worker):
    worker_gone, _ = psutil.wait_procs([worker], timeout=10)
    assert worker_gone


@pytest.mark.parametrize("ending", ["", "raise ValueError('wrong')", "os._exit(3)", "sys.exit(1)"])
def test_a_worker_ends_with_its_program_and_the_pipes_close(start, ending):
    program, worker = start(ending)
    program.communicate(timeout=120)  # Returns when nobody holds the pipe any more.
    _assert_gone(worker)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_with_a_program_that_is_killed(start, sent):
    program, worker = start("time.sleep(60)")
    program.send_signal(sent)
    program.communicate(timeout=120)
    assert program.returncode != 0
    _assert_gone(worker)


@pytest.mark.process
def test_a_program_that_ends_well_says_nothing_on_its_way_out():
    # Not forked, to end with all that it has imported itself.
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    command = [sys.executable, "-c", _SCRIPT.format(ending="")]
    program, worker = _with_its_worker(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    assert program.communicate(timeout=120) == (b"", b"")
    assert program.returncode == 0
    _assert_gone(worker)


def test_a_worker_that_died_is_started_again():
    worker = runtime.Worker()
    try:
        worker.stub()
        first = worker.pid
        psutil.Process(first).kill()
        deadline = time.monotonic() + 10
        while worker.pid is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        worker.stub()
        assert worker.pid not in (None, first)
    finally:
        worker.stop()


def test_a_stopped_worker_stays_stopped():
    worker = runtime.Worker()
    worker.stub()
    process = psutil.Process(worker.pid)
    worker.stop()
    _assert_gone(process)
    with pytest.raises(runtime.WorkerError, match="was stopped"):
        worker.stub()


def test_a_worker_that_can_not_start_says_why(tmp_path, monkeypatch):
    broken = tmp_path / "worker_binary"
    broken.write_text("#!/bin/sh\necho no such library\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setattr(runtime.worker, "_BINARY", broken)
    with pytest.raises(runtime.WorkerError, match="(?s)ended with code 7.*no such library"):
        runtime.Worker().stub()
    monkeypatch.setattr(runtime.worker, "_BINARY", tmp_path / "none")
    with pytest.raises(runtime.WorkerError, match="found none"):
        runtime.Worker().stub()


def test_a_workers_output_goes_to_its_log(tmp_path):
    worker = runtime.Worker(log=tmp_path / "worker.log")
    worker.stub()
    worker.stop()
    assert (tmp_path / "worker.log").exists()


@pytest.mark.parametrize("told, expected", [(None, os.cpu_count()), (5, 5)])
def test_a_worker_computes_as_much_at_once_as_there_are_processors_or_as_told(told, expected):
    worker = runtime.Worker(max_concurrent=told)
    try:
        worker.stub()
        assert f"--max_concurrent_computation_calls={expected}" in psutil.Process(worker.pid).cmdline()
    finally:
        worker.stop()


def test_a_worker_has_few_pools_of_memory_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    for processors, expected in ((1, "1"), (2, "1"), (16, "8")):
        monkeypatch.setattr(os, "cpu_count", lambda value=processors: value)
        assert runtime.worker_environment()["MALLOC_ARENA_MAX"] == expected
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    assert runtime.worker_environment()["MALLOC_ARENA_MAX"] == "8"


@pytest.mark.parametrize(("own", "expected"), [(None, "1"), ("0", "0")])
def test_a_worker_has_the_faster_kernels_unless_told_otherwise(monkeypatch, own, expected):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if own is not None:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", own)
    assert runtime.worker_environment()["TF_ENABLE_ONEDNN_OPTS"] == expected


@pytest.mark.parametrize(
    "processors, at_once, threads", [(2, None, "1"), (2, 1, "2"), (16, None, "1"), (16, 4, "4"), (64, None, "6"), (8, 20, "1")]
)
def test_an_operation_has_the_processors_that_other_clients_leave(monkeypatch, processors, at_once, threads):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert runtime.worker_environment(at_once)["TF_NUM_INTRAOP_THREADS"] == threads
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert runtime.worker_environment(at_once)["TF_NUM_INTRAOP_THREADS"] == "3"


def test_computations_run_inside_a_running_event_loop_as_in_jupyter(start_program):
    cell = textwrap.indent(_SCRIPT.format(ending="print('done')"), "    ")
    program, _ = _with_its_worker(start_program(f"import asyncio\nasync def cell():\n{cell}\nasyncio.run(cell())"))
    printed, errors = program.communicate(timeout=120)
    assert printed == "done\n", errors
