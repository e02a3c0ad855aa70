"""The sizing executor: the bits that cross between the server and its clients.

A computation compiled for TFF's runtime is one flat list of calls. Data goes down to the clients in a `federated_broadcast`. It
comes back in an aggregation: `federated_aggregate`, and the sums, means, extrema and secure sums that TFF reduces to it. So the
types of these calls' arguments tell what crosses. A type may leave a size open: a dimension known only at run time, or the
length of a string. The worker then counts where the tensor is and returns a number. No tensor is moved to be measured.

A tensor counts its number of elements times the bits of its dtype (8 for a bool). A string counts its bytes times 8. Each
counts once for every client.

Not counted:

* the clients' own data and the ids that select it;
* constants that are part of the program (`tff.federated_value` at clients), and the program itself;
* what a network adds: headers, encryption, retries, the protocol of a secure sum;
* slices of a `tff.federated_select` and datasets that cross. A computation that has them logs a warning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import cachetools
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.compiler import building_block_factory  # The public API cannot build calls.

from tff_kit.runtime.worker import AnyWorker, Worker, create_context, worker_executor_factory

_logger = logging.getLogger(__name__)

_BROADCASTS = frozenset({"federated_broadcast"})
_AGGREGATIONS = frozenset(
    {
        "federated_aggregate",
        "federated_max",
        "federated_mean",
        "federated_min",
        "federated_secure_modular_sum",
        "federated_secure_sum",
        "federated_secure_sum_bitwidth",
        "federated_sum",
        "federated_weighted_mean",
    }
)
_UNCOUNTED = frozenset({"federated_select", "federated_secure_select"})

History = dict[tuple[tuple[str, int], ...], list[list[Any]]]


@dataclasses.dataclass(frozen=True)
class _Crossing:
    """One broadcast or aggregation: the tensors of one client, and their number of elements if the types tell it."""

    up: bool
    dtypes: tuple[tf.DType, ...]
    static_counts: Optional[np.ndarray]  # int64 [tensors], or None: counted at run time.


@dataclasses.dataclass(frozen=True)
class _Record:
    """What crossed in one call: for each crossing, an int64 array [clients, tensors] of elements (or bytes of a string)."""

    num_clients: int
    crossings: tuple[_Crossing, ...]
    counts: tuple[np.ndarray, ...]

    def bits(self, up: bool) -> int:
        return sum(
            int((counts * _bits_per_element(crossing.dtypes)).sum())
            for crossing, counts in zip(self.crossings, self.counts)
            if crossing.up is up
        )

    def entries(self, up: bool) -> list[list[Any]]:
        return [
            [int(count), dtype]
            for crossing, counts in zip(self.crossings, self.counts)
            if crossing.up is up
            for dtype, column in zip(crossing.dtypes, counts.T)
            for count in column
        ]


def _bits_per_element(dtypes: tuple[tf.DType, ...]) -> np.ndarray:
    return np.array([8 if dtype == tf.string else dtype.size * 8 for dtype in dtypes], np.int64)


@dataclasses.dataclass(frozen=True)
class SizeInfo:
    """The communication of all calls so far, with the fields of TensorFlow Federated's former `SizeInfo`.

    Attributes:
      broadcast_bits: Bits from the server to all clients: a running total with one entry for each call.
      aggregate_bits: Bits from all clients to the server: a running total with one entry for each call.
    """

    broadcast_bits: list[int]
    aggregate_bits: list[int]
    _records: list[_Record] = dataclasses.field(repr=False)

    @functools.cached_property
    def broadcast_history(self) -> History:
        """`[elements, dtype]` of every tensor that a client received, by cardinalities: `{(("CLIENTS", 10),): ...}`."""
        return self._history(up=False)

    @functools.cached_property
    def aggregate_history(self) -> History:
        """`[elements, dtype]` of every tensor that a client sent, by cardinalities. A string's elements are its bytes."""
        return self._history(up=True)

    def _history(self, up: bool) -> History:
        history: History = {}
        for record in self._records:
            history.setdefault((("CLIENTS", record.num_clients),), []).extend(record.entries(up))
        return history


