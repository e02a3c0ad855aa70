"""Execution contexts, and the worker process that runs TFF's computations.

TFF's runtime is a C++ program that Python talks to over gRPC. TFF's own context has three problems:

* It leaves the program running when Python ends.
* It gives the program Python's standard output, so a pipe behind the run never closes.
* The program listens on all addresses of the machine.

A `Worker` ends with the process that started it, however that process ends. It writes to its own log and listens on the loopback
address only.
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
    ("grpc.use_local_subchannel_pool", 1),  # A new connection does not wait for an earlier one that failed.
]
_PING_MILLISECONDS = 3_600_000
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
_MANY_CLIENTS = 10  # With fewer clients in a round, each can use several processors.
CERTIFIED_NAME = "tff-kit"
"""The name in the certificate of every credential."""


class WorkerError(UserError, RuntimeError):
    """A worker process could not start, ended by itself, or cannot be used as asked."""


@dataclasses.dataclass(frozen=True)
class _Running:
    """A worker process, the connection to it, and the file that takes its output."""

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
    """One TFF worker process on a free port of this machine. It starts when first needed, and again if it has died.

    Args:
      log: Path of the file to which the worker's output is appended. `None` for a temporary file that only shows in errors.
      max_concurrent: See `worker_command`.
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
        """Whether the worker is in its own network namespace, so that only its socket leads to it."""
        return self.pid is not None and os.readlink(f"/proc/{self.pid}/ns/net") != os.readlink("/proc/self/ns/net")

    def stub(self) -> tff.framework.RemoteExecutorGrpcStub:
        """Returns a connection to the worker. Starts the worker if none is running.

        Raises:
          WorkerError: If the worker ends at once, does not answer within a minute, or was stopped.
        """
        with self._lock:
            if self._stopped:
                raise WorkerError("Expected a running worker, found one that was stopped. Create a new Worker.")
            if self._running is None or self.pid is None:
                self._end()
                self._running = self._start()
            return self._running.stub

    def stop(self) -> None:
        """Ends the worker for good. Calls that still wait for it fail instead of starting another worker."""
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
            # Without a network namespace it runs all the same; `worker_command` says what that means.
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
        raise WorkerError(f"Expected TFF's worker program at {_BINARY}, found none. TFF ships it for Linux on x86-64 only.")


def serve(
    port: int,
    bind: str = "127.0.0.1",
    credential: Optional[Union[str, os.PathLike]] = None,
    insecure: bool = False,
    max_concurrent: Optional[int] = None,
) -> NoReturn:
    """Turns this process into a worker for trainings elsewhere. It ends on a signal, or with the process that started it.

    Args:
      port: The port to listen on; 0 for a free one.
      bind: The address to listen on.
      credential: PEM file with a key and its certificate. Everyone who connects must have the same file.
      insecure: Whether to serve everyone who reaches an address beyond loopback, unencrypted, and to run on a system that allows
        no network namespace.
      max_concurrent: See `worker_command`.

    Raises:
      WorkerError: If anyone could connect without a credential, the credential cannot be used, or `max_concurrent` is below 1.
      OSError: If the port is in use.
    """
    family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
    if not (credential or insecure or ipaddress.ip_address(address[0]).is_loopback):
        raise WorkerError(
            f"Expected --credential for a worker beyond this machine's loopback address, found --bind {bind} without one. "
            "Everyone who reaches the port could compute here and read and write files. --insecure allows it all the same."
        )
    if credential is not None:
        try:
            launcher.tls_context(os.fspath(credential))
        except (OSError, ssl.SSLError) as error:
            raise WorkerError(
                f"Expected a PEM file with a key and its certificate in {credential}, found: {error}. Make one with "
                "scripts/credential.sh."
            ) from error
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
    """Returns the command line of a worker. The process that runs it must inherit the file descriptor of `listening`.

    Args:
      listening: The socket to serve. The worker itself is in its own network namespace.
      parent: The id of the process that runs the command. The worker ends with it.
      credential: PEM file with a key and its certificate. Everyone who connects must have the same file. `None` for plain text.
      insecure: Whether the worker also runs on a system that allows no network namespace. A random port of it is then open on
        all addresses of the machine.
      max_concurrent: How many computations, such as the training of a client, run at once. The default is the number of
        processors: more would hold memory longer and gain nothing.
    """
    options = [f"--socket={listening.fileno()}", f"--parent={parent}"]
    options += [] if credential is None else [f"--credential={os.fspath(credential)}"]
    options += ["--insecure"] if insecure else []
    at_once = f"--max_concurrent_computation_calls={max_concurrent or os.cpu_count()}"
    return [sys.executable, "-I", "-S", launcher.__file__, *options, "--", str(_BINARY), at_once]


