"""Pictures of how data is spread over clients."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import figure


def plot_partitions(
    client_labels: Mapping[str, np.ndarray], class_names: Sequence[str], title: str, folder: os.PathLike
) -> dict[str, figure.Figure]:
    """Draws the clips of each client and of each of its classes, and saves both as PNG.

    Args:
      client_labels: The labels of each client's clips; a `Store` and a `SpeechCommands` have them.
      class_names: The classes in the order of their labels.
      title: What the data is.
      folder: Where `clips_per_client.png` and `classes_per_client.png` are saved.

    Returns:
      The figures by the names of their files; a notebook shows them.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.array([np.bincount(labels, minlength=len(class_names)) for labels in client_labels.values()])
    figures = {"clips_per_client.png": _clips(counts, title), "classes_per_client.png": _classes(counts, class_names, title)}
    for name, drawn in figures.items():
        drawn.savefig(folder / name, dpi=150)
    return figures


def _clips(counts: np.ndarray, title: str) -> figure.Figure:
    drawn, axes = _axes(title)
    clips = counts.sum(axis=1)
    axes.bar(np.arange(len(clips)), clips, width=1.0, edgecolor="white", linewidth=min(0.5, 20 / len(clips)))
    axes.axhline(np.median(clips), color="black", linestyle=":", label=f"median {np.median(clips):.0f}")
    axes.set(xlabel=f"client (of {len(clips)})", ylabel="clips", xlim=(-0.5, len(clips) - 0.5))
    axes.legend()
    return drawn


def _classes(counts: np.ndarray, class_names: Sequence[str], title: str) -> figure.Figure:
    drawn, axes = _axes(title)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(100 * shares.T, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
    axes.set(xlabel=f"client (of {len(counts)})", ylabel="class", yticks=np.arange(len(class_names)), yticklabels=class_names)
    drawn.colorbar(image, label="% of the client's clips")
    return drawn


def _axes(title: str):
    # Not by pyplot, which would keep every figure and wants a screen.
    drawn = figure.Figure(figsize=(9, 4), layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(title)
    return drawn, axes