class _Ledger:
    """The records of all executors of a factory."""

    def __init__(self):
        self._lock = threading.Lock()
        self._records: list[_Record] = []
        self._last_call: Optional[_Record] = None
        self._broadcast_bits: list[int] = []
        self._aggregate_bits: list[int] = []

    def add(self, record: _Record) -> None:
        with self._lock:
            if record.crossings:
                self._records.append(record)
            if record.num_clients:
                self._last_call = record
            for totals, up in ((self._broadcast_bits, False), (self._aggregate_bits, True)):
                totals.append((totals[-1] if totals else 0) + record.bits(up))

    def add_receivers(self, clients: int) -> None:
        if self._last_call is None:
            raise ValueError("Expected a call whose broadcast more clients received, found none yet.")
        crossed = zip(self._last_call.crossings, self._last_call.counts)
        for crossing, counts in [(crossing, counts) for crossing, counts in crossed if not crossing.up]:
            self.add_received(clients, crossing, counts[0])

    def add_received(self, clients: int, crossing: _Crossing, counts: np.ndarray) -> None:
        record = _Record(clients, (crossing,), (np.broadcast_to(counts, (clients, len(counts))),))
        with self._lock:
            self._records.append(record)
            self._broadcast_bits[-1] += record.bits(up=False)

    @contextlib.contextmanager
    def one_call(self) -> Iterator[None]:
        records, calls = len(self._records), len(self._broadcast_bits)
        try:
            yield
        except BaseException:
            del self._records[records:], self._broadcast_bits[calls:], self._aggregate_bits[calls:]
            raise
        del self._broadcast_bits[calls:-1], self._aggregate_bits[calls:-1]

    def size_info(self) -> SizeInfo:
        return SizeInfo(list(self._broadcast_bits), list(self._aggregate_bits), list(self._records))


@dataclasses.dataclass(frozen=True)
class _Instrumented:
    """A computation that returns `<result, <counts of each crossing whose size the types leave open>>`, or just its result."""

    computation: tff.framework.ConcreteComputation
    crossings: tuple[_Crossing, ...]

    @property
    def counts_at_run_time(self) -> bool:
        return any(crossing.static_counts is None for crossing in self.crossings)


class SizingExecutor(tff.framework.RemoteExecutor):
    """A remote executor that records what crosses in each call whose result is fetched."""

    def __init__(self, stub: tff.framework.RemoteExecutorStub, ledger: _Ledger, instrument):
        super().__init__(stub)
        self._ledger = ledger
        self._instrument = instrument
        self._num_clients = 0
        self._functions: dict[int, _Instrumented] = {}
        self._results: dict[int, _Record] = {}

    def set_cardinalities(self, cardinalities) -> None:
        self._num_clients = cardinalities.get(tff.CLIENTS, 0)
        super().set_cardinalities(cardinalities)

    async def create_value(self, value, type_spec=None):
        if not isinstance(value, tff.framework.ConcreteComputation):
            return await super().create_value(value, type_spec)
        instrumented = self._instrument(value)
        function = await super().create_value(instrumented.computation, instrumented.computation.type_signature)
        self._functions[function.reference.id] = instrumented
        return function

    async def create_call(self, comp, arg=None):
        call = await super().create_call(comp, arg)
        instrumented = self._functions.pop(comp.reference.id, None)
        if instrumented is None:
            return call
        counted: list[np.ndarray] = []
        if instrumented.counts_at_run_time:
            counted = list(tff.structure.flatten(await (await self.create_selection(call, 1)).compute()))
            call = await self.create_selection(call, 0)
        self._results[call.reference.id] = _record(instrumented.crossings, counted, self._num_clients)
        return call

    async def _compute(self, value_ref, type_spec):
        # Recorded here and not in the call, so that a call that fails and runs again counts once.
        value = await super()._compute(value_ref, type_spec)
        record = self._results.pop(value_ref.id, None)
        if record is not None:
            self._ledger.add(record)
        return value


def _record(crossings: tuple[_Crossing, ...], counted: list[np.ndarray], num_clients: int) -> _Record:
    at_run_time = iter(counted)
    counts = tuple(
        np.broadcast_to(
            next(at_run_time) if crossing.static_counts is None else crossing.static_counts,
            (num_clients, len(crossing.dtypes)),
        )
        for crossing in crossings
    )
    return _Record(num_clients, crossings, counts)


