"""Several workers for one computation: they share the clients of a round.

TFF's mergeable execution context cuts a computation before and after its aggregation. Every worker aggregates its part of the
clients, and the context merges the parts and continues with the sum. This module adds workers that may fail:

* If a worker is lost, another worker computes the whole part again. The lost worker's result is dropped, so no client counts
  twice.
* A worker that answers again takes part from the next computation on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any, Callable, Optional, Protocol, Union

import grpc
import tensorflow as tf
import tensorflow_federated as tff

from tff_kit.runtime import sizing
from tff_kit.runtime.worker import (
    AnyWorker,
    Worker,
    WorkerError,
    check_max_concurrent,
    compile_native,
    create_context,
    open_channel,
    worker_executor_factory,
)

ExecutorFactoryFn = Callable[[AnyWorker], tff.framework.ExecutorFactory]
_ASK_SECONDS = 1.0  # Between two checks that a computing worker is alive.
_COME_BACK_SECONDS = 1.0  # A lost worker has this long to answer again.
_AT_SERVER = ("federated_apply", "federated_eval_at_server")
_DRAWS = re.compile("(Stateful)?(Random(?!Dataset)|Uniform|StandardNormal|TruncatedNormal|Multinomial|ParameterizedTruncated)")


@dataclasses.dataclass(frozen=True)
class Machines:
    """The machines that a training runs on. They are not part of the experiment: a run may resume on other machines."""

    workers: str = ""
    """HOST:PORT,HOST:PORT of the workers that share the clients of a round. Start each with `python -m tff_kit worker`. The
    default is one worker on this machine that starts and ends with the training."""
    worker_timeout: float = 60.0
    """Seconds within which a worker must answer that it is alive, even while it computes. A run without any worker ends after
    this time."""
    credential: Optional[str] = None
    """PEM file with the key and certificate that the workers were started with."""
    clients_at_a_time: int = 50
    """Clients that a worker takes at a time. It holds their tensors until they are added up, so fewer clients need less
    memory."""
    max_concurrent: Optional[int] = None
    """Clients that this machine's worker trains at once. The default is its number of processors. Workers in --workers have a
    setting of their own."""

    def __post_init__(self):
        for address in self.addresses:
            if not re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:\[\]]+):\d{1,5}", address):
                raise WorkerError(f"Expected --workers to be HOST:PORT,HOST:PORT, found {address!r}.")
        if self.worker_timeout <= 0:
            raise WorkerError(f"Expected --worker-timeout to be more than 0, found {self.worker_timeout:g}.")
        if self.clients_at_a_time < 1:
            raise WorkerError(f"Expected --clients-at-a-time to be at least 1, found {self.clients_at_a_time}.")
        check_max_concurrent(self.max_concurrent)
        if self.max_concurrent is not None and self.addresses:
            raise WorkerError(
                "Expected --max-concurrent without --workers, found both: it is set where a worker is started, by python -m "
                "tff_kit worker --max-concurrent."
            )
        if self.credential is not None and not pathlib.Path(self.credential).is_file():
            raise WorkerError(f"Expected a PEM file at --credential {self.credential}, found none.")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The workers' addresses."""
        return tuple(address.strip() for address in self.workers.split(",")) if self.workers.strip() else ()


ONE_MACHINE = Machines()


@contextlib.contextmanager
def open_context(
    machines: Machines,
    clients: int,
    log: Optional[pathlib.Path] = None,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[tff.framework.SyncContext, sizing.SizingExecutorFactory]]:
    """Opens an execution context on `machines`.

    Args:
      machines: The machines to compute on.
      clients: Number of clients in a round.
      log: File to which the output of this machine's worker is appended.
      report: Called with a sentence when a worker is lost or answers again.

    Yields:
      The context, and the factory that counts what crosses in it.

    Raises:
      tff_kit.runtime.WorkerError: If a worker does not answer.
    """
    parts = math.ceil(clients / machines.clients_at_a_time)
    own = Worker(log, machines.max_concurrent)
    sizes = sizing.sizing_executor_factory(own)
    remote = [RemoteWorker(address, machines.credential, machines.worker_timeout) for address in machines.addresses]
    try:
        for worker in remote:
            worker.wait_until_ready()
        if not remote:
            own.stub()
            if not own.isolated:
                report("This system allows no network namespace. So TFF's worker listens on all addresses of this machine.")
        if not remote and parts == 1:
            yield create_context(sizes), sizes
            return
        workers: list[ClusterWorker] = [*remote] if remote else [_OwnWorker(own)]
        context = ClusterContext(workers, sizes.for_worker, sizes.one_call, machines.worker_timeout, report, parts)
        with contextlib.closing(context):
            yield context, sizes
    finally:
        for worker in remote:
            worker.disconnect()
        own.stop()