def check_max_concurrent(max_concurrent: Optional[int]) -> None:
    """Raises `WorkerError` if `max_concurrent` is less than 1."""
    if max_concurrent is not None and max_concurrent < 1:
        raise WorkerError(f"Expected --max-concurrent to be at least 1, found {max_concurrent}.")


def open_channel(
    address: str, credential: Optional[Union[str, os.PathLike]] = None, timeout: Optional[float] = None
) -> grpc.Channel:
    """Returns a gRPC channel to a worker.

    Args:
      address: `host:port`.
      credential: PEM file for mutual TLS, as in `worker_command`; `None` for plain text.
      timeout: Seconds within which a message must arrive. Without it, a link that is cut while a message is sent blocks the
        sender for the kernel's quarter of an hour, even if the channel is closed.
    """
    options: list[tuple[str, Union[int, str]]] = list(_CHANNEL_OPTIONS)
    if timeout is not None:
        # gRPC lets the kernel watch sent messages only if it also pings. A server allows a ping every five minutes at most.
        options += [("grpc.keepalive_time_ms", _PING_MILLISECONDS), ("grpc.keepalive_timeout_ms", int(1000 * timeout))]
    if credential is None:
        return grpc.insecure_channel(address, options)
    pem = pathlib.Path(credential).read_bytes()
    # Both sides must have the one certificate. The host that presents it does not matter.
    options += [("grpc.ssl_target_name_override", CERTIFIED_NAME)]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(pem, pem, pem), options)


def _keep(
    command: list[str], environment: dict[str, str], listening: socket.socket, log: BinaryIO, started: futures.Future
) -> None:
    """Starts a worker and waits until it ends."""
    # The kernel ties the worker to the *thread* that started it, so this thread lives as long as the worker. The worker's own
    # session shields it from the terminal's Ctrl-C: Python saves its state first and then ends the worker.
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
    """Returns the environment variables of a worker: good defaults, overridden by this process's variables.

    Args:
      max_concurrent: See `worker_command`.
    """
    processors = os.cpu_count() or 1
    at_once = min(max_concurrent or processors, _MANY_CLIENTS)
    return {
        "TF_CPP_MIN_LOG_LEVEL": "1",
        # The faster kernels of oneDNN. TensorFlow itself uses them on the newest processors only.
        "TF_ENABLE_ONEDNN_OPTS": "1",
        # The C library gives a program up to eight pools of memory a processor, and each pool keeps the memory freed in it.
        # With one pool for two processors, a round takes as long, and 500 rounds take no more memory than the first hundred.
        "MALLOC_ARENA_MAX": str(max(1, processors // 2)),
        # TensorFlow gives each operation one thread a processor. With several clients at once, these threads would only wait.
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
    """A worker that executors can compute on."""

    def stub(self) -> tff.framework.RemoteExecutorGrpcStub:
        """Returns a connection to the worker.

        Raises:
          WorkerError: If the worker cannot be used.
        """


def worker_executor_factory(
    worker: Optional[AnyWorker] = None,
    default_num_clients: int = 0,
    executor_fn: Callable[[tff.framework.RemoteExecutorStub], tff.framework.RemoteExecutor] = tff.framework.RemoteExecutor,
) -> tff.framework.ExecutorFactory:
    """Returns a factory of executors that compute on `worker`.

    Args:
      worker: The worker to compute on; `None` for the one that all such factories of this Python process share.
      default_num_clients: Number of clients in a computation whose arguments do not determine it.
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
    """Compiles `computation` for a worker. Secure sums become plain sums.

    It does what TFF's native compiler does, except that it leaves out Grappler, TensorFlow's optimizer of graphs. Grappler takes
    four fifths of a first round whose graphs encode, and no later round is faster for it.
    """
    simulated = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    desugared, _ = tff.tensorflow.replace_intrinsics_with_bodies(simulated.to_building_block())
    return tff.backends.native.transform_to_native_form(tff.framework.ConcreteComputation.from_building_block(desugared))


def create_context(
    executor_factory: tff.framework.ExecutorFactory, compiler_fn: Optional[Callable] = compile_native
) -> tff.framework.SyncExecutionContext:
    """Returns TFF's synchronous context over `executor_factory`, by default compiled by `compile_native`.

    Secure sums are simulated: results and messages are those of a plain sum, and the protocol is left out.
    """
    return tff.framework.SyncExecutionContext(
        executor_fn=executor_factory,
        compiler_fn=compiler_fn,
        transform_args=tff.tensorflow.transform_args,
        transform_result=tff.tensorflow.transform_result,
    )


def set_default_context() -> None:
    """Makes TFF compute on this process's shared worker instead of a worker that TFF would leave running."""
    tff.framework.set_default_context(create_context(worker_executor_factory()))
