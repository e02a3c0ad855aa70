"""A folder of images and of masks that say what is in them: clients' data, and images that no client has.

    images/<client>/<name>.jpg             or images/<name>.jpg with a CSV file `image,client`
    annotations/<client>/<name>.png        the mask of the same name: 0 for no object, and one value an object

Images of the clients `validation` and `test` are held out. Where there are none, a part of each client's images is held out, and
that client does not have them.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np

from tff_kit.datasets import DataError
from tff_kit.tasks.segmentation import pictures

HELD_OUT = ("validation", "test")
_SHARE = 0.1  # Of a client's images, for validation and for the test each.


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and its mask.

    Attributes:
      image: The image's file, relative to the data's folder.
      mask: The mask's file, relative to the data's folder.
      values: The values of the objects in the mask.
    """

    image: str
    mask: str
    values: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """An index of a folder's images and of the clients that have them.

    Attributes:
      folder: The data's folder.
      name: The data, in a few words.
      splits: The images by the name of their folder in a store, clients first: `clients/<client>`, `validation`, `test`.
      skipped: One line for each file that could not be used, with the reason.
      notes: Sentences that a user should read before trusting a result on this data.
    """

    folder: pathlib.Path
    name: str
    splits: Mapping[str, Sequence[Picture]]
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()

    def read_image(self, picture: Picture) -> np.ndarray:
        """Returns an image, uint8 [height, width, 3]; raises `DataError` if it cannot be read any more."""
        try:
            return pictures.read_image(self.folder / picture.image)
        except pictures.PictureError as error:
            raise DataError(f"Expected the image {picture.image} as before, found {error}.") from error

    def read_objects(self, picture: Picture) -> list[np.ndarray]:
        """Returns the mask of each object, bool [height, width]; raises `DataError` if one is not there any more."""
        try:
            mask = pictures.read_mask(self.folder / picture.mask)
        except pictures.PictureError as error:
            raise DataError(f"Expected the mask {picture.mask} as before, found {error}.") from error
        if pictures.object_values(mask) != picture.values:
            raise DataError(f"Expected the mask {picture.mask} as before, found other objects in it. Run the command again.")
        return [mask == value for value in picture.values]


def load_folder(
    folder: pathlib.Path,
    images: str = "images",
    annotations: str = "annotations",
    clients: Optional[pathlib.Path] = None,
    seed: int = 0,
) -> Pictures:
    """Reads the index of a folder. Every file is looked at, and what cannot be used is skipped, named and counted.

    Args:
      folder: The data's folder.
      images: The subfolder of the images.
      annotations: The subfolder of the masks.
      clients: A CSV file with the columns `image`, a file relative to the images' subfolder, and `client`; `None` where each
        client has a folder.
      seed: Seed of which images are held out, where the data does not say.

    Raises:
      DataError: If there is no such folder, no client, or nothing that can be used.
    """
    for name in (images, annotations):
        if not (folder / name).is_dir():
            raise DataError(
                f"Expected the folders {images} and {annotations} in {folder}, found no {name}. Name others by --images and "
                "--annotations."
            )
    skipped: list[str] = []
    found, masks = _files(folder / images, skipped), _files(folder / annotations, skipped)
    owners = _owners_by_folder(found, folder / images) if clients is None else _owners_by_csv(found, clients, skipped)
    skipped += [f"{annotations}/{masks[name]}: a mask without an image" for name in masks if name not in found]
    of_clients: dict[str, list[Picture]] = {}
    for name, file in found.items():
        if name in owners:
            try:
                if name not in masks:
                    raise pictures.PictureError("an image without a mask")
                picture = _look(folder, f"{images}/{file}", f"{annotations}/{masks[name]}")
                of_clients.setdefault(owners[name], []).append(picture)
            except pictures.PictureError as error:
                skipped.append(f"{images}/{file}: {error}")
    notes = [f"{len(skipped)} files could not be used and were left out."] if skipped else []
    splits = _split(of_clients, seed)
    if not all(splits.get(name) for name in HELD_OUT) or len(splits) == len(HELD_OUT):
        reasons = "; ".join(skipped[:3]) or "too few images"
        raise DataError(f"Expected images of clients and held-out ones in {folder}, found too few that can be used: {reasons}.")
    return Pictures(folder, folder.resolve().name, splits, tuple(sorted(skipped)), tuple(notes))


