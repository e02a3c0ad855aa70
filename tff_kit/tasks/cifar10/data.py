"""CIFAR-10, shared out among clients; or synthetic pictures to try everything with.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto, 2009.

The archive is made of Python pickles. They become one file a client, in the layout of CIFAR-10's binary version: a byte for the
label, then 1,024 bytes each of red, green and blue. A worker or a device reads its client's file and nothing else.
"""

from __future__ import annotations

import atexit
import pathlib
import pickle
import shutil
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf

from tff_kit.datasets import DataError, FederatedDataset, disk
from tff_kit.datasets import download as archive
from tff_kit.datasets.partitioning import split_by_class, split_evenly

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEST_FILE = "test.bin"

_FOLDER = "cifar-10-batches-py"
_TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST_BATCHES = ("test_batch",)
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS
_TEST_BATCH_SIZE = 500
_DEMO_TRAIN, _DEMO_TEST = 1200, 300  # Pictures.


def load(
    data: str = "auto",
    clients: int = 2,
    concentration: float = 0.0,
    batch_size: int = 32,
    local_epochs: int = 1,
    seed: int = 0,
) -> FederatedDataset:
    """Loads pictures as clients' data: float32 [batch, 32, 32, 3] between -1 and 1, and int32 labels [batch].

    Args:
      data: `auto`, CIFAR-10 where it is cached or can be downloaded and else synthetic pictures; `demo`, the synthetic ones; or
        the folder that holds `cifar-10-batches-py`, or a client's file that `write_clients` made.
      clients: Number of clients that share the training pictures.
      concentration: 0 for clients that are alike, else that of `tff_kit.datasets.partitioning.split_by_class`.
      batch_size: Pictures in a training batch; a client's last one is smaller.
      local_epochs: How often a client goes through its pictures in a round.
      seed: Seed of the sharing out.

    Raises:
      DataError: If the data is missing or broken, or has fewer pictures than there are clients.
    """
    folder, name, notes = _find(data)
    source = _demo_records if folder is None else lambda: _records(folder)
    how = f"clients_{clients}_concentration_{concentration:g}_seed_{seed}"
    store = _temporary_folder() if folder is None else folder / how
    write_clients(store, source, clients, concentration, seed)
    return _open(store, f"{name}, {clients} clients", notes, batch_size, local_epochs)


def write_clients(folder: pathlib.Path, source: Any, clients: int, concentration: float, seed: int) -> None:
    """Writes a file for each client and one of test pictures into `folder`, unless they are there.

    Args:
      folder: The folder to write; it appears only when it is complete.
      source: Returns training and test pictures as records, uint8 [pictures, 3073].
      clients: See `load`.
      concentration: See `load`.
      seed: See `load`.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return
    train, test = source()
    labels = train[:, 0]
    parts = split_by_class(labels, clients, concentration, seed) if concentration else split_evenly(labels, clients, seed)
    with disk.writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            for client, places in enumerate(parts):
                train[places].tofile(part / f"{client:04d}.bin")
            test.tofile(part / TEST_FILE)
            if folder.is_dir():  # An empty one, which a rename does not replace everywhere.
                folder.rmdir()
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def client_labels(data: FederatedDataset) -> dict[str, np.ndarray]:
    """Returns the labels of each client's training pictures, of one round."""
    batches = {client: data.client_dataset(tf.constant(client), tf.constant(0, tf.int64)) for client in data.client_ids}
    return {client: np.concatenate([labels for _, labels in found.as_numpy_iterator()]) for client, found in batches.items()}


