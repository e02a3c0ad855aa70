"""FedJAX's federated averaging, the models in Haiku as its own are.

    .peers/fedjax/bin/python -m benchmarks.peers.fedjax_simulation FOLDER

FedJAX fills a client's last batch up with further examples of the client, so that XLA compiles one size of batch only.
"""

from __future__ import annotations

from importlib import metadata

import fedjax
import haiku as hk
import jax
import numpy as np

from benchmarks.peers import rounds

_EPSILON = 1e-7  # Adam's, as TensorFlow has it.
_MODULES = {"emnist": ("conv2_d", "conv2_d_1", "linear", "linear_1"), "kws": ("linear", "linear_1")}  # Haiku's names.


def _cnn(batch):
    convolutions = [hk.Conv2D(32, 5), jax.nn.relu, hk.MaxPool(2, 2, "SAME"), hk.Conv2D(64, 5), jax.nn.relu]
    dense = [hk.Flatten(), hk.Linear(512), jax.nn.relu, hk.Linear(10)]
    return hk.Sequential([*convolutions, hk.MaxPool(2, 2, "SAME"), *dense])(batch["x"])


def _head(batch):
    mixed = hk.Linear(128)(batch["x"].swapaxes(1, 2)).swapaxes(1, 2)
    return hk.Sequential([jax.nn.relu, hk.Flatten(), hk.Linear(12)])(mixed)


def _from_keras(task: rounds.Task) -> dict[str, dict[str, np.ndarray]]:
    pairs = zip(_MODULES[task.name], task.initial_weights[::2], task.initial_weights[1::2])
    params = {module: {"w": kernel, "b": bias} for module, kernel, bias in pairs}
    if task.name == "kws":
        params["linear"]["w"] = params["linear"]["w"].T
    return params


def _to_keras(task: rounds.Task, params: dict[str, dict[str, jax.Array]]) -> list[np.ndarray]:
    weights = [np.asarray(params[module][name]) for module in _MODULES[task.name] for name in ("w", "b")]
    return [weights[0].T, *weights[1:]] if task.name == "kws" else weights


def main() -> None:
    """Trains what it is told to."""
    task = rounds.open_task()
    settings = task.settings
    model = fedjax.create_model_from_haiku(
        hk.transform({"emnist": _cnn, "kws": _head}[task.name]),
        sample_batch={},  # Of which initial weights would be drawn.
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits),
    )
    adam = settings["client_optimizer"] == "adam"
    rate = settings["client_lr"]
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.adam(rate, eps=_EPSILON) if adam else fedjax.optimizers.sgd(rate),
        fedjax.optimizers.sgd(settings["server_lr"]),
        fedjax.ShuffleRepeatBatchHParams(settings["batch_size"], num_epochs=settings["local_epochs"]),
    )
    state = algorithm.init(_from_keras(task))
    to_float32 = fedjax.BatchPreprocessor([lambda batch: {**batch, "x": batch["x"].astype(np.float32)}])

    def weights() -> list[np.ndarray]:
        return _to_keras(task, state.params)

    for clients in rounds.rounds(f"fedjax {metadata.version('fedjax')}, jax {jax.__version__}", weights):
        datasets = []
        for client, seed in clients:
            inputs, labels = task.examples(client, seed)
            examples = fedjax.ClientDataset({"x": inputs, "y": labels}, to_float32)
            datasets.append((client, examples, jax.random.PRNGKey(seed)))
        state, _ = algorithm.apply(state, datasets)
        jax.block_until_ready(state.params)


if __name__ == "__main__":
    main()
