"""Runs TensorFlow Federated's computations on one or several workers, and counts what crosses between server and clients."""

from tff_kit.requirements import require_tff

require_tff()

from tff_kit.runtime.worker import (
    AnyWorker,
    Worker,
    WorkerError,
    compile_native,
    create_context,
    open_channel,
    serve,
    set_default_context,
    worker_environment,
    worker_executor_factory,
)

__all__ = [
    "AnyWorker",
    "Worker",
    "WorkerError",
    "compile_native",
    "create_context",
    "open_channel",
    "serve",
    "set_default_context",
    "worker_environment",
    "worker_executor_factory",
]

# As TFF does when it is imported; from here on with a worker that ends with this process.
set_default_context()
