"""Handwritten digits by writer: EMNIST from TensorFlow Federated, MNIST by writer, or the small set inside scikit-learn.

EMNIST: G. Cohen, S. Afshar, J. Tapson, A. van Schaik: EMNIST: an extension of MNIST to handwritten letters, 2017, arXiv
1702.05373; by writer in S. Caldas et al.: LEAF: A Benchmark for Federated Settings, 2018, arXiv 1812.01097. The digits in
scikit-learn are the test set of E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998.

All have images of float32 [28, 28], 1.0 for the background and 0.0 for ink, and int32 labels.
"""

from __future__ import annotations

import os
import pathlib
import socket
import sqlite3
import tempfile
import urllib.error
import urllib.request
from typing import Callable, Optional

import numpy as np
import tensorflow as tf

from tff_kit.datasets.federated import DataError, FederatedDataset
from tff_kit.tasks.emnist import mnist_by_writer

MAX_CLIENT_DATASET_SIZE = 418
"""The size of the largest EMNIST client. A shuffle buffer of this size shuffles any client completely."""
TEST_BATCH_SIZE = 500

_NAMES = ("auto", "emnist", "mnist-by-writer", "digits")
_FILE = "emnist_all.sqlite"
_DOWNLOAD = "https://storage.googleapis.com/tff-datasets-public/emnist_all.sqlite.lzma"  # Where TFF fetches it.
_REACH_SECONDS = 4.0
_STALL_SECONDS = 30.0
_CHECKED_BYTES = 2**30
# The file has one form of each writer after the other. Each form begins with the digits 0 to 9 three times. The starts were
# found by that; they are about 130 digits apart.
_FORM_STARTS = (0, 130, 256, 386, 516, 646, 776, 905, 1029, 1157, 1287, 1415, 1545, 1667)
_TEST_SHARE = 10  # One digit in ten of every form is held out.


def load(data: str = "auto", only_digits: bool = True, batch_size: int = 20, local_epochs: int = 1) -> FederatedDataset:
    """Loads handwritten digits by writer.

    Args:
      data: `auto` is EMNIST if it is cached or can be downloaded, and otherwise the digits in scikit-learn. `emnist` is EMNIST or
        an error. `mnist-by-writer` is the data of the project's results, made from MNIST's and QMNIST's files. `digits` is the
        digits in scikit-learn. A folder contains `emnist_all.sqlite` or MNIST's and QMNIST's files, or receives them.
      only_digits: Whether to have ten classes; False for EMNIST's 62.
      batch_size: Number of examples in a training batch. A client's last batch is smaller.
      local_epochs: How often a client goes through its examples in a round.

    Returns:
      The clients' data.

    Raises:
      DataError: If the data is missing or broken, or does not have the classes that were asked for.
    """

    def batches(dataset: tf.data.Dataset, seed: tf.Tensor) -> tf.data.Dataset:
        shuffled = dataset.shuffle(MAX_CLIENT_DATASET_SIZE, seed=seed).repeat(local_epochs)
        return shuffled.batch(batch_size).map(_image_and_label)

    if data == "digits":
        return _load_scikit_learn(batches, only_digits, "This")
    path = database_of(data)
    if data not in _NAMES and not path.parent.is_dir():
        raise DataError(f"Expected --data to be {', '.join(_NAMES)} or a folder; found {data!r}, and no such folder.")
    if not path.exists() and (data == "mnist-by-writer" or mnist_by_writer.is_source(path.parent)):
        mnist_by_writer.build(path.parent, path)
    missing = None if path.exists() else _download(path.parent)
    if missing is None:
        return _load_sqlite(path, batches, only_digits)
    if data == "auto":
        return _load_scikit_learn(batches, only_digits, f"EMNIST is not here ({missing}), so this")
    raise DataError(
        f"Expected EMNIST as {path.name} in {path.parent} or over the network, found neither: {missing}. "
        "Put the file there, or use --data digits."
    )