class ClusterWorker(AnyWorker, Protocol):
    """A worker that can be lost and come back."""

    address: str

    def connect(self) -> None:
        """Opens a new connection."""

    def disconnect(self) -> None:
        """Closes the connection. Calls that wait for the worker fail."""

    def answers(self, timeout: Optional[float] = None) -> bool:
        """Returns whether the worker answers within `timeout` seconds."""


class _OwnWorker:
    """The training's own worker, which restarts by itself."""

    address = "on this machine"

    def __init__(self, worker: Worker):
        self._worker = worker
        self.stub = worker.stub

    def connect(self) -> None:
        pass

    def disconnect(self) -> None:
        pass

    def answers(self, timeout: Optional[float] = None) -> bool:
        del timeout
        return self._worker.pid is not None


class RemoteWorker:
    """A connection to a worker that was started with `python -m tff_kit worker`.

    Args:
      address: `host:port`.
      credential: PEM file with the worker's key and certificate; `None` for plain text.
      timeout: Seconds within which a live worker answers, even while it computes.
    """

    def __init__(self, address: str, credential: Optional[Union[str, os.PathLike]] = None, timeout: float = 60.0):
        self.address = address
        self._credential = credential
        self._timeout = timeout
        self.connect()

    def connect(self) -> None:
        """Opens a new connection."""
        self._channel = open_channel(self.address, self._credential, self._timeout)
        self._ask = self._channel.unary_unary("/tff_kit/answer")
        self._stub = _Stub(self._channel)

    def disconnect(self) -> None:
        """Closes the connection. Calls that wait for the worker fail."""
        self._channel.close()

    def answers(self, timeout: Optional[float] = None) -> bool:
        """Returns whether the worker answers within `timeout` seconds."""
        return self._why_silent(timeout or self._timeout) is None

    def wait_until_ready(self, timeout: Optional[float] = None) -> None:
        """Waits for the worker to start.

        Raises:
          LostError: If it does not answer in time.
        """
        timeout = timeout or self._timeout
        deadline = time.monotonic() + timeout
        while (why := self._why_silent(max(deadline - time.monotonic(), 0.01))) is not None:
            if time.monotonic() > deadline:
                raise LostError(
                    f"Expected a worker at {self.address}, found none that answers within {timeout:g} s: {why}. Start it "
                    "with `python -m tff_kit worker`, and use the same --credential on both sides, or none on both."
                )
            time.sleep(_ASK_SECONDS / 4)
            self.disconnect()
            self.connect()

    def stub(self) -> tff.framework.RemoteExecutorGrpcStub:
        """Returns the connection for executors.

        Raises:
          LostError: If the worker does not answer.
        """
        if not self.answers():
            raise LostError(f"The worker {self.address} does not answer.")
        return self._stub

    def _why_silent(self, timeout: float) -> Optional[str]:
        try:
            self._ask(b"", timeout=timeout)
        except grpc.RpcError as error:
            # TFF's worker has no health check. An "unknown method" reply is an answer too.
            return None if error.code() is grpc.StatusCode.UNIMPLEMENTED else error.details()
        except ValueError:
            return "the connection was closed"
        return None


class _Stub(tff.framework.RemoteExecutorGrpcStub):
    """A connection that may dispose of values on a lost worker: they are gone with it."""

    def dispose(self, request: Any) -> Any:
        with contextlib.suppress(grpc.RpcError, ValueError):
            return super().dispose(request)

    def dispose_executor(self, request: Any) -> Any:
        with contextlib.suppress(grpc.RpcError, ValueError):
            return super().dispose_executor(request)


