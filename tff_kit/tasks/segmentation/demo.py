"""Images to try everything with, made on the spot: real handwritten digits as objects, on textures that are made up.

The digits are scikit-learn's, E. Alpaydin and C. Kaynak: Optical Recognition of Handwritten Digits. 1998. Each client has
textures of its own, and more light or more dark ink. They are written as a folder that a user could have, and read as one.
"""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAME = "handwritten digits on made-up textures"
NOTE = "This data is made up: scikit-learn's digits pasted on textures. A result on it says nothing about other images."
_SIZES = ((128, 128), (160, 120), (96, 128))  # Width and height, a client's own.
_SMALLEST, _LARGEST = 32, 56  # Pixels of a digit.
_MOST_DIGITS = 2
_INK = 6  # Of 16, in scikit-learn's digits.


def write_demo(folder: pathlib.Path, clients: int = 8, images: int = 24, held_out: int = 24, seed: int = 0) -> None:
    """Writes images and masks as PNG: `images/<client>/<number>.png` and `annotations/<client>/<number>.png`.

    Args:
      folder: Where.
      clients: Number of clients.
      images: Number of images of each client.
      held_out: Number of images for validation, and for the test. Their textures are of all kinds.
      seed: Seed of all random draws.
    """
    digits = load_digits().images
    counts = {**{f"client{i:02d}": images for i in range(clients)}, "validation": held_out, "test": held_out}
    for place, (name, count) in enumerate(counts.items()):
        for kind in ("images", "annotations"):
            (folder / kind / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            style = place if place < clients else number % clients
            drawn = np.random.default_rng([seed, place, number])
            image, mask = _draw(digits, style, drawn)
            Image.fromarray(image).save(folder / "images" / name / f"{number:03d}.png")
            Image.fromarray(mask).save(folder / "annotations" / name / f"{number:03d}.png")


def _draw(digits: np.ndarray, style: int, drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image, uint8 [height, width, 3], and its mask, uint8 [height, width]."""
    width, height = _SIZES[style % len(_SIZES)]
    image, mask = _texture(height, width, style, drawn), np.zeros([height, width], np.uint8)
    share_of_light = 0.7 if style % 2 else 0.3  # Of digits in light ink; the others are dark.
    for value in range(1, 1 + drawn.integers(1, _MOST_DIGITS + 1)):
        ink = _ink(digits[drawn.integers(len(digits))], drawn.integers(_SMALLEST, _LARGEST + 1))
        y, x = (drawn.integers(0, whole - part + 1) for whole, part in zip((height, width), ink.shape))
        place = slice(y, y + ink.shape[0]), slice(x, x + ink.shape[1])
        if not mask[place].any():  # Objects do not hide each other.
            brightness = float(drawn.random() < share_of_light)
            colour = np.clip(brightness + drawn.uniform(-0.15, 0.15, 3), 0, 1)
            image[place][ink] = 0.15 * image[place][ink] + 0.85 * colour
            mask[place][ink] = value
    noisy = image + drawn.normal(scale=0.02, size=image.shape)
    return (255 * noisy.clip(0, 1)).astype(np.uint8), mask


def _texture(height: int, width: int, style: int, drawn: np.random.Generator) -> np.ndarray:
    """Returns clouds and stripes of middle brightness, float64 [height, width, 3]; a style has its own stripes and colour."""
    of_style = np.random.default_rng([1, style])
    colour, angle, frequency = of_style.uniform(0.35, 0.65, 3), of_style.uniform(0, np.pi), of_style.uniform(0.1, 0.5)
    coarse = Image.fromarray(drawn.uniform(-0.12, 0.12, [6, 6]).astype(np.float32))
    clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    y, x = np.mgrid[:height, :width]
    stripes = 0.06 * np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y) + drawn.uniform(0, 2 * np.pi))
    return colour + (clouds + stripes)[..., np.newaxis]


def _ink(digit: np.ndarray, size: int) -> np.ndarray:
    """Returns where the ink of a digit is, bool [height, width], without what is empty around it."""
    large = np.asarray(Image.fromarray(digit.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)) > _INK
    rows, columns = np.flatnonzero(large.any(axis=1)), np.flatnonzero(large.any(axis=0))
    return large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
