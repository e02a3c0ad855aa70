"""The settings of segmentation, with federation and without."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf
from typing_extensions import Literal

from tff_kit.experiment import CentralizedTraining, Experiment, check_numbers
from tff_kit.metrics import Metric
from tff_kit.tasks.segmentation import weights
from tff_kit.tasks.segmentation.data import SegmentationDataset, load, open_images
from tff_kit.tasks.segmentation.decoder import create_decoder
from tff_kit.tasks.segmentation.measures import METRICS, DiceCrossEntropy

DEMO = "demo"


class Segmentation(Experiment):
    """SAM's mask decoder on embeddings of clients' images, as in the text on federated SAM."""

    clients: int = 2
    """Clients sampled in each round, without replacement. The text has at least two."""
    client_optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer of the clients, as in Hugging Face's example of fine-tuning SAM."""
    client_lr: float = 1e-5
    """Learning rate of the clients, as in that example. A decoder that nobody trained before needs about 1e-3."""
    batch_size: int = 2
    """Objects in a client's training batch, as in that example."""
    eval_every: int = 1
    """Rounds between evaluations on the held-out images, and between checkpoints. There are few rounds."""
    data: str = DEMO
    """Folder of embeddings that `python -m tff_kit embed sam` made; or demo, for digits on made-up textures."""
    sam: str = ""
    """The SAM that the embeddings must be of, as in embed: tiny, an id of the Hugging Face hub, or a folder. Empty for any; for
    demo, tiny."""
    decoder: str = ""
    """safetensors of a mask decoder to start from. Empty for the SAM's own; tiny has none, and draws it from the seed."""
    threshold: int = 1000
    """A variable with more elements than this is large. The decoder has many matrices; all biases but two have fewer elements."""
    jitter: int = 20
    """How far the sides of a box are moved outwards: 0 to JITTER - 1 of 256ths of the image, drawn anew each time. As in Hugging
    Face's example, whose images have 256 pixels."""

    task = "sam"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_0=("jitter",))

    def encoder_sha256(self) -> str:
        """Returns the SHA-256 of the encoder that the data's embeddings are of."""
        return open_images(_find(self.data, self.sam))[0].weights_sha256

    def load_data(self) -> SegmentationDataset:
        return _load(self.data, self.sam, self.batch_size, self.local_epochs, self.jitter)

    def build_model(self) -> tf.keras.Model:
        return _build_model(self.data, self.sam, self.decoder, self.seed)

    def build_loss(self) -> tf.keras.losses.Loss:
        return DiceCrossEntropy()

    def metrics(self) -> Sequence[Metric]:
        return METRICS


class CentralizedSegmentation(CentralizedTraining):
    """The same decoder, trained on all clients' images together without federation, for comparison."""

    epochs: int = 2
    """Epochs of training. The decoder that was best on the validation images is kept."""
    learning_rate: float = 1e-5
    """Adam's learning rate, as in Hugging Face's example. A decoder that nobody trained before needs about 1e-3."""
    batch_size: int = 2
    """Objects in a training batch, as in Hugging Face's example."""
    seed: int = 0
    """Seed of the initial weights, the order of objects and the boxes."""
    checkpoint: Optional[str] = None
    """A decoder to start from: the model.keras of a run, or safetensors in Hugging Face's names."""
    data: str = DEMO
    """Folder of embeddings that `python -m tff_kit embed sam` made; or demo, for digits on made-up textures."""
    sam: str = ""
    """The SAM that the embeddings must be of, as in embed. Empty for any; for demo, tiny."""
    jitter: int = 20
    """How far the sides of a box are moved outwards, in 256ths of the image."""

    task = "sam-centralized"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_0=("jitter",))

    def load_data(self) -> SegmentationDataset:
        return _load(self.data, self.sam, self.batch_size, 1, self.jitter)

    def build_model(self) -> tf.keras.Model:
        return _build_model(self.data, self.sam, "", self.seed)

    def build_loss(self) -> tf.keras.losses.Loss:
        return DiceCrossEntropy()

    def metrics(self) -> Sequence[Metric]:
        return METRICS

    def load_weights(self, model: tf.keras.Model, path: pathlib.Path) -> None:
        if path.suffix == ".safetensors":
            weights.set_decoder(model, path, open_images(_find(self.data, self.sam))[0].weights_sha256)
        else:
            super().load_weights(model, path)

    def export(self, model: tf.keras.Model, folder: pathlib.Path) -> None:
        store, _ = open_images(_find(self.data, self.sam))
        weights.save_decoder(model, folder / "model.safetensors", store.weights_sha256)


def _find(data: str, sam: str) -> pathlib.Path:
    if data != DEMO:
        return pathlib.Path(data)
    from tff_kit.tasks.segmentation import embed  # It needs Pillow and transformers, which a device has not.

    return embed.demo_store(sam or embed.TINY)


def _load(data: str, sam: str, batch_size: int, local_epochs: int, jitter: int) -> SegmentationDataset:
    return load(_find(data, sam), batch_size, local_epochs, jitter, _encoder_of(sam) if sam and data != DEMO else None)


def _encoder_of(sam: str) -> str:
    from tff_kit.tasks.segmentation.sam import load_sam

    return load_sam(sam).encoder.weights_sha256


def _build_model(data: str, sam: str, decoder: str, seed: int) -> tf.keras.Model:
    store, of_store = open_images(_find(data, sam))
    initial = dict(of_store.decoder)
    if decoder:
        initial = weights.load_decoder(pathlib.Path(decoder), of_store.sizes, store.weights_sha256)
    return create_decoder(of_store.sizes, of_store.prompts, seed, initial or None)