class SizingExecutorFactory(tff.framework.ExecutorFactory):
    """Creates executors on one worker and adds up what crosses in all of them.

    Args:
      worker: The worker to compute on; `None` for the one that all factories of this Python process share.
      default_num_clients: Number of clients in a computation whose arguments do not determine it.
    """

    def __init__(self, worker: Optional[AnyWorker] = None, default_num_clients: int = 0):
        self._ledger = _Ledger()
        # Keyed by identity: a context compiles a computation once and passes the same object in every call.
        self._instrumented = cachetools.LRUCache(maxsize=100)
        self._lock = threading.Lock()
        self._default_num_clients = default_num_clients
        self._factory = self.for_worker(worker)

    def for_worker(self, worker: Optional[AnyWorker]) -> tff.framework.ExecutorFactory:
        """Returns a factory of executors on another worker. Their communication counts in the same totals."""
        return worker_executor_factory(
            worker,
            self._default_num_clients,
            executor_fn=lambda stub: SizingExecutor(stub, self._ledger, self._instrument),
        )

    def one_call(self) -> contextlib.AbstractContextManager:
        """Returns a context manager in which everything counts as one call. If the call fails, nothing counts."""
        return self._ledger.one_call()

    def create_executor(self, cardinalities):
        return self._factory.create_executor(cardinalities)

    def clean_up_executor(self, cardinalities) -> None:
        self._factory.clean_up_executor(cardinalities)

    def add_receivers(self, clients: int) -> None:
        """Counts the last call's broadcast for `clients` more clients, which received it and sent nothing."""
        if clients:
            self._ledger.add_receivers(clients)

    def add_received(self, clients: int, tensors: Iterable[np.ndarray]) -> None:
        """Counts, with the last call, numeric tensors that so many clients received beside it, such as the initial weights."""
        arrays = list(map(np.asarray, tensors))
        counts = np.array([array.size for array in arrays], np.int64)
        self._ledger.add_received(clients, _Crossing(False, tuple(tf.as_dtype(array.dtype) for array in arrays), counts), counts)

    def get_size_info(self) -> SizeInfo:
        """Returns the communication of all calls so far."""
        return self._ledger.size_info()

    def _instrument(self, computation: tff.framework.ConcreteComputation) -> _Instrumented:
        with self._lock:
            cached = self._instrumented.get(id(computation))
            if cached is None:
                cached = (computation, _instrument(computation))  # Keeps the computation alive, so that its id is not reused.
                self._instrumented[id(computation)] = cached
        return cached[1]


def sizing_executor_factory(worker: Optional[Worker] = None, default_num_clients: int = 0) -> SizingExecutorFactory:
    """Returns an executor factory for `tff.framework.SyncExecutionContext` that measures communication.

    Its `get_size_info()` returns a `SizeInfo` with running totals over all clients, and with each tensor that crossed. The
    module's docstring says what counts. `set_sizing_environment` also makes the context.

    Args:
      worker: The worker to compute on; `None` for the one that all factories of this Python process share.
      default_num_clients: Number of clients in a computation whose arguments do not determine it.
    """
    return SizingExecutorFactory(worker, default_num_clients)


def set_sizing_environment(worker: Optional[Worker] = None) -> SizingExecutorFactory:
    """Makes TFF's default context one that measures communication, and returns its factory.

    Example:
        ```python
        sizes = tff_kit.set_sizing_environment()
        state, metrics = process.next(process.initialize(), client_datasets)
        print(tff_kit.format_size(sizes.get_size_info().broadcast_bits[-1]))
        ```

    Args:
      worker: The worker to compute on; `None` for the one that all factories of this Python process share.

    Returns:
      The factory. Its `get_size_info()` returns the communication since this call.
    """
    factory = sizing_executor_factory(worker)
    tff.framework.set_default_context(create_context(factory))
    return factory


def _instrument(computation: tff.framework.ConcreteComputation) -> _Instrumented:
    """Finds what crosses in `computation`, and adds outputs that count the sizes that its types leave open."""
    function = tff.framework.to_call_dominant(computation.to_building_block())
    block = function.result if isinstance(function, tff.framework.Lambda) else function
    if not isinstance(block, tff.framework.Block):
        return _Instrumented(computation, ())
    crossings, counters = [], []
    for _, call in block.locals:
        uri = _intrinsic_uri(call)
        if uri not in _BROADCASTS | _AGGREGATIONS:
            if uri in _UNCOUNTED:
                _logger.warning("The slices that a %s sends are not counted.", uri)
            continue
        value = _sent_value(call)
        crossing = _crossing(value.type_signature.member, up=uri in _AGGREGATIONS)
        crossings.append(crossing)
        if crossing.static_counts is None:
            counters.append(_counter(value, crossing.up))
    if not counters:
        return _Instrumented(computation, tuple(crossings))
    names = [f"tff_kit_sizing_{i}" for i in range(len(counters))]
    counts = [tff.framework.Reference(name, call.type_signature) for name, call in zip(names, counters)]
    counting = tff.framework.Block(
        [*block.locals, *zip(names, counters)],
        tff.framework.Struct([block.result, tff.framework.Struct(counts)]),
    )
    return _Instrumented(_replace_result(computation, function, counting), tuple(crossings))


