"""The commands `embed sam` and `export sam`."""

import pathlib
import sys
from typing import Optional

from typing_extensions import Literal

from tff_kit.tasks.segmentation import embed as embedding
from tff_kit.tasks.segmentation import sam as sams
from tff_kit.tasks.segmentation import task, weights
from tff_kit.tasks.segmentation.folder import load_folder
from tff_kit.training import runs


def embed(
    images: pathlib.Path,
    out: pathlib.Path = pathlib.Path("embeddings-sam"),
    sam: str = sams.DEFAULT_MODEL,
    image_folder: str = "images",
    annotation_folder: str = "annotations",
    clients: Optional[pathlib.Path] = None,
    dtype: Literal["float16", "int8"] = "float16",
    seed: int = 0,
) -> None:
    """Makes the embeddings of all images with SAM's encoder. The same command resumes an interrupted run.

    Args:
        images: Folder with a subfolder of images and one of masks: PNG of the same names, 0 for no object, one value an object.
        out: Folder of the embeddings.
        sam: Id of a SAM on the Hugging Face hub, or a local folder with one; or tiny, a small one that nobody trained.
        image_folder: The subfolder of images.
        annotation_folder: The subfolder of masks.
        clients: CSV file of image,client. By default each client has a folder of its own in both subfolders.
        dtype: float16, or int8 for half of the space.
        seed: Seed of which images are held out, if there are no clients named validation and test.
    """
    pictures = load_folder(images, image_folder, annotation_folder, clients, seed)
    for line in [*pictures.notes, *pictures.skipped]:
        print(f"Note: {line}", file=sys.stderr)
    store = embedding.embed(pictures, sams.load_sam(sam), out, dtype)
    objects = sum(store.examples.values())
    print(
        f"{store.num_clips:,} images with {objects:,} objects, {len(store.client_ids)} clients, in {out}; relative error "
        f"{store.relative_error:.2g}"
    )


def export(model: pathlib.Path, out: pathlib.Path) -> None:
    """Writes a trained mask decoder as safetensors, for PyTorch's SAM and for --decoder.

    Args:
        model: The run directory.
        out: The file, such as decoder.safetensors.
    """
    run = runs.RunDirectory(model)
    settings = run.read_settings(task.Segmentation)
    decoder = settings.build_model()
    run.load_weights(decoder)
    weights.save_decoder(decoder, out, settings.encoder_sha256())
    print(out)
