"""Federated averaging as a plain loop in PyTorch.

    .peers/flower/bin/python -m benchmarks.peers.torch_loop FOLDER

What training itself costs there, with nothing around it.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from benchmarks.peers import rounds, torch_model


def main() -> None:
    """Trains what it is told to."""
    task = rounds.open_task()
    model = torch_model.build_model(task)
    server = copy.deepcopy(model.state_dict())

    def weights() -> list[np.ndarray]:
        return torch_model.keras_weights(task, server)

    for clients in rounds.rounds(f"torch {torch.__version__}", weights):
        total = {name: torch.zeros_like(x) for name, x in server.items()}
        examples = 0
        for client, seed in clients:
            model.load_state_dict(server)
            trained = torch_model.train_client(model, task, client, seed)
            for name, x in model.state_dict().items():
                total[name].add_(x, alpha=trained)
            examples += trained
        server = {name: x / examples for name, x in total.items()}


if __name__ == "__main__":
    main()