class LostError(WorkerError):
    """A worker does not answer any more, or no worker does."""


class _Member:
    """A worker of a cluster. It computes one thing at a time and notices when its worker is lost."""

    def __init__(
        self,
        worker: ClusterWorker,
        executor_factory_fn: ExecutorFactoryFn,
        report: Callable[[str], None],
        threads: futures.Executor,
    ):
        self.worker = worker
        self.lost = False
        self.lock = threading.Lock()  # Held during a computation.
        self._executor_factory_fn = executor_factory_fn
        self._report = report
        self._threads = threads
        self._begin()

    def _begin(self) -> None:
        # `_compile` has compiled the computations already.
        self._context = create_context(self._executor_factory_fn(self.worker), compiler_fn=None)

    async def invoke(self, computation: Any, argument: Any) -> Any:
        # In a thread, since TFF's remote executors block the event loop while they wait for their workers.
        call = asyncio.ensure_future(self._in_thread(self._invoke, computation, argument))
        while not (await asyncio.wait({call}, timeout=_ASK_SECONDS))[0]:
            if not await self._in_thread(self.worker.answers):
                self.worker.disconnect()
        try:
            return call.result()
        except Exception as error:
            if not isinstance(error, LostError) and await self._in_thread(self.worker.answers):
                self._report(f"The worker {self.worker.address} could not compute its clients.")
                raise
            if not self.lost:
                self._report(f"The worker {self.worker.address} does not answer any more; the others compute its clients.")
            self.lost = True
            raise LostError(f"The worker {self.worker.address} was lost.") from error

    async def _in_thread(self, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _invoke(self, computation: Any, argument: Any) -> Any:
        with self.lock:
            return self._context.invoke(computation, argument)

    async def find_again(self) -> None:
        """Reconnects without blocking the event loop."""
        await self._in_thread(self.find_again_now)

    def find_again_now(self) -> None:
        """Reconnects."""
        self.worker.disconnect()
        self.worker.connect()
        self._begin()
        if self.worker.answers(_COME_BACK_SECONDS):
            self.lost = False
            self._report(f"The worker {self.worker.address} answers again.")


class _Lane(tff.framework.AsyncContext):
    """One worker in the eyes of TFF's context: a preferred member of the cluster, and the other members if that one is lost."""

    def __init__(self, members: Sequence[_Member], patience: float):
        self._members = members
        self._patience = patience

    async def invoke(self, comp: Any, arg: Any = None) -> Any:
        while True:
            member = await self._choose()
            with contextlib.suppress(LostError):
                return await member.invoke(comp, arg)

    async def _choose(self) -> _Member:
        deadline = time.monotonic() + self._patience
        while True:
            for member in self._members:
                if not member.lost:
                    return member
            if time.monotonic() > deadline:
                addresses = ", ".join(sorted(member.worker.address for member in self._members))
                raise LostError(f"Expected one of the workers {addresses} to answer, but none did for {self._patience:g} s.")
            await asyncio.sleep(_ASK_SECONDS)
            for member in self._members:
                await member.find_again()


class ClusterContext(tff.framework.SyncContext):
    """TFF's mergeable context over workers that may be lost and come back.

    Args:
      workers: The workers to compute on.
      executor_factory_fn: Makes a worker's executor factory, such as the `for_worker` of a sizing executor factory.
      whole_call: Returns a context manager for each call, such as the `one_call` of a sizing executor factory.
      patience: Seconds without any answering worker after which a call fails.
      report: Called with a sentence when a worker is lost or answers again.
      parts: Number of parts into which the clients are divided. The workers take the parts in turn. There are at least as many
        parts as workers.
    """

    def __init__(
        self,
        workers: Sequence[ClusterWorker],
        executor_factory_fn: ExecutorFactoryFn = worker_executor_factory,
        whole_call: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        patience: float = 60.0,
        report: Callable[[str], None] = lambda line: None,
        parts: int = 1,
    ):
        # For each worker, one thread computes and one checks that it is alive.
        self._threads = futures.ThreadPoolExecutor(2 * len(workers), thread_name_prefix="tff-cluster")
        self._members = [_Member(worker, executor_factory_fn, report, self._threads) for worker in workers]
        self._whole_call = whole_call
        # Each lane prefers another member. The next member takes over the work of a lost one.
        lanes = [_Lane(self._members[i:] + self._members[:i], patience) for i in range(len(workers))]
        create = tff.framework.MergeableCompExecutionContext
        self._dividing = create(lanes, compiler_fn=_compile, num_subrounds=max(parts, len(workers)))
        self._undividing = create(lanes[:1], compiler_fn=_compile)

    def invoke(self, comp: Any, arg: Any = None) -> Any:
        """Runs a computation.

        Raises:
          LostError: If no worker answers any more.
        """
        for member in self._members:
            if member.lost:
                member.find_again_now()
        with self._whole_call():
            try:
                return (self._dividing if any(_divided(comp.type_signature.parameter)) else self._undividing).invoke(comp, arg)
            except BaseException as error:
                if not isinstance(error, Exception):  # Ctrl-C, for example, does not wait.
                    self._disconnect()
                for member in self._members:  # When one part fails, other parts may still be running.
                    with member.lock:
                        pass
                raise

    def close(self) -> None:
        """Closes all connections. The workers keep running."""
        self._disconnect()
        self._threads.shutdown(wait=False)

    def _disconnect(self) -> None:
        for member in self._members:
            member.lost = True
            member.worker.disconnect()


def _compile(computation: tff.framework.ConcreteComputation) -> tff.framework.MergeableCompForm:
    """Compiles a computation for the cluster, and its parts for the workers, once for all workers."""
    _check_order(computation.type_signature.parameter)
    simulated = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    form = tff.backends.native.compile_to_mergeable_comp_form(simulated)
    up_to_merge, merge, after_merge = map(compile_native, (form.up_to_merge, form.merge, form.after_merge))
    _check_server_draws_nothing(up_to_merge)
    # Compilers drop Python's containers, such as attrs classes, so the result's type is restored.
    result = tff.FunctionType(form.after_merge.type_signature.parameter, computation.type_signature.result)
    after_merge = tff.framework.ConcreteComputation.with_type(after_merge, result)
    return tff.framework.MergeableCompForm(up_to_merge=up_to_merge, merge=merge, after_merge=after_merge)


def _divided(parameter: Optional[tff.Type]) -> list[bool]:
    """Returns, for each leaf of `parameter`, whether each client has its own value there."""
    if isinstance(parameter, tff.StructType):
        return [leaf for element in parameter.children() for leaf in _divided(element)]
    return [isinstance(parameter, tff.FederatedType) and parameter.placement is tff.CLIENTS and not parameter.all_equal]


def _check_order(parameter: Optional[tff.Type]) -> None:
    """Raises ValueError if TFF's context would give all workers the same clients: it looks at the last argument only."""
    divided = _divided(parameter)
    if any(divided) and not divided[-1]:
        raise ValueError(
            "Expected the clients' values as the last argument, so that they can be divided among the workers; "
            f"found {parameter}. Reorder the arguments, or use one worker."
        )


def _check_server_draws_nothing(up_to_merge: tff.framework.ConcreteComputation) -> None:
    """Raises ValueError if the server draws random numbers: each worker plays the server and would draw different ones."""
    function = tff.framework.to_call_dominant(up_to_merge.to_building_block())
    for _, call in function.result.locals:
        if not isinstance(call.function, tff.framework.Intrinsic) or call.function.uri not in _AT_SERVER:
            continue
        body = call.argument[0] if isinstance(call.argument, tff.framework.Struct) else call.argument
        graph = tf.compat.v1.GraphDef()
        body.proto.tensorflow.graph_def.Unpack(graph)
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            drawn = sorted({node.op for node in nodes if _DRAWS.match(node.op)})
            if drawn:
                raise ValueError(
                    "Expected a server that draws no random numbers before the aggregation, since every worker would draw "
                    f"different ones; found {', '.join(drawn)}. Use one worker, or an encoder that draws from a seed."
                )
