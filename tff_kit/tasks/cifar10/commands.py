"""The command `plot cifar10`."""

import pathlib

from tff_kit.datasets import partitions as pictures
from tff_kit.tasks.cifar10.data import CLASS_NAMES, client_labels, load


def plot_partitions(
    data: str = "auto", partitions: int = 10, concentration: float = 0.0, seed: int = 0, out: pathlib.Path = pathlib.Path("logs")
) -> None:
    """Draws the pictures of each client, and of each of its classes, as PNG.

    Args:
        data: The data, as in train.
        partitions: Number of clients, as in train.
        concentration: How the classes are shared out, as in train.
        seed: Seed of the sharing out, as in train.
        out: Folder of pictures_per_client.png and classes_per_client.png.
    """
    loaded = load(data, partitions, concentration, seed=seed)
    for name in pictures.plot_partitions(client_labels(loaded), CLASS_NAMES, loaded.name, out, "pictures"):
        print(out / name)
