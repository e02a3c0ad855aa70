"""MNIST by writer: the digits of 700 of MNIST's writers, as a database of clients in EMNIST's layout.

MNIST: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-Based Learning Applied to Document Recognition, Proceedings of the
IEEE 86, 1998. Who wrote which digit is in the labels of QMNIST: C. Yadav, L. Bottou: Cold Case: The Lost MNIST Digits, NeurIPS
2019, arXiv 1905.10498. QMNIST has MNIST's training digits, and its first 10,000 test digits, one by one in the same order.

The project's results are on this data: 58,048 digits, a tenth of each writer's digits held out. Images are MNIST's. QMNIST's own
images will do, too, but its authors made them anew: they differ by up to 3 of 255 grey levels, and 147 are shifted by a pixel.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import pathlib
import sqlite3
import tempfile
import zlib
from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf
from rich.progress import track

from tff_kit.datasets import disk
from tff_kit.datasets.download import download_file
from tff_kit.datasets.federated import DataError

TEST_SHARE = 10  # One digit in ten of every writer is held out.

_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_QMNIST = "https://raw.githubusercontent.com/facebookresearch/qmnist/master/"
# SHA-256: of MNIST as many programs check it, of QMNIST as TensorFlow Datasets has it (url_checksums/qmnist.txt).
_DOWNLOADS = {
    "train-images-idx3-ubyte.gz": (_MNIST, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "t10k-images-idx3-ubyte.gz": (_MNIST, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "qmnist-train-labels-idx2-int.gz": (_QMNIST, "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f"),
    "qmnist-test-labels-idx2-int.gz": (_QMNIST, "9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06"),
}
_TRAIN_IMAGES = ("train-images-idx3-ubyte.gz", "qmnist-train-images-idx3-ubyte.gz")
_TEST_IMAGES = ("t10k-images-idx3-ubyte.gz", "qmnist-test-images-idx3-ubyte.gz")
_TRAIN_LABELS = ("qmnist-train-labels-idx2-int.gz",)
_TEST_LABELS = ("qmnist-test-labels-idx2-int.gz",)
_MNIST_TEST_DIGITS = 10_000  # QMNIST's other 50,000 test digits are not MNIST's.
_DTYPES: dict[int, np.dtype] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}
_CLASS, _WRITER, _INDEX = 0, 2, 3  # Columns of QMNIST's labels; the index counts a writer's digits.
# NIST's ids of the writers in the results' data, a selection of those in MNIST. They are listed since no rule for it is known.
_WRITERS = """
1-6 8-9 11 13-16 18-27 29 31-35 37 39-42 44-67 69-70 72-75 77-81 83-89 92-100 102-103 108-115 118-120 122-127 129 131-134
136-144 146-155 157-158 160-162 164 166-176 178-182 185-191 196 198-201 205 207-209 211-217 220-246 248-251 253 255 258-265
267-269 271-272 274-279 281-288 326-333 335-340 342-345 347-358 360-373 2101-2111 2113-2114 2116 2118-2127 2130-2132 2134
2136-2140 2142-2146 2148-2151 2153-2157 2159-2161 2163 2165-2167 2169-2173 2175-2180 2182 2184-2193 2195-2198 2200-2202
2204-2220 2222 2225-2230 2232-2242 2244-2245 2248 2250-2266 2268-2274 2278-2279 2281-2287 2289-2292 2294 2296-2297 2300-2313
2315-2323 2325-2329 2332-2348 2351-2354 2356-2362 2364-2370 2373-2383 2385-2386 2388-2393 2396-2414 2416-2425 2428-2429
2431-2436 2438-2442 2444-2451 2453-2461 2463-2465 2467-2482 2484-2495 2497-2502 2504-2519 2521 2523-2540 2542-2546 2548-2559
2561-2563 2566-2574 2576-2579 2582 2584-2590 2592-2599
"""
# Of the results' labels and writers in order, and of their images, so that whoever builds the data learns whether it is the same.
# Building it from the public files could not be tried, for want of a network. That a writer's digits are in the order of their
# index is inferred: most writers begin with the digits 0 to 9 three times, as NIST's forms do.
_LABELS_SHA256 = "262d07225f334438e097283af7e977ffe11fae0764b1ff631a8d3ce39a1f7749"
_IMAGES_SHA256 = "2404eb76b59adbf69449d687a760995bfa434de40b8070f839ba9627cb11f02f"


class _Digits(NamedTuple):
    """Digits in the order of their writers: uint8 images [n, 28, 28], 0 the background, uint8 labels [n], int16 writers [n]."""

    images: np.ndarray
    labels: np.ndarray
    writers: np.ndarray


def is_source(folder: pathlib.Path) -> bool:
    """Returns whether `folder` has QMNIST's labels, so that `build` can make the database from it."""
    return any(_find(folder, names) is not None for names in (_TRAIN_LABELS, _TEST_LABELS))


def build(folder: pathlib.Path, database: pathlib.Path) -> None:
    """Makes the database of clients from the files in `folder`; fetches those that are missing. Nothing half-written stays.

    Args:
      folder: Where MNIST's or QMNIST's images and QMNIST's labels are, packed or not, or shall be.
      database: The SQLite file to write, in the layout of TensorFlow Federated's EMNIST.

    Raises:
      DataError: If a file is missing and can't be fetched, or broken, or files do not fit each other, or the disk is full.
    """
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    digits = _read(folder)
    with disk.writing(database.parent), tempfile.TemporaryDirectory(dir=database.parent, prefix=".building-") as part:
        path = pathlib.Path(part) / database.name
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            _write(connection, digits)
        os.replace(path, database)