def _files(folder: pathlib.Path, skipped: list[str]) -> dict[str, str]:
    """Returns the pictures in a folder, relative to it, by their names without suffix, in order."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in pictures.SUFFIXES and not path.name.startswith("."):
            file = path.relative_to(folder)
            name = file.with_suffix("").as_posix()
            if name in found:
                skipped.append(f"{folder.name}/{file.as_posix()}: a second file of this name, beside {found[name]}")
            else:
                found[name] = file.as_posix()
    return found


def _owners_by_folder(found: Mapping[str, str], folder: pathlib.Path) -> dict[str, str]:
    owners = {name: name.split("/")[0] for name in found if "/" in name}
    if not owners:
        raise DataError(
            f"Expected a folder for each client in {folder}, found none with images. Make folders, or name a CSV file of "
            "image,client by --clients."
        )
    return owners


def _owners_by_csv(found: Mapping[str, str], path: pathlib.Path, skipped: list[str]) -> dict[str, str]:
    """Returns the client of each image, by the image's name without suffix."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Expected a CSV file of image,client in {path}, found: {error}.") from error
    if not rows or not {"image", "client"} <= set(rows[0]):
        raise DataError(f"Expected the columns image and client in {path}, found {', '.join(rows[0]) if rows else 'no rows'}.")
    names = {file: name for name, file in found.items()}
    owners: dict[str, str] = {}
    for row in rows:
        image, client = row["image"] or "", row["client"] or ""
        if not client or client != pathlib.PurePath(client).name or client.startswith("."):
            raise DataError(f"Expected clients in {path} that can be a folder's name, found {client!r} of {image!r}.")
        if image not in names:
            skipped.append(f"{path.name}: {image} is named there, but is no image here")
        elif owners.setdefault(names[image], client) != client:
            raise DataError(f"Expected one client for each image in {path}, found others of {image}.")
    skipped += [f"{file}: no client in {path.name}" for file, name in names.items() if name not in owners]
    return owners


def _look(folder: pathlib.Path, image: str, mask: str) -> Picture:
    """Returns an image and its mask after a look at both; raises `PictureError` if they can't be used."""
    height, width = pictures.read_image(folder / image).shape[:2]
    try:
        objects = pictures.read_mask(folder / mask)
    except pictures.PictureError as error:
        raise pictures.PictureError(f"its mask {mask} is {error}") from error
    if objects.shape != (height, width):
        raise pictures.PictureError(
            f"its mask {mask} is of another size: {objects.shape[1]} x {objects.shape[0]} instead of {width} x {height}"
        )
    values = pictures.object_values(objects)
    if not values:
        raise pictures.PictureError(f"its mask {mask} has no object")
    return Picture(image, mask, values)


def _split(of_clients: Mapping[str, list[Picture]], seed: int) -> dict[str, Sequence[Picture]]:
    """Returns the images of clients and the held-out ones, which are of no client."""
    held: dict[str, list[Picture]] = {name: list(of_clients.get(name, [])) for name in HELD_OUT}
    clients = {name: list(own) for name, own in sorted(of_clients.items()) if name not in HELD_OUT}
    drawn = np.random.default_rng(seed)
    for name in [name for name in HELD_OUT if name not in of_clients]:
        everything = [(client, picture) for client, own in clients.items() for picture in own]
        count = max(1, round(_SHARE * len(everything)))
        for place in sorted(drawn.permutation(len(everything))[:count]):
            client, picture = everything[place]
            held[name].append(picture)
            clients[client].remove(picture)
    return {**{f"clients/{name}": own for name, own in clients.items() if own}, **held}
