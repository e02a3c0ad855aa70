"""MNIST by writer, built from files in the layout of MNIST's and QMNIST's."""

import contextlib
import gzip
import hashlib
import http.server
import runpy
import sqlite3
import struct
import threading

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from tff_kit.datasets import DataError
from tff_kit.tasks.emnist import data as emnist
from tff_kit.tasks.emnist import mnist_by_writer

FILES = ("train-images-idx3-ubyte", "qmnist-train-labels-idx2-int", "t10k-images-idx3-ubyte", "qmnist-test-labels-idx2-int")
OTHER = 2112  # No writer of the results.


def _idx(array, code):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def _write_source(folder, images, labels, writers, names=FILES, packed=True):
    """Writes digits in the order of their writers as MNIST's shuffled training and test files, and QMNIST's labels of them."""
    folder.mkdir(exist_ok=True)
    rows = np.zeros([len(labels), 8], ">i4")
    rows[:, 0], rows[:, 2] = labels, writers
    rows[:, 3] = [np.sum(writers[:i] == writer) for i, writer in enumerate(writers)]
    shuffled = np.random.default_rng(0).permutation(len(labels))
    train, test = np.split(shuffled, [len(labels) * 6 // 7])
    for name, array, code in zip(names, (images[train], rows[train], images[test], rows[test]), (0x08, 0x0C, 0x08, 0x0C)):
        content = _idx(array, code)
        (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
    return folder


def _digits(writers, each=20):
    """Returns scikit-learn's digits, enlarged without blur, of `each` in turn by one of `writers`."""
    found = load_digits()
    count = len(writers) * each
    images = np.pad(np.kron(found.images[:count], np.ones([3, 3])), [(0, 0), (2, 2), (2, 2)])
    return (images * 255 // 16).astype(np.uint8), found.target[:count], np.repeat(writers, each)


def _examples(database, split):
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT client_id, serialized_example_proto FROM examples WHERE split_name = ? ORDER BY rowid", (split,)
        ).fetchall()
    parsed = [tf.train.Example.FromString(proto).features.feature for _, proto in rows]
    return (
        [client for client, _ in rows],
        [example["label"].int64_list.value[0] for example in parsed],
        np.array([example["pixels"].float_list.value for example in parsed], np.float32),
    )


@pytest.fixture
def closed(monkeypatch, tmp_path):
    """No network: closed ports for the downloads, and an empty home."""
    for name in ("_MNIST", "_QMNIST"):
        monkeypatch.setattr(mnist_by_writer, name, "http://127.0.0.1:9/")
    closed = {name: ("http://127.0.0.1:9/", sha256) for name, (_, sha256) in mnist_by_writer._DOWNLOADS.items()}
    monkeypatch.setattr(mnist_by_writer, "_DOWNLOADS", closed)
    monkeypatch.setattr(emnist, "_DOWNLOAD", "http://127.0.0.1:9/emnist_all.sqlite.lzma")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_writers_digits_are_in_order_and_every_tenth_is_held_out(tmp_path, closed):
    images, labels, writers = _digits([1, 2, OTHER, 2599], each=25)
    folder = _write_source(tmp_path / "files", images, labels, writers)
    data = emnist.load(str(folder))
    assert data.client_ids == ("f0001", "f0002", "f2599")
    kept = np.flatnonzero(writers != OTHER)
    held_out = np.isin(np.arange(100) % 25, (5, 15))
    for split, rows in (("train", kept[~held_out[kept]]), ("test", kept[held_out[kept]])):
        clients, found, pixels = _examples(folder / "emnist_all.sqlite", f"digits_only_{split}")
        assert clients == [f"f{writer:04d}" for writer in writers[rows]]
        assert found == labels[rows].tolist()
        np.testing.assert_array_equal(pixels, 1 - images[rows].reshape(-1, 784).astype(np.float32) / 255)
    batch, target = next(iter(data.client_dataset(tf.constant("f0002"), tf.constant(0, tf.int64)).as_numpy_iterator()))
    assert batch.shape == (20, 28, 28, 1)
    assert len(target) == 20
    assert data.notes == (
        "These 75 digits of 3 writers are not the 58,048 of 700 writers, in their order, that the project's results are on: "
        "expect other figures.",
    )


def test_files_may_be_unpacked_and_images_qmnists(tmp_path, closed):
    names = ("qmnist-train-images-idx3-ubyte", FILES[1], "qmnist-test-images-idx3-ubyte", FILES[3])
    digits = _digits([1, 2])
    packed = _write_source(tmp_path / "packed", *digits)
    unpacked = _write_source(tmp_path / "unpacked", *digits, names=names, packed=False)
    for folder in (packed, unpacked):
        mnist_by_writer.build(folder, folder / "x.sqlite")
    first, second = (_examples(folder / "x.sqlite", "digits_only_train") for folder in (packed, unpacked))
    assert first[:2] == second[:2]
    np.testing.assert_array_equal(first[2], second[2])


def test_test_digits_that_mnist_does_not_have_are_left_out(tmp_path, closed, monkeypatch):
    folder = _write_source(tmp_path / "files", *_digits([1, 2], each=35))
    monkeypatch.setattr(mnist_by_writer, "_MNIST_TEST_DIGITS", 4)
    mnist_by_writer.build(folder, folder / "x.sqlite")
    assert sum(len(_examples(folder / "x.sqlite", f"digits_only_{split}")[0]) for split in ("train", "test")) == 60 + 4


def test_the_same_database_as_the_developers_script(tmp_path, shared, closed):
    archive = np.load(shared / "data" / "digits_by_writer.npz")
    kept = np.isin(archive["writer"], (1, 2, 250, 2101, 2599))
    digits = {name: archive[name][kept] for name in ("images", "labels", "writer")}
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "digits_by_writer.npz", **digits)
    runpy.run_path(str(shared / "tools" / "make_data.py"))["emnist"](tmp_path / "npz", tmp_path)
    folder = _write_source(tmp_path / "files", *digits.values())
    mnist_by_writer.build(folder, folder / "emnist_all.sqlite")
    for split in ("digits_only_train", "digits_only_test"):
        ours, theirs = (_examples(path / "emnist_all.sqlite", split) for path in (folder, tmp_path))
        assert ours[:2] == theirs[:2]
        np.testing.assert_array_equal(ours[2], theirs[2])


def test_the_writers_and_checksums_are_those_of_the_results(shared):
    archive = np.load(shared / "data" / "digits_by_writer.npz")
    np.testing.assert_array_equal(mnist_by_writer.writers(), np.unique(archive["writer"]))
    digits = mnist_by_writer._Digits(archive["images"], archive["labels"], archive["writer"])
    assert mnist_by_writer._differences(digits) == []
    other = digits._replace(images=digits.images // 2)
    assert mnist_by_writer._differences(other) == [
        "The digits are those of the project's results, but not their pixels: QMNIST made MNIST's images anew."
    ]


def test_mnist_by_writer_is_fetched_checked_and_kept(tmp_path, monkeypatch):
    files = _write_source(tmp_path / "files", *_digits([1, 2]))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(files))

        def log_message(self, *arguments):
            asked.append(self.path)

    monkeypatch.setenv("HOME", str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        sha256 = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.iterdir()}
        assert set(sha256) == set(mnist_by_writer._DOWNLOADS)
        monkeypatch.setattr(mnist_by_writer, "_DOWNLOADS", {name: (address, digest) for name, digest in sha256.items()})
        data = emnist.load("mnist-by-writer")
        assert emnist.load("mnist-by-writer").client_ids == data.client_ids == ("f0001", "f0002")
        server.shutdown()
    assert len(asked) == 4
    assert data.name == "digits of 2 writers in mnist-by-writer"
    assert sorted(path.name for path in (tmp_path / ".tff/mnist-by-writer").iterdir()) == sorted([*sha256, "emnist_all.sqlite"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "Expected qmnist-train-labels-idx2-int.gz in .*, found neither there nor over the network"),
        (lambda path: path.write_bytes(b"no gzip"), "Expected an idx file with 2 dimensions in .*, found Not a gzipped file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "found Compressed file ended before"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03" + bytes(12))), "one that begins with 00 00 08 03"),
        (lambda path: path.write_bytes(gzip.compress(_idx(np.zeros([3, 8], ">i4"), 0x0C)[:-1])), "107 bytes of 108"),
        (lambda path: path.write_bytes(gzip.compress(_idx(np.zeros([3, 8], ">i4"), 0x0C))), "found images .* and labels .3, 8."),
    ],
    ids=["missing", "no gzip", "cut", "other idx", "short", "other length"],
)
def test_a_bad_file_gets_one_sentence_and_leaves_nothing(tmp_path, closed, spoil, message):
    folder = _write_source(tmp_path / "files", *_digits([1, 2]))
    spoil(folder / "qmnist-train-labels-idx2-int.gz")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(DataError, match=message):
        emnist.load(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == before