def notes(database: pathlib.Path) -> tuple[str, ...]:
    """Returns what `build` found worth a note when it made `database`; nothing of a database that it did not make."""
    with contextlib.closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'notes'").fetchone():
            return ()
        return tuple(text for (text,) in connection.execute("SELECT note FROM notes"))


def writers() -> np.ndarray:
    """Returns NIST's ids of the 700 writers, int64 [700], in order."""
    ends = [(first, last or first) for first, _, last in (text.partition("-") for text in _WRITERS.split())]
    return np.concatenate([np.arange(int(first), int(last) + 1) for first, last in ends])


def _read(folder: pathlib.Path) -> _Digits:
    """Returns the writers' digits among those of MNIST."""
    train, test = (
        (_idx(_get(folder, images), 3), _idx(_get(folder, labels), 2))
        for images, labels in ((_TRAIN_IMAGES, _TRAIN_LABELS), (_TEST_IMAGES, _TEST_LABELS))
    )
    test = (test[0][:_MNIST_TEST_DIGITS], test[1][:_MNIST_TEST_DIGITS])
    for images, labels in (train, test):
        if images.shape != (len(labels), 28, 28) or labels.shape[1:] != (8,):
            raise DataError(
                f"Expected as many images of 28 x 28 pixels as lines of 8 labels in {folder}, found images {list(images.shape)} "
                f"and labels {list(labels.shape)}. Delete the files, so that they are fetched again."
            )
    images, labels = (np.concatenate(parts) for parts in zip(train, test))
    rows = np.flatnonzero(np.isin(labels[:, _WRITER], writers()))
    rows = rows[np.lexsort((labels[rows, _INDEX], labels[rows, _WRITER]))]
    return _Digits(images[rows], labels[rows, _CLASS].astype(np.uint8), labels[rows, _WRITER].astype(np.int16))


def _get(folder: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
    """Returns the first file of these names that is in `folder`; fetches the first name where there is none."""
    found = _find(folder, names)
    if found is not None:
        return found
    address, sha256 = _DOWNLOADS[names[0]]
    try:
        return download_file(address + names[0], folder / names[0], sha256, attempts=2)
    except DataError as error:
        raise DataError(
            f"Expected {' or '.join(names)} in {folder}, found neither there nor over the network. {error}"
        ) from error


def _find(folder: pathlib.Path, names: tuple[str, ...]) -> Optional[pathlib.Path]:
    candidates = [folder / name[: len(name) - cut] for name in names for cut in (0, len(".gz"))]
    return next((path for path in candidates if path.is_file()), None)


def _idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Returns the array in a file of the idx format: two zero bytes, dtype, number of dimensions, sizes, then the numbers."""
    broken = f"Expected an idx file with {dimensions} dimensions in {path}, found "
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{broken}{error}. Delete the file, so that it is fetched again.") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:2] != b"\0\0" or data[2] not in _DTYPES or data[3] != dimensions:
        raise DataError(f"{broken}one that begins with {data[:4].hex(' ')}. Delete the file, so that it is fetched again.")
    dtype, shape = _DTYPES[data[2]], tuple(np.frombuffer(data, ">u4", dimensions, offset=4).tolist())
    expected = header + int(np.prod(shape)) * dtype.itemsize
    if len(data) != expected:
        raise DataError(f"{broken}{len(data):,} bytes of {expected:,}. Delete the file, so that it is fetched again.")
    return np.frombuffer(data, dtype, offset=header).reshape(shape)


def _write(connection: sqlite3.Connection, digits: _Digits) -> None:
    """Writes clients with their train and test digits, as TensorFlow Federated's EMNIST has them."""
    connection.executescript(
        """
        CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, serialized_example_proto BLOB NOT NULL);
        CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, num_examples INTEGER NOT NULL);
        CREATE TABLE notes (note TEXT NOT NULL);
        """
    )
    for writer in track(np.unique(digits.writers), description="building MNIST by writer"):
        rows, client = np.flatnonzero(digits.writers == writer), f"f{writer:04d}"
        held_out = np.arange(len(rows)) % TEST_SHARE == TEST_SHARE // 2
        for split, members in (("digits_only_train", rows[~held_out]), ("digits_only_test", rows[held_out])):
            examples = ((split, client, _example(digits.images[i], int(digits.labels[i]))) for i in members)
            connection.executemany("INSERT INTO examples VALUES (?, ?, ?)", examples)
            connection.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (client, split, len(members)))
    connection.execute("CREATE INDEX examples_by_client ON examples (client_id, split_name)")
    connection.executemany("INSERT INTO notes VALUES (?)", [(note,) for note in _differences(digits)])


def _example(image: np.ndarray, label: int) -> bytes:
    pixels = 1.0 - image.reshape(-1).astype(np.float32) / 255.0  # EMNIST's convention: 1.0 is the background, 0.0 the ink.
    features = {
        "pixels": tf.train.Feature(float_list=tf.train.FloatList(value=pixels)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _differences(digits: _Digits) -> list[str]:
    """Returns how the digits differ from those that the project's results are on, in a sentence for each way."""
    labels = hashlib.sha256(digits.labels.tobytes() + digits.writers.astype("<i2").tobytes()).hexdigest()
    if labels != _LABELS_SHA256:
        return [
            f"These {len(digits.labels):,} digits of {len(np.unique(digits.writers))} writers are not the 58,048 of 700 writers, "
            "in their order, that the project's results are on: expect other figures."
        ]
    if hashlib.sha256(digits.images.tobytes()).hexdigest() != _IMAGES_SHA256:
        return ["The digits are those of the project's results, but not their pixels: QMNIST made MNIST's images anew."]
    return []
