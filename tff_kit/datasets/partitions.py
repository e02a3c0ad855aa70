"""Plots of how data is spread over clients."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import figure


def plot_partitions(
    client_labels: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    title: str,
    folder: os.PathLike,
    examples: str = "clips",
) -> dict[str, figure.Figure]:
    """Draws the examples of each client and of each of its classes, and saves both as PNG.

    Args:
      client_labels: The labels of each client's examples; a `Store` and a `SpeechCommands` have them.
      class_names: The classes in the order of their labels.
      title: The data, in a few words.
      folder: The folder for `<examples>_per_client.png` and `classes_per_client.png`.
      examples: The name of the examples, in the plural.

    Returns:
      The figures by the names of their files; a notebook shows them.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.array([np.bincount(labels, minlength=len(class_names)) for labels in client_labels.values()])
    figures = {
        f"{examples}_per_client.png": _examples(counts, title, examples),
        "classes_per_client.png": _classes(counts, class_names, title, examples),
    }
    for name, drawn in figures.items():
        drawn.savefig(folder / name, dpi=150)
    return figures


def _examples(counts: np.ndarray, title: str, examples: str) -> figure.Figure:
    drawn, axes = _axes(title)
    totals = counts.sum(axis=1)
    axes.bar(np.arange(len(totals)), totals, width=1.0, edgecolor="white", linewidth=min(0.5, 20 / len(totals)))
    axes.axhline(np.median(totals), color="black", linestyle=":", label=f"median {np.median(totals):.0f}")
    axes.set(xlabel=f"client (of {len(totals)})", ylabel=examples, xlim=(-0.5, len(totals) - 0.5))
    axes.legend()
    return drawn


def _classes(counts: np.ndarray, class_names: Sequence[str], title: str, examples: str) -> figure.Figure:
    drawn, axes = _axes(title)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(100 * shares.T, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
    axes.set(xlabel=f"client (of {len(counts)})", ylabel="class", yticks=np.arange(len(class_names)), yticklabels=class_names)
    drawn.colorbar(image, label=f"% of the client's {examples}")
    return drawn


def _axes(title: str):
    # Not by pyplot, which would keep every figure and wants a screen.
    drawn = figure.Figure(figsize=(9, 4), layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(title)
    return drawn, axes