def _intrinsic_uri(call: tff.framework.ComputationBuildingBlock) -> Optional[str]:
    if isinstance(call, tff.framework.Call) and isinstance(call.function, tff.framework.Intrinsic):
        return call.function.uri
    return None


def _sent_value(call: tff.framework.Call) -> tff.framework.ComputationBuildingBlock:
    argument = call.argument
    if isinstance(argument.type_signature, tff.FederatedType):
        return argument
    # An aggregation's first argument is the clients' value. The second argument of a weighted mean, the weights, crosses too.
    if call.function.uri == "federated_weighted_mean":
        return building_block_factory.create_federated_zip(argument)
    return argument[0] if isinstance(argument, tff.framework.Struct) else tff.framework.Selection(argument, index=0)


def _crossing(member: tff.Type, up: bool) -> _Crossing:
    leaves = _tensor_types(member)
    counts = [leaf.shape and tf.TensorShape(leaf.shape).num_elements() if leaf.shape != () else 1 for leaf in leaves]
    dtypes = tuple(tf.as_dtype(leaf.dtype) if leaf.dtype != np.str_ else tf.string for leaf in leaves)
    static = None not in counts and tf.string not in dtypes
    return _Crossing(up, dtypes, np.array(counts, np.int64) if static else None)


def _tensor_types(member: tff.Type) -> list[tff.TensorType]:
    leaves = tff.structure.flatten(member) if isinstance(member, tff.StructType) else [member]
    tensors = [leaf for leaf in leaves if isinstance(leaf, tff.TensorType)]
    if len(tensors) < len(leaves):
        _logger.warning("A dataset that crosses between server and clients is not counted.")
    return tensors


def _counter(value: tff.framework.ComputationBuildingBlock, up: bool) -> tff.framework.ComputationBuildingBlock:
    """Returns a call that counts the elements of `value`'s tensors: int64 [tensors], or [clients, tensors] for clients."""
    member = value.type_signature.member

    @tff.tensorflow.computation(member)
    def count(tensors):
        flat = tff.structure.flatten(tff.structure.from_container([tensors], recursive=True))
        return tf.stack([_num_elements(tensor) for tensor in flat if tf.is_tensor(tensor)])

    counted = building_block_factory.create_federated_map_or_apply(count.to_building_block(), value)
    return _collect(counted) if up else counted


def _num_elements(tensor: tf.Tensor) -> tf.Tensor:
    if tensor.dtype == tf.string:
        return tf.reduce_sum(tf.cast(tf.strings.length(tensor, unit="BYTE"), tf.int64))
    return tf.size(tensor, out_type=tf.int64)


def _collect(counts: tff.framework.ComputationBuildingBlock) -> tff.framework.ComputationBuildingBlock:
    (tensors,) = counts.type_signature.member.shape
    rows = tff.TensorType(np.int64, [None, tensors])
    blocks = [
        tff.tensorflow.computation(lambda: tf.zeros([0, tensors], tf.int64)),
        tff.tensorflow.computation(
            lambda rows, row: tf.concat([rows, row[tf.newaxis]], axis=0), (rows, counts.type_signature.member)
        ),
        tff.tensorflow.computation(lambda first, second: tf.concat([first, second], axis=0), (rows, rows)),
        tff.tensorflow.computation(lambda rows: rows, rows),
    ]
    zero, accumulate, merge, report = (block.to_building_block() for block in blocks)
    return building_block_factory.create_federated_aggregate(counts, tff.framework.Call(zero), accumulate, merge, report)


def _replace_result(computation, function, block) -> tff.framework.ConcreteComputation:
    if isinstance(function, tff.framework.Lambda):
        block = tff.framework.Lambda(function.parameter_name, function.parameter_type, block)
    return tff.framework.ConcreteComputation(
        computation_proto=tff.framework.to_call_dominant(block).proto,
        context_stack=tff.framework.get_context_stack(),
    )
