"""Memory of segmentation: embedding ten times as many images, and a round at the sizes of ViT-B's decoder.

    python -m benchmarks.sam_memory

Embeds 50 and 500 made-up images with the tiny SAM, each in a process of its own. Then a SAM of ViT-B's sizes, whose weights are
drawn here since only sizes matter, embeds a few images, and two clients train its mask decoder for a round. Memory is that of the
command with all that it starts. Writes results/sam/memory.csv.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import tyro

from benchmarks import results, watched
from tff_kit.tasks.segmentation import demo
from tff_kit.tasks.segmentation.sam import save_sam

_HELD_OUT = 2


def _measure(what: str, images: int, arguments: Sequence[object]) -> results.Row:
    """Runs a command of tff_kit to its end; returns its peak in MiB, and how long it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tff_kit", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        watch = watched.Watch([process.pid])
        with watch.watching():
            process.wait()
    if process.returncode:
        raise SystemExit(f"error: Expected `tff_kit {arguments[0]}` to end well, found exit code {process.returncode}.")
    seconds = time.monotonic() - began
    return {"what": what, "images": images, "peak_mib": round(max(watch.take_samples())), "seconds": round(seconds)}


def _write_images(folder: pathlib.Path, images: int, clients: int = 2) -> pathlib.Path:
    demo.write_demo(folder, clients, images // clients, _HELD_OUT)
    return folder


def _write_vit_b(folder: pathlib.Path) -> pathlib.Path:
    """Writes a SAM with Hugging Face's default sizes, those of ViT-B, and weights that nobody trained."""
    import transformers

    model = transformers.TFSamModel(transformers.SamConfig())
    model.build()
    save_sam(model, folder)
    return folder


def main(images: int = 50, quick: bool = False) -> None:
    """Measures and writes the results.

    Args:
        images: Embedded first, and then ten times as many.
        quick: Try ten images and a hundred, without ViT-B, into logs/results-quick/.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for count in (10, 100) if quick else (images, 10 * images):
            data = _write_images(folder / f"images{count}", count)
            where = ["--images", data, "--sam", "tiny", "--out", folder / f"store{count}"]
            rows.append(_measure("embedding, tiny", count, ["embed", "sam", *where]))
        rows[-1]["times"] = round(rows[-1]["peak_mib"] / rows[0]["peak_mib"], 3)
        if not quick:
            data, vit_b, store = _write_images(folder / "few", 4), _write_vit_b(folder / "vit-b"), folder / "store"
            rows.append(
                _measure("embedding, ViT-B's sizes", 4, ["embed", "sam", "--images", data, "--sam", vit_b, "--out", store])
            )
            training = ["--data", store, "--rounds", 1, "--clients", 2, "--logdir", folder / "run"]
            rows.append(_measure("a round of two clients, ViT-B's sizes", 4, ["train", "sam", *training]))
    for row in rows:
        row.setdefault("times", None)
    source = results.Source(
        command="python -m benchmarks.sam_memory",
        data="handwritten digits on made-up textures",
        seeds="0",
        spread="none: one run each",
    )
    results.write("sam/memory", rows, source, quick)


if __name__ == "__main__":
    tyro.cli(main)
