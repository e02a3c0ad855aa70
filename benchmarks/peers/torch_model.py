"""The tasks' models in PyTorch, and what a client does with them."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.peers.rounds import Task

_EPSILON = 1e-7  # Adam's, as TensorFlow has it.


def build_model(task: Task) -> torch.nn.Sequential:
    """Returns the model with the task's initial weights."""
    model = _cnn() if task.name == "emnist" else _head(positions=task.initial_weights[0].shape[1])
    from_keras = (_cnn_from_keras if task.name == "emnist" else _head_from_keras)(task.initial_weights)
    tensors = {name: torch.tensor(np.ascontiguousarray(x)) for name, x in zip(model.state_dict(), from_keras)}
    model.load_state_dict(tensors)
    return model


def keras_weights(task: Task, state: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """Returns a model's weights in the order and shapes that Keras has them."""
    arrays = [tensor.numpy() for tensor in state.values()]
    return (_cnn_to_keras if task.name == "emnist" else _head_to_keras)(arrays)


def train_client(model: torch.nn.Module, task: Task, client: str, seed: int) -> int:
    """Trains `model` on a client's examples of a round; returns how many there were."""
    rate = task.settings["client_lr"]
    adam = task.settings["client_optimizer"] == "adam"
    parameters = model.parameters()
    optimizer = torch.optim.Adam(parameters, rate, eps=_EPSILON) if adam else torch.optim.SGD(parameters, rate)
    loss_fn = torch.nn.CrossEntropyLoss()
    examples = 0
    for inputs, labels in task.batches(client, seed):
        optimizer.zero_grad()
        loss_fn(model(torch.from_numpy(inputs)), torch.from_numpy(labels).long()).backward()
        optimizer.step()
        examples += len(labels)
    return examples


class _ChannelsFirst(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2)


def _cnn() -> torch.nn.Sequential:
    nn = torch.nn
    convolutions = [nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU()]
    dense = [nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(_ChannelsFirst(), *convolutions, nn.MaxPool2d(2), nn.Flatten(), *dense)


def _head(positions: int) -> torch.nn.Sequential:
    nn = torch.nn
    return nn.Sequential(nn.Conv1d(positions, 128, 1), nn.ReLU(), nn.Flatten(1), nn.Linear(128 * 384, 12))


def _cnn_from_keras(weights: list[np.ndarray]) -> list[np.ndarray]:
    first, bias1, second, bias2, hidden, bias3, last, bias4 = weights
    hidden = hidden.reshape(7, 7, 64, 512).transpose(3, 2, 0, 1).reshape(512, 3136)
    return [first.transpose(3, 2, 0, 1), bias1, second.transpose(3, 2, 0, 1), bias2, hidden, bias3, last.T, bias4]


def _cnn_to_keras(weights: list[np.ndarray]) -> list[np.ndarray]:
    first, bias1, second, bias2, hidden, bias3, last, bias4 = weights
    hidden = hidden.reshape(512, 64, 7, 7).transpose(2, 3, 1, 0).reshape(3136, 512)
    return [first.transpose(2, 3, 1, 0), bias1, second.transpose(2, 3, 1, 0), bias2, hidden, bias3, last.T, bias4]


def _head_from_keras(weights: list[np.ndarray]) -> list[np.ndarray]:
    kernel, bias, dense, dense_bias = weights
    return [kernel[:, :, np.newaxis], bias, dense.T, dense_bias]


def _head_to_keras(weights: list[np.ndarray]) -> list[np.ndarray]:
    kernel, bias, dense, dense_bias = weights
    return [kernel[:, :, 0], bias, dense.T, dense_bias]
