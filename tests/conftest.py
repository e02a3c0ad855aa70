"""Data that tests share."""

import os
import pathlib
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared():
    """The folder of real data that developers have beside the project; users have none."""
    folder = pathlib.Path(os.environ.get("TFF_KIT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs the developers' data")
    return folder


@pytest.fixture(scope="session")
def writers(shared, tmp_path_factory):
    """A cache folder with the digits of 700 writers."""
    folder = tmp_path_factory.mktemp("mnist-by-writer")
    subprocess.run([sys.executable, shared / "tools/make_data.py", "emnist", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def small_cache(tmp_path):
    """A cache folder with twelve clients of a few real digits each, one of them without any."""
    folder = tmp_path / "cache"
    folder.mkdir()
    write_cache(folder / "emnist_all.sqlite", clients=12, examples=20, empty=("client03",))
    return folder


def write_cache(path, clients, examples, empty=(), nan=()):
    """Writes TFF's EMNIST database from scikit-learn's digits; pixels of the clients in `nan` are not numbers."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = tf.image.resize(digits.images[..., None] / 16, [28, 28]).numpy()[..., 0]
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)")
        database.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        for client in range(clients):
            name = f"client{client:02d}"
            rows = [] if name in empty else range(client * examples, (client + 1) * examples)
            for split, kept in (("train", [r for r in rows if r % 5]), ("test", [r for r in rows if not r % 5])):
                split = f"digits_only_{split}"
                for row in kept:
                    pixels = np.full(784, np.nan) if name in nan and split.endswith("train") else 1 - images[row].ravel()
                    database.execute("INSERT INTO examples VALUES (?, ?, ?)", (split, name, _example(pixels, digits.target[row])))
                database.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (name, split, len(kept)))


def _example(pixels, label):
    features = {
        "pixels": tf.train.Feature(float_list=tf.train.FloatList(value=pixels)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def run_python(*arguments, **options):
    """Runs the project's Python on `arguments` as a user would; returns the finished process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, text=True, capture_output=True, timeout=300, check=False, **options
    )