def database_of(data: str) -> pathlib.Path:
    """Returns where the database of clients is, or shall be; `data` is as in `load`, but not the digits in scikit-learn."""
    if data in ("auto", "emnist"):
        return pathlib.Path.home() / ".tff" / _FILE
    return (pathlib.Path.home() / ".tff" / data if data == "mnist-by-writer" else pathlib.Path(data)) / _FILE


def _image_and_label(example) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.expand_dims(example["pixels"], axis=-1), example["label"]


def _load_sqlite(path: pathlib.Path, batches: Callable, only_digits: bool) -> FederatedDataset:
    splits = [f"{'digits_only' if only_digits else 'all'}_{split}" for split in ("train", "test")]
    counts = {split: _examples_by_client(path, split) for split in splits}
    ids = _client_ids(path, splits[0])
    clients = tuple(client for client in ids if counts[splits[0]].get(client))
    empty = len(ids) - len(clients)
    if not clients or not sum(counts[splits[1]].values()):
        raise DataError(f"Expected examples to train and to test on in {path}, found none for one of them.")
    return FederatedDataset(
        name=_name(path, len(clients), sum(counts[splits[0]].values()), only_digits),
        client_ids=clients,
        client_dataset=lambda client, seed: batches(_examples(path, splits[0], client), seed),
        test=_test_batches(_all_examples(path, splits[1])),
        notes=(*mnist_by_writer.notes(path), *([f"{empty} client{'s' * (empty > 1)} without examples left out."] * bool(empty))),
    )


def _examples(path: pathlib.Path, split: str, client: tf.Tensor) -> tf.data.Dataset:
    """Returns a client's examples, read by operations that a worker and a device have: TFF's own loader, without TFF."""
    query = ["SELECT serialized_example_proto FROM examples WHERE client_id = '", client, "' and split_name ='", split, "'"]
    rows = tf.data.experimental.SqlDataset("sqlite", str(path), tf.strings.join(query), tf.string)
    return rows.map(_parse, num_parallel_calls=tf.data.AUTOTUNE)


