"""Workers: none is left behind, whatever happens to the process that started it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT

from tff_kit import runtime

_SCRIPT = """
import os, sys, time
import tensorflow_federated as tff
from tff_kit import runtime

@tff.federated_computation
def hello_world():
    return 'Hello, World!'

assert hello_world() == b'Hello, World!'
print(runtime.worker._shared_worker.pid, flush=True)
sys.stdin.readline()
{ending}
"""


def _start(ending):
    """Starts a program that runs a computation and then `ending`; returns it and its worker, which runs."""
    program = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT.format(ending=ending)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = psutil.Process(int(program.stdout.readline()))
    assert "worker_binary" in worker.cmdline()[0]
    program.stdin.write("\n")
    program.stdin.flush()
    return program, worker


def _assert_gone(worker):
    worker_gone, _ = psutil.wait_procs([worker], timeout=10)
    assert worker_gone


@pytest.mark.parametrize("ending", ["", "raise ValueError('wrong')", "os._exit(3)", "sys.exit(1)"])
def test_a_worker_ends_with_its_program_and_the_pipes_close(ending):
    program, worker = _start(ending)
    program.communicate(timeout=30)  # Returns when nobody holds the pipe any more.
    _assert_gone(worker)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_with_a_program_that_is_killed(sent):
    program, worker = _start("time.sleep(60)")
    program.send_signal(sent)
    program.communicate(timeout=30)
    assert program.returncode != 0
    _assert_gone(worker)


def test_a_program_that_ends_well_says_nothing_on_its_way_out():
    program, worker = _start("")
    assert program.communicate(timeout=30) == ("", "")
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


@pytest.mark.parametrize(("own", "expected"), [({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0")])
def test_a_worker_has_the_faster_kernels_unless_told_otherwise(own, expected):
    program = "from tff_kit import runtime; print(runtime.worker_environment()['TF_ENABLE_ONEDNN_OPTS'])"
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    run = subprocess.run([sys.executable, "-c", program], env={**environment, **own}, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [expected]


@pytest.mark.parametrize(
    "processors, at_once, threads", [(2, None, "1"), (2, 1, "2"), (16, None, "1"), (16, 4, "4"), (64, None, "6"), (8, 20, "1")]
)
def test_an_operation_has_the_processors_that_other_clients_leave(monkeypatch, processors, at_once, threads):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert runtime.worker_environment(at_once)["TF_NUM_INTRAOP_THREADS"] == threads
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert runtime.worker_environment(at_once)["TF_NUM_INTRAOP_THREADS"] == "3"


def test_computations_run_inside_a_running_event_loop_as_in_jupyter():
    program = subprocess.run(
        [
            sys.executable,
            "-c",
            "import asyncio\nasync def cell():\n"
            + "\n".join(f"    {line}" for line in _SCRIPT.format(ending="print('done')").splitlines())
            + "\nasyncio.run(cell())",
        ],
        cwd=ROOT,
        text=True,
        input="\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert program.stdout.endswith("done\n"), program.stderr
