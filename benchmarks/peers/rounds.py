"""What a peer is told, and what it answers. Needs NumPy and nothing else, since it runs in every peer's own environment.

A peer is a process with the folder of a task as its argument:

    task.json       the experiment's settings, the clients of a round and the number of rounds
    initial.npz     the model's initial weights, in the order and shapes that Keras has them
    CLIENT.npz      a client's inputs and labels; keyword spotting reads the clips from the store instead, as tff_kit does

When it is ready it writes a line with its version to standard output. Then it reads one line of JSON after the other from
standard input, does what it says, and writes another line. It ends with its input.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np

Clients = list[tuple[str, int]]


class Task:
    """What is trained on which examples.

    Attributes:
      name: "emnist" or "kws".
      settings: Of the experiment, by name.
      clients: How many clients a round has.
      rounds: How many rounds there will be.
      initial_weights: Of the model, as Keras has them.
    """

    def __init__(self, folder: str):
        self._folder = pathlib.Path(folder)
        described = json.loads((self._folder / "task.json").read_text())
        self.name: str = described["task"]
        self.settings: dict[str, Any] = described["settings"]
        self.clients: int = described["clients"]
        self.rounds: int = described["rounds"]
        with np.load(self._folder / "initial.npz") as arrays:
            self.initial_weights = [arrays[name] for name in arrays.files]

    def examples(self, client: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the inputs and int32 labels of what a client trains on in a round, in random order.

        Images are float32 [n, 28, 28, 1], embeddings are float16 [n, positions, width], of which incomplete batches are left out.
        """
        if self.name == "emnist":
            with np.load(self._folder / f"{client}.npz") as arrays:
                inputs, labels = arrays["inputs"], arrays["labels"]
            order = np.random.default_rng(seed).permutation(len(labels))
            return inputs[order], labels[order]
        clips = pathlib.Path(self.settings["data"]) / "clients" / client
        labels = np.fromfile(f"{clips}.labels", np.uint8).astype(np.int32)
        whole = len(labels) // self.settings["batch_size"] * self.settings["batch_size"]
        order = np.random.default_rng(seed).permutation(len(labels))[:whole]
        inputs = [np.fromfile(clips / f"{clip:06d}", np.float16).reshape(-1, 384) for clip in order]
        return np.stack(inputs), labels[order]

    def batches(self, client: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields a client's examples in batches, inputs as float32."""
        inputs, labels = self.examples(client, seed)
        size = self.settings["batch_size"]
        for start in range(0, len(labels), size):
            yield inputs[start : start + size].astype(np.float32), labels[start : start + size]


def open_task() -> Task:
    """Returns the task in the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit(f"error: Expected the folder of a task and nothing else, found {sys.argv[1:]}.")
    return Task(sys.argv[1])


def rounds(version: str, weights: Callable[[], list[np.ndarray]]) -> Iterator[Clients]:
    """Yields the clients of each round; asking for the next round says that the last one is done.

    Args:
      version: Of what trains, to be shown.
      weights: Returns the weights after the rounds so far, as Keras has them.
    """
    # What libraries print goes where errors go.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(json.dumps(version) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        if "save" in request:
            np.savez(request["save"], *weights())
        else:
            yield [tuple(client) for client in request["clients"]]
        answers.write('"done"\n')
