"""Execution contexts: the worker process that runs TFF's computations, owned from start to end.

TFF's runtime is a C++ program that Python talks to over gRPC. TFF's own context leaves that program behind when Python
ends, and hands it Python's standard output, so that a pipe behind the run never closes. A `Worker` ends with the
process that started it, however that process ends, and writes to a log of its own.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from typing import BinaryIO, Callable, Optional, Union

import grpc
import portpicker
import tensorflow_federated as tff

_BINARY = pathlib.Path(tff.__file__).parent / "data" / "worker_binary"
_MAX_MESSAGE_BYTES = 2 * 1000**3
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
]
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0

# Run by a bare interpreter that then becomes the worker: asks the kernel (PR_SET_PDEATHSIG is 1) to kill the worker
# with its parent, which is the only way that also survives `kill -9` of the parent. The check of the parent's id closes
# the gap in which the parent died before the kernel was asked.
_LAUNCHER = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
os.getppid() == int(sys.argv[1]) or sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class WorkerError(RuntimeError):
    """The worker process could not be started, or ended by itself."""


@dataclasses.dataclass(frozen=True)
class _Running:
    """A worker process, the connection to it and the file that takes what it prints."""

    process: subprocess.Popen
    channel: grpc.Channel
    stub: tff.framework.RemoteExecutorGrpcStub
    log: BinaryIO

    def end(self) -> None:
        self.channel.close()
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def last_output(self, characters: int = 2000) -> str:
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - characters))
        return self.log.read().decode(errors="replace")


class Worker:
    """One TFF worker process on a free port of this machine, started when first needed and again if it died.

    Args:
      log: Where the worker's output is appended to. A path, or `None` for a temporary file that only shows in errors.
    """

    def __init__(self, log: Optional[Union[str, os.PathLike]] = None):
        self._log = log
        self._running: Optional[_Running] = None
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def pid(self) -> Optional[int]:
        """The process id of the running worker, or `None`."""
        running = self._running
        return running.process.pid if running and running.process.poll() is None else None

    def stub(self) -> tff.framework.RemoteExecutorGrpcStub:
        """Returns a connection to the running worker; starts one where there is none.

        Raises:
          WorkerError: If the worker ends at once, doesn't answer within a minute, or was stopped.
        """
        with self._lock:
            if self._stopped:
                raise WorkerError("Expected a worker to compute on, but this one was stopped.")
            if self._running is None or self.pid is None:
                self._end()
                self._running = self._start()
            return self._running.stub

    def stop(self) -> None:
        """Ends the worker for good: what still waits for it fails instead of starting another."""
        with self._lock:
            self._stopped = True
            self._end()

    def _end(self) -> None:
        if self._running is not None:
            self._running.end()
            self._running = None
        atexit.unregister(self.stop)

    def _start(self) -> _Running:
        if not _BINARY.is_file():
            raise WorkerError(f"Expected TFF's worker program at {_BINARY}, found none. TFF has it for Linux on x86-64 only.")
        atexit.register(self.stop)
        log = tempfile.TemporaryFile() if self._log is None else open(self._log, "ab+")  # noqa: SIM115
        port = portpicker.pick_unused_port()
        started: futures.Future = futures.Future()
        threading.Thread(target=_keep, args=(port, log, started), name="tff-worker", daemon=True).start()
        channel = grpc.insecure_channel(f"localhost:{port}", _CHANNEL_OPTIONS)
        running = _Running(started.result(), channel, tff.framework.RemoteExecutorGrpcStub(channel), log)
        _wait_until_ready(running, port)
        return running


def _keep(port: int, log: BinaryIO, started: futures.Future) -> None:
    """Starts a worker and stays until it ends."""
    # The kernel ties the worker to the *thread* that started it, so this thread lives as long as the worker. Its own
    # session keeps the terminal's Ctrl-C from the worker: Python ends it, after it has saved what it wants to save.
    command = [sys.executable, "-S", "-E", "-c", _LAUNCHER, str(os.getpid()), str(_BINARY), f"--port={port}"]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "1", **os.environ}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    except BaseException as error:
        started.set_exception(error)
        return
    started.set_result(process)
    process.wait()


def _wait_until_ready(running: _Running, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not running.stub.is_ready:
        code = running.process.poll()
        if code is not None or time.monotonic() > deadline:
            what = f"did not answer on port {port} in {_START_SECONDS:.0f} s" if code is None else f"ended with code {code}"
            output = running.last_output()
            running.end()
            raise WorkerError(f"Expected TFF's worker to start, but it {what}. Its last output:\n{output}")
        time.sleep(0.02)


_shared_worker = Worker()


def worker_executor_factory(
    worker: Optional[Worker] = None,
    default_num_clients: int = 0,
    executor_fn: Callable[[tff.framework.RemoteExecutorStub], tff.framework.RemoteExecutor] = tff.framework.RemoteExecutor,
) -> tff.framework.ExecutorFactory:
    """Returns a factory of executors that compute on `worker`.

    Args:
      worker: The process to compute on; `None` for the one that all such factories of this Python process share.
      default_num_clients: How many clients there are in a computation whose arguments do not tell.
      executor_fn: Makes an executor from a connection to the worker.
    """
    worker = _shared_worker if worker is None else worker

    def create(cardinalities) -> tff.framework.RemoteExecutor:
        cardinalities.setdefault(tff.CLIENTS, default_num_clients)
        executor = executor_fn(worker.stub())
        executor.set_cardinalities(cardinalities)
        return executor

    return tff.framework.ResourceManagingExecutorFactory(create)


def create_context(executor_factory: tff.framework.ExecutorFactory) -> tff.framework.SyncExecutionContext:
    """Returns TFF's synchronous context over `executor_factory`, with the compiler of TFF's native backend.

    Secure sums are simulated: the result and what each client sends are those of a sum, the protocol is left out.
    """
    return tff.framework.SyncExecutionContext(
        executor_fn=executor_factory,
        compiler_fn=_compile,
        transform_args=tff.tensorflow.transform_args,
        transform_result=tff.tensorflow.transform_result,
    )


def set_default_context() -> None:
    """Makes TFF compute on this process's shared worker, not on one of its own that it would leave behind."""
    tff.framework.set_default_context(create_context(worker_executor_factory()))


def _compile(computation: tff.framework.ConcreteComputation) -> tff.framework.ConcreteComputation:
    simulated = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    return tff.backends.native.desugar_and_transform_to_native(simulated)
