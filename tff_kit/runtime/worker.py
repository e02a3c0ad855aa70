"""Execution contexts: the worker process that runs TFF's computations, owned from start to end.

TFF's runtime is a C++ program that Python talks to over gRPC. TFF's own context leaves that program behind when Python
ends, hands it Python's standard output, so that a pipe behind the run never closes, and has it serve the whole network. A
`Worker` ends with the process that started it, however that process ends, writes to a log of its own, and listens on this
machine's loopback address only.
"""

from __future__ import annotations

import atexit
import dataclasses
import ipaddress
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from typing import BinaryIO, Callable, NoReturn, Optional, Protocol, Union

import grpc
import tensorflow_federated as tff

from tff_kit.errors import UserError
from tff_kit.runtime import launcher

_BINARY = pathlib.Path(tff.__file__).parent / "data" / "worker_binary"
_MAX_MESSAGE_BYTES = 2 * 1000**3
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # A new connection waits for no earlier one that failed.
]
_PING_MILLISECONDS = 3_600_000
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
_MANY_CLIENTS = 10  # Of fewer in a round, each can use several processors.
CERTIFIED_NAME = "tff-kit"  # In the certificate of every credential.


class WorkerError(UserError, RuntimeError):
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
      max_concurrent: As of `worker_command`.
    """

    def __init__(self, log: Optional[Union[str, os.PathLike]] = None, max_concurrent: Optional[int] = None):
        self._log = log
        self._max_concurrent = max_concurrent
        self._running: Optional[_Running] = None
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def pid(self) -> Optional[int]:
        """The process id of the running worker, or `None`."""
        running = self._running
        return running.process.pid if running and running.process.poll() is None else None

    @property
    def isolated(self) -> bool:
        """Whether the worker is in a network namespace of its own, so that nobody reaches it but over its socket."""
        return self.pid is not None and os.readlink(f"/proc/{self.pid}/ns/net") != os.readlink("/proc/self/ns/net")

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
        _check_binary()
        atexit.register(self.stop)
        log = tempfile.TemporaryFile() if self._log is None else open(self._log, "ab+")  # noqa: SIM115
        started: futures.Future = futures.Future()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            # Where the system has no network namespace for it, it runs all the same; `worker_command` says what that means.
            command = worker_command(listening, os.getpid(), insecure=True, max_concurrent=self._max_concurrent)
            arguments = (command, worker_environment(self._max_concurrent), listening, log, started)
            threading.Thread(target=_keep, args=arguments, name="tff-worker", daemon=True).start()
            process = started.result()
        channel = open_channel(f"127.0.0.1:{port}")
        running = _Running(process, channel, tff.framework.RemoteExecutorGrpcStub(channel), log)
        _wait_until_ready(running, port)
        return running


def _check_binary() -> None:
    if not _BINARY.is_file():
        raise WorkerError(f"Expected TFF's worker program at {_BINARY}, found none. TFF has it for Linux on x86-64 only.")


def serve(
    port: int,
    bind: str = "127.0.0.1",
    credential: Optional[Union[str, os.PathLike]] = None,
    insecure: bool = False,
    max_concurrent: Optional[int] = None,
) -> NoReturn:
    """Makes this process a worker for trainings elsewhere. It ends by a signal, and with the process that started it.

    Args:
      port: Where to listen; 0 for a free one.
      bind: The address to listen on.
      credential: PEM file of a key and its certificate, which whoever connects must have as well.
      insecure: Whether to serve everybody who reaches an address beyond loopback, unencrypted, and to run where the system
        allows no network namespace.
      max_concurrent: As of `worker_command`.

    Raises:
      WorkerError: If others could connect without a credential, the credential can't be used, or `max_concurrent` is below 1.
      OSError: If the port is taken.
    """
    family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
    if not (credential or insecure or ipaddress.ip_address(address[0]).is_loopback):
        raise WorkerError(
            f"Expected --credential for a worker beyond this machine's loopback address, found --bind {bind} without: everybody "
            "who reaches the port could compute here and read and write files. --insecure allows it all the same."
        )
    if credential is not None:
        try:
            launcher.tls_context(os.fspath(credential))
        except (OSError, ssl.SSLError) as error:
            raise WorkerError(f"Expected a key and its certificate, PEM, in {credential}, found: {error}.") from error
    check_max_concurrent(max_concurrent)
    _check_binary()
    listening = socket.create_server(address[:2], family=family)
    listening.set_inheritable(True)
    print(f"worker at {bind}:{listening.getsockname()[1]}, {'TLS' if credential else 'plain text'}", flush=True)
    command = worker_command(listening, os.getppid(), credential, insecure, max_concurrent)
    os.execve(command[0], command, worker_environment(max_concurrent))


def worker_command(
    listening: socket.socket,
    parent: int,
    credential: Optional[Union[str, os.PathLike]] = None,
    insecure: bool = False,
    max_concurrent: Optional[int] = None,
) -> list[str]:
    """Returns the command of a worker, to be run or executed with the file descriptor of `listening` inherited.

    Args:
      listening: The socket to serve; the worker itself is in a network namespace of its own.
      parent: The id of the process that runs the command and with which the worker ends.
      credential: PEM file of a key and its certificate, which whoever connects must have as well. `None` for plain text.
      insecure: Whether the worker shall also run where the system allows no network namespace. A port of it, drawn by
        chance, is then open on all addresses of the machine.
      max_concurrent: How many computations, such as the training of a client, run at once. By default as many as there are
        processors: more of them hold memory longer and gain nothing.
    """
    options = [f"--socket={listening.fileno()}", f"--parent={parent}"]
    options += [] if credential is None else [f"--credential={os.fspath(credential)}"]
    options += ["--insecure"] if insecure else []
    at_once = f"--max_concurrent_computation_calls={max_concurrent or os.cpu_count()}"
    return [sys.executable, "-I", "-S", launcher.__file__, *options, "--", str(_BINARY), at_once]


def check_max_concurrent(max_concurrent: Optional[int]) -> None:
    """Raises `WorkerError` if it is less than 1."""
    if max_concurrent is not None and max_concurrent < 1:
        raise WorkerError(f"Expected --max-concurrent to be at least 1, found {max_concurrent}.")


def open_channel(
    address: str, credential: Optional[Union[str, os.PathLike]] = None, timeout: Optional[float] = None
) -> grpc.Channel:
    """Returns a channel to a worker.

    Args:
      address: `host:port`.
      credential: As for `worker_command`, for mutual TLS; `None` for plain text.
      timeout: Seconds in which what is sent has to arrive. Without it a link that is cut while something is sent holds up the
        sender for the kernel's quarter of an hour, even when the channel is closed.
    """
    options: list[tuple[str, Union[int, str]]] = list(_CHANNEL_OPTIONS)
    if timeout is not None:
        # gRPC has the kernel watch what it sends only when it pings as well, which a server allows every five minutes at most.
        options += [("grpc.keepalive_time_ms", _PING_MILLISECONDS), ("grpc.keepalive_timeout_ms", int(1000 * timeout))]
    if credential is None:
        return grpc.insecure_channel(address, options)
    pem = pathlib.Path(credential).read_bytes()
    # All that counts is that both have the one certificate, wherever its owner is.
    options += [("grpc.ssl_target_name_override", CERTIFIED_NAME)]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(pem, pem, pem), options)


def _keep(
    command: list[str], environment: dict[str, str], listening: socket.socket, log: BinaryIO, started: futures.Future
) -> None:
    """Starts a worker and stays until it ends."""
    # The kernel ties the worker to the *thread* that started it, so this thread lives as long as the worker. Its own
    # session keeps the terminal's Ctrl-C from the worker: Python ends it, after it has saved what it wants to save.
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            pass_fds=[listening.fileno()],
        )
    except BaseException as error:
        started.set_exception(error)
        return
    started.set_result(process)
    process.wait()


def worker_environment(max_concurrent: Optional[int] = None) -> dict[str, str]:
    """Returns the environment variables of a worker: this process's, which take precedence, and what a worker does well with.

    Args:
      max_concurrent: As of `worker_command`.
    """
    processors = os.cpu_count() or 1
    at_once = min(max_concurrent or processors, _MANY_CLIENTS)
    return {
        "TF_CPP_MIN_LOG_LEVEL": "1",
        # The faster kernels of oneDNN, which TensorFlow itself takes on the newest processors only.
        "TF_ENABLE_ONEDNN_OPTS": "1",
        # The C library gives a program up to eight pools of memory a processor, and each comes to hold what was freed in it. With
        # one for two processors a round takes as long, and 500 of them no more memory than the first hundred.
        "MALLOC_ARENA_MAX": str(max(1, processors // 2)),
        # TensorFlow gives an operation as many threads as there are processors; of several clients at once, they would only wait.
        "TF_NUM_INTRAOP_THREADS": str(max(1, processors // at_once)),
        **os.environ,
    }


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


class AnyWorker(Protocol):
    """What executors compute on."""

    def stub(self) -> tff.framework.RemoteExecutorGrpcStub:
        """Returns a connection to the worker; raises `WorkerError` where it can't be used."""


def worker_executor_factory(
    worker: Optional[AnyWorker] = None,
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


def compile_native(computation: tff.framework.ConcreteComputation) -> tff.framework.ConcreteComputation:
    """Compiles `computation` for a worker. Secure sums become sums."""
    simulated = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    return tff.backends.native.desugar_and_transform_to_native(simulated)


def create_context(
    executor_factory: tff.framework.ExecutorFactory, compiler_fn: Optional[Callable] = compile_native
) -> tff.framework.SyncExecutionContext:
    """Returns TFF's synchronous context over `executor_factory`, by default with the compiler of TFF's native backend.

    Secure sums are simulated: the result and what each client sends are those of a sum, the protocol is left out.
    """
    return tff.framework.SyncExecutionContext(
        executor_fn=executor_factory,
        compiler_fn=compiler_fn,
        transform_args=tff.tensorflow.transform_args,
        transform_result=tff.tensorflow.transform_result,
    )


def set_default_context() -> None:
    """Makes TFF compute on this process's shared worker, not on one of its own that it would leave behind."""
    tff.framework.set_default_context(create_context(worker_executor_factory()))