def _open(folder: pathlib.Path, name: str, notes: tuple[str, ...], batch_size: int, local_epochs: int) -> FederatedDataset:
    root = str(folder.resolve())
    files = sorted(path for path in folder.glob("*.bin") if path.name != TEST_FILE)
    for path in [*files, folder / TEST_FILE]:
        size = path.stat().st_size if path.is_file() else 0
        if not size or size % _RECORD:
            raise DataError(
                f"Expected whole pictures of {_RECORD:,} bytes in {path}, found {size:,} bytes. Remove {folder}, so that it is "
                "made again."
            )
    largest = max(path.stat().st_size for path in files) // _RECORD

    def client_dataset(client: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        pictures = tf.data.Dataset.from_tensor_slices(_read(tf.strings.join([root, "/", client, ".bin"])))
        return pictures.shuffle(largest, seed=seed).repeat(local_epochs).batch(batch_size).map(_decode)

    test = tf.data.Dataset.from_tensor_slices(_read(f"{root}/{TEST_FILE}")).batch(_TEST_BATCH_SIZE).map(_decode)
    return FederatedDataset(name, tuple(path.stem for path in files), client_dataset, test, notes)


def _read(path: Any) -> tf.Tensor:
    return tf.reshape(tf.io.decode_raw(tf.io.read_file(path), tf.uint8), [-1, _RECORD])


def _decode(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    planes = tf.reshape(records[:, 1:], [-1, 3, 32, 32])
    return tf.cast(tf.transpose(planes, [0, 2, 3, 1]), tf.float32) / 127.5 - 1, tf.cast(records[:, 0], tf.int32)


def _find(data: str) -> tuple[Any, str, tuple[str, ...]]:
    """Returns the folder of the data, `None` for synthetic pictures; what the data is called; and notes."""
    if data == "demo":
        return None, "synthetic pictures", ("This data is synthetic: made up to try the program, no measure of any model.",)
    if data != "auto":
        folder = pathlib.Path(data)
        if not (folder / _FOLDER).is_dir():
            raise DataError(f"Expected --data to be auto, demo, or a folder that holds {_FOLDER}; found none in {data}.")
        return folder, "CIFAR-10", ()
    folder = pathlib.Path.home() / ".tff_kit" / "cifar10"
    try:
        if not (folder / _FOLDER).is_dir():
            archive.download(URL, folder, SHA256, attempts=1)
    except DataError as error:
        why = f"CIFAR-10 is not here ({error}), so this runs on synthetic pictures: made up, no measure of any model."
        return None, "synthetic pictures", (why,)
    return folder, "CIFAR-10", ()


def _records(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the training and the test pictures as records, uint8 [pictures, 3073]."""
    return tuple(  # type: ignore[return-value]
        np.concatenate([_read_batch(folder / _FOLDER / name) for name in names]) for names in (_TRAIN_BATCHES, _TEST_BATCHES)
    )


def _read_batch(path: pathlib.Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            batch = _Unpickler(file, encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"], np.uint8)
        if pixels.shape != (len(labels), _PIXELS) or not len(labels) or labels.max() >= len(CLASS_NAMES):
            raise ValueError(f"pixels of shape {list(pixels.shape)} and {len(labels)} labels")
    except (OSError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"Expected a batch of CIFAR-10's Python version in {path}, found: {error}. Fetch {URL} again.") from error
    return np.concatenate([labels[:, np.newaxis], pixels], axis=1)


class _Unpickler(pickle.Unpickler):
    """Reads arrays of NumPy and bytes, and nothing that could run code: a folder may come from anywhere."""

    def find_class(self, module: str, name: str) -> Any:
        of_numpy = module.split(".", maxsplit=1)[0] == "numpy" and name in {"_reconstruct", "ndarray", "dtype"}
        if of_numpy or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the name {module}.{name}, which no batch has")


def _demo_records() -> tuple[np.ndarray, np.ndarray]:
    """Makes up pictures: each class has stripes of its own direction and colour, with noise on top."""
    drawn = np.random.default_rng(0)
    labels = drawn.integers(len(CLASS_NAMES), size=_DEMO_TRAIN + _DEMO_TEST, dtype=np.uint8)
    y, x = np.mgrid[:32, :32] / 32
    angles = np.pi * np.arange(len(CLASS_NAMES)) / len(CLASS_NAMES)
    stripes = np.sin(12 * (np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y))
    colours = np.random.default_rng(1).uniform(-1, 1, [len(CLASS_NAMES), 3])
    patterns = 127 + 60 * stripes[:, None] * colours[:, :, None, None]
    pictures = patterns[labels] + drawn.normal(scale=40, size=[len(labels), 3, 32, 32])
    records = np.concatenate([labels[:, None], pictures.clip(0, 255).astype(np.uint8).reshape(len(labels), -1)], axis=1)
    return records[:_DEMO_TRAIN], records[_DEMO_TRAIN:]


def _temporary_folder() -> pathlib.Path:
    folder = tempfile.mkdtemp(prefix="tff_kit-cifar10-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)