def _parse(proto: tf.Tensor) -> dict[str, tf.Tensor]:
    features = {"pixels": tf.io.FixedLenFeature([28, 28], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}
    parsed = tf.io.parse_example(proto, features)
    return {"label": tf.cast(parsed["label"], tf.int32), "pixels": parsed["pixels"]}


def _all_examples(path: pathlib.Path, split: str) -> tf.data.Dataset:
    """Returns the examples of all clients, in the order in which TFF's `create_tf_dataset_from_all_clients(seed=0)` has them."""
    ids = _client_ids(path, split)
    np.random.RandomState(0).shuffle(ids)
    return tf.data.Dataset.from_tensor_slices(ids).flat_map(lambda client: _examples(path, split, client))


def _client_ids(path: pathlib.Path, split: str) -> list[str]:
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    rows = database.execute("SELECT DISTINCT client_id FROM client_metadata WHERE split_name = ?", (split,))
    return sorted(client for (client,) in rows)


def _name(path: pathlib.Path, clients: int, examples: int, only_digits: bool) -> str:
    known = {(3383, 341_873): "EMNIST digits", (3400, 671_585): "EMNIST"}
    return known.get(
        (clients, examples), f"{'digits' if only_digits else 'characters'} of {clients} writers in {path.parent.name}"
    )


def _test_batches(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.batch(TEST_BATCH_SIZE).map(_image_and_label).cache()


def _examples_by_client(path: pathlib.Path, split: str) -> dict[str, int]:
    """Returns the number of examples of each client in `split`; raises DataError where the file is no whole database."""
    broken = f"Expected a database of client examples in {path}, found "
    advice = " Delete the file, so that it is fetched again, or put a good one in its place."
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        pages, page_bytes = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        if pages * page_bytes != path.stat().st_size:
            raise DataError(f"{broken}{path.stat().st_size:,} bytes of {pages * page_bytes:,}.{advice}")
        if path.stat().st_size <= _CHECKED_BYTES:  # A larger one takes long to check; what is wrong there shows in use.
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise DataError(f"{broken}it damaged: {found}.{advice}")
        counts = dict(
            database.execute("SELECT client_id, COUNT(*) FROM examples WHERE split_name = ? GROUP BY client_id", (split,))
        )
        if not counts:
            splits = sorted(row[0] for row in database.execute("SELECT DISTINCT split_name FROM client_metadata"))
            raise DataError(
                f"{broken}no split {split!r}; it has {', '.join(splits) or 'none'}. Put a file with that split there."
            )
    except sqlite3.DatabaseError as error:
        raise DataError(f"{broken}none that can be read: {error}.{advice}") from error
    return counts


def _download(folder: pathlib.Path) -> Optional[str]:
    """Fetches EMNIST into `folder`. Returns why it can't, or None. A broken download leaves nothing behind."""
    try:
        urllib.request.urlopen(urllib.request.Request(_DOWNLOAD, method="HEAD"), timeout=_REACH_SECONDS).close()
        folder.mkdir(parents=True, exist_ok=True)
    except (urllib.error.URLError, OSError) as error:
        return f"{getattr(error, 'reason', None) or error}"
    try:
        import tensorflow_federated as tff  # Only here: all else works where it is not installed.
    except ImportError:
        return "its download is TensorFlow Federated's, which is not installed"
    # TFF's own download, which knows no timeout and would leave half a file in the cache if it were cut off.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_SECONDS)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as part:
            tff.simulation.datasets.emnist.load_data(cache_dir=part)
            os.replace(pathlib.Path(part) / _FILE, folder / _FILE)
    except (urllib.error.URLError, OSError, EOFError) as error:
        return f"the download broke off: {error}"
    finally:
        socket.setdefaulttimeout(before)
    return None


def _load_scikit_learn(batches: Callable, only_digits: bool, why: str) -> FederatedDataset:
    if not only_digits:
        raise DataError("Expected 62 classes of characters, found only the digits in scikit-learn. Use --data emnist.")
    from sklearn.datasets import load_digits  # Slow to import, and only needed here.

    digits = load_digits()
    forms = np.searchsorted(_FORM_STARTS, np.arange(len(digits.target)), side="right") - 1
    held_out = np.arange(len(digits.target)) % _TEST_SHARE == _TEST_SHARE // 2
    ids = np.array([f"form{form:02d}" for form in range(len(_FORM_STARTS))])
    images, labels, owners = digits.images.astype(np.uint8), digits.target.astype(np.int32), ids[forms]

    def dataset(rows: tf.Tensor) -> tf.data.Dataset:
        # Enlarged here and not before, so that a seventh of the bytes travels to the worker.
        kept = [tf.boolean_mask(tf.constant(array), rows) for array in (images, labels)]
        return tf.data.Dataset.from_tensor_slices(tuple(kept)).map(_enlarge)

    def client_dataset(client: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        return batches(dataset(tf.equal(owners, client) & ~held_out), seed)

    return FederatedDataset(
        name=f"the {len(labels):,} digits of scikit-learn",
        client_ids=tuple(ids),
        client_dataset=client_dataset,
        test=_test_batches(dataset(tf.constant(held_out))),
        notes=(
            f"{why} runs on the {len(labels):,} handwritten digits inside scikit-learn, {len(ids)} writers' forms, "
            "enlarged from 8x8 to 28x28 pixels. Real digits, but few: expect other figures than EMNIST's.",
        ),
    )


def _enlarge(image: tf.Tensor, label: tf.Tensor):
    ink = tf.image.resize(tf.cast(image, tf.float32)[..., tf.newaxis] / 16, [28, 28])[..., 0]
    return {"pixels": 1 - ink, "label": label}
