"""The settings of keyword spotting, with federation and without."""

from __future__ import annotations

import pathlib
from typing import Any, Optional

import tensorflow as tf
from typing_extensions import Literal

from tff_kit.experiment import CentralizedTraining, Experiment, check_numbers
from tff_kit.tasks.keywords import embed, whisper
from tff_kit.tasks.keywords.data import EmbeddingDataset, load
from tff_kit.tasks.keywords.head import create_kws_head, load_safetensors, save_safetensors

Window = Literal["30s", "1s"]


class KeywordSpotting(Experiment):
    """A head on Whisper's embeddings of Speech Commands, as in Flower's Whisper example."""

    clients: int = 21
    """Clients sampled in each round, without replacement. All clients take part if there are fewer. As in Flower's example."""
    client_optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer of the clients, as in Flower's example."""
    client_lr: float = 1e-3
    """Learning rate of the clients, as in Flower's example."""
    batch_size: int = 8
    """Clips in a client's training batch, as in Flower's example. The last, smaller batch is dropped."""
    eval_every: int = 1
    """Rounds between evaluations on the held-out speakers, and between checkpoints. There are few rounds."""
    data: str = "embeddings"
    """Folder of embeddings that `python -m tff_kit embed` made, or demo for synthetic ones."""
    window: Window = "30s"
    """Sound that the embeddings were made of: Whisper's 30 s (1500 positions), or only the clip's 1 s (50 positions)."""
    filters: int = 128
    """Filters of the head's convolution, as in Flower's example. Fewer filters make a smaller head and fewer bits."""
    balanced: bool = False
    """Whether clients draw clips with replacement so that classes are about balanced, as in Flower's example. By default a client
    takes each clip once in a local epoch."""

    task = "kws"
    fewer_clients_will_do = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_1=("filters",))

    def load_data(self) -> EmbeddingDataset:
        return _load_embeddings(self.data, self.batch_size, self.window, self.local_epochs, self.balanced)

    def build_model(self) -> tf.keras.Model:
        return create_kws_head(whisper.positions(self.window), filters=self.filters, seed=self.seed)

    def build_loss(self) -> tf.keras.losses.Loss:
        return _loss()


class CentralizedKeywordSpotting(CentralizedTraining):
    """The same head, trained on all clients' clips together without federation, for comparison."""

    epochs: int = 3
    """Epochs of training. The head that was best on the validation speakers is kept."""
    batch_size: int = 8
    """Clips in a training batch, drawn so that classes are about balanced."""
    seed: int = 0
    """Seed of the initial weights and of the draws of clips."""
    checkpoint: Optional[str] = None
    """A head to start from: the model.keras of a run, or safetensors with the names of the PyTorch module's state_dict."""
    data: str = "embeddings"
    """Folder of embeddings that `python -m tff_kit embed` made, or demo for synthetic ones."""
    window: Window = "30s"
    """Sound that the embeddings were made of: Whisper's 30 s (1500 positions), or only the clip's 1 s (50 positions)."""

    task = "kws-centralized"

    def load_data(self) -> EmbeddingDataset:
        return _load_embeddings(self.data, self.batch_size, self.window)

    def build_model(self) -> tf.keras.Model:
        return create_kws_head(whisper.positions(self.window), seed=self.seed)

    def build_loss(self) -> tf.keras.losses.Loss:
        return _loss()

    def load_weights(self, model: tf.keras.Model, path: pathlib.Path) -> None:
        if path.suffix == ".safetensors":
            load_safetensors(model, path)
        else:
            super().load_weights(model, path)

    def export(self, model: tf.keras.Model, folder: pathlib.Path) -> None:
        save_safetensors(model, folder / "model.safetensors")


def _loss() -> tf.keras.losses.Loss:
    # Of probabilities it would end at 16.1 inside TFF, where Keras no longer sees the softmax, and a clip that the first steps
    # of Adam throw further than that would teach nothing.
    return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _load_embeddings(folder: str, batch_size: int, window: str, *of_clients: Any) -> EmbeddingDataset:
    root = embed.demo(window=window).folder if folder == "demo" else pathlib.Path(folder)
    return load(root, batch_size, window, *of_clients)
