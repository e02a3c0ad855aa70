"""Flower's simulation: a ServerApp with its FedAvg, and a ClientApp in PyTorch on its Ray backend.

    .peers/flower/bin/python -m benchmarks.peers.flower_simulation FOLDER

As Flower's tutorials write them, but for three things: a round's clients are told to the nodes, in the configuration of the
round, a client that fails ends the run, and the function that would test the model after a round waits for the next.
"""

from __future__ import annotations

import os

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")  # Before they are imported.

from collections.abc import Iterable
from importlib import metadata

import torch
from flwr import simulation
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.peers import rounds, torch_model

_RESOURCES = {"num_cpus": 1, "num_gpus": 0.0}  # As many clients at once as there are cores, each with one thread.


class _ToldClients(FedAvg):
    """FedAvg on the clients that it is told."""

    def __init__(self, clients: int):
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.clients: rounds.Clients = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        config["clients"] = [client for client, _ in self.clients]
        config["seeds"] = [seed for _, seed in self.clients]
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        replies = list(replies)
        if len(replies) != len(self.clients) or any(reply.has_error() for reply in replies):
            raise RuntimeError(f"Expected updates of {len(self.clients)} clients in round {server_round}, found {replies}.")
        return super().aggregate_train(server_round, replies)


def build_client_app(task: rounds.Task) -> ClientApp:
    """Returns what a node does: train the client that its number in the round's list says."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content["config"]
        number = context.node_config["partition-id"]
        model = torch_model.build_model(task)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        examples = torch_model.train_client(model, task, config["clients"][number], config["seeds"][number])
        metrics = MetricRecord({"num-examples": examples})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app


def build_server_app(task: rounds.Task) -> ServerApp:
    """Returns what trains the rounds that it is told to."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = _ToldClients(task.clients)
        newest: list[ArrayRecord] = []
        version = f"flwr {metadata.version('flwr')}, ray {metadata.version('ray')}, torch {torch.__version__}"
        told = rounds.rounds(version, lambda: torch_model.keras_weights(task, newest[-1].to_torch_state_dict()))

        def wait_for_next_round(server_round: int, arrays: ArrayRecord) -> None:
            newest[:] = [arrays]
            strategy.clients = next(told, [])

        initial = ArrayRecord(torch_model.build_model(task).state_dict())
        strategy.start(grid, initial, num_rounds=task.rounds, evaluate_fn=wait_for_next_round)

    return app


def main() -> None:
    """Trains what it is told to."""
    task = rounds.open_task()
    simulation.run_simulation(
        build_server_app(task),
        build_client_app(task),
        num_supernodes=task.clients,
        backend_config={"client_resources": _RESOURCES},
    )


if __name__ == "__main__":
    main()
