"""Reads images and masks as people have them: JPEG or PNG, grey, colour or with transparency, turned by EXIF, of any size."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_MOST_OBJECTS = 64
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)  # Pillow raises all of these.


class PictureError(ValueError):
    """A file that cannot be used. The message says why in a few words."""


def read_image(path: pathlib.Path) -> np.ndarray:
    """Returns an image upright and in colour, uint8 [height, width, 3]; raises `PictureError` if it cannot be read."""
    opened = _open(path)
    if opened.mode.startswith("I"):  # 16 bits, of which Pillow would cut the upper ones.
        opened = Image.fromarray((np.asarray(opened, np.int64) // 256).clip(0, 255).astype(np.uint8))
    return np.asarray(opened.convert("RGB"))


def read_mask(path: pathlib.Path) -> np.ndarray:
    """Returns the object that each pixel belongs to, int [height, width], 0 for none.

    Raises:
      PictureError: If it cannot be read, has colours, or has more different values than a mask of objects has.
    """
    opened = _open(path)
    values = np.asarray(opened.convert("RGB") if opened.mode in ("RGBA", "CMYK") else opened)
    if values.ndim == 3:
        if values.shape[-1] == 2 or (values == values[..., :1]).all():  # Grey with transparency.
            values = values[..., 0]
        else:
            raise PictureError("a mask in colours, where one value for each object was expected")
    values = values.astype(np.int64)
    found = len(np.unique(values[values != 0]))
    if found > _MOST_OBJECTS:
        raise PictureError(f"{found} different values, where one for each of at most {_MOST_OBJECTS} objects was expected")
    return values


def object_values(mask: np.ndarray) -> tuple[int, ...]:
    """Returns the values of a mask's objects."""
    return tuple(int(value) for value in np.unique(mask) if value)


def _open(path: pathlib.Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            opened.load()
            turned = ImageOps.exif_transpose(opened)
            return opened if turned is None else turned
    except _BROKEN as error:
        raise PictureError(f"no picture that can be read: {' '.join(str(error).split()) or type(error).__name__}") from error
