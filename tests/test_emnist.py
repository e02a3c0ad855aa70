"""Digits by writer: what is loaded, from where, and what is said when it can't be."""

import functools
import http.server
import lzma
import sqlite3
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from conftest import write_cache
from sklearn.datasets import load_digits

from tff_kit.datasets import DataError
from tff_kit.tasks.emnist import data as emnist
from tff_kit.tasks.emnist.model import create_original_fedavg_cnn_model

FILE = "emnist_all.sqlite"


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A closed port for the download's address, and an empty home."""
    monkeypatch.setattr(emnist, "_DOWNLOAD", "http://127.0.0.1:9/emnist_all.sqlite.lzma")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def _batches(data, client, seed=0):
    return list(data.client_dataset(tf.constant(client), tf.constant(seed, tf.int64)).as_numpy_iterator())


@pytest.mark.slow
def test_the_digits_of_scikit_learn_are_whole_real_and_held_out_apart():
    data = emnist.load("digits", batch_size=7)
    train = [batch for client in data.client_ids for batch in _batches(data, client)]
    test = list(data.test.as_numpy_iterator())
    images, labels = (np.concatenate([batch[part] for batch in train + test]) for part in (0, 1))
    assert len(data.client_ids) == 14
    assert images.shape == (1797, 28, 28, 1)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() == 1  # The background.
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(load_digits().target))
    assert 0.09 < sum(len(batch[1]) for batch in test) / 1797 < 0.11
    assert len(np.unique(images.reshape(1797, -1).round(4), axis=0)) == len(np.unique(load_digits().data, axis=0))
    assert any("1,797" in note and "scikit-learn" in note for note in data.notes)


def test_forms_begin_as_the_writers_did():
    # Every writer's form begins with the digits in order, three times; a few are mislabelled.
    target = load_digits().target
    for start in emnist._FORM_STARTS:
        assert np.sum(target[start : start + 30] == np.tile(np.arange(10), 3)) >= 10
        np.testing.assert_array_equal(target[start + 10 : start + 13], [0, 1, 2])


def test_a_cache_is_read_as_the_tutorial_does(small_cache):
    data = emnist.load(str(small_cache), batch_size=5, local_epochs=2)
    batches = _batches(data, "client00")
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 5, 5, 2]  # 16 examples twice.
    assert batches[0][0].shape == (5, 28, 28, 1)
    assert data.element_spec[0].shape.as_list() == [None, 28, 28, 1]
    expected = [load_digits().target[row] for row in range(20) if row % 5]
    np.testing.assert_array_equal(np.sort(np.concatenate([labels for _, labels in batches])), np.sort(expected * 2))


def test_the_order_of_examples_follows_the_seed(small_cache):
    data = emnist.load(str(small_cache))
    first, again, other = (_batches(data, "client01", seed)[0][1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_client_without_examples_is_left_out_and_named(small_cache):
    data = emnist.load(str(small_cache))
    assert "client03" not in data.client_ids
    assert len(data.client_ids) == 11
    assert data.notes == ("1 client without examples left out.",)


@pytest.mark.slow
def test_the_writers_are_all_there(cache_of_writers):
    data = emnist.load(str(cache_of_writers(700)))
    assert len(data.client_ids) == 700
    assert sum(len(labels) for _, labels in data.test) == 5773
    assert "700 writers" in data.name


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "not a database", "empty", "other tables"])
def test_a_broken_file_is_named(small_cache, damage):
    path = small_cache / FILE
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "overwritten":
        content[8192 : len(content) - 4096] = bytes(len(content) - 12288)
        path.write_bytes(content)
    elif damage == "not a database":
        path.write_text("<html>404</html>" * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE other (x)")
    with pytest.raises(DataError, match=f"Expected a database of client examples in .*{FILE}, found"):
        emnist.load(str(small_cache))


def test_a_missing_split_is_named_with_those_there_are(small_cache):
    with pytest.raises(DataError, match="no split 'all_train'; it has digits_only_test, digits_only_train"):
        emnist.load(str(small_cache), only_digits=False)


def test_without_cache_and_network_auto_falls_back_and_says_so(no_network):
    data = emnist.load("auto")
    assert "scikit-learn" in data.name
    assert "EMNIST is not here" in data.notes[0]
    assert "refused" in data.notes[0]


@pytest.mark.parametrize("data", ["emnist", "."])
def test_without_cache_and_network_nothing_else_falls_back(no_network, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="Expected EMNIST as emnist_all.sqlite in .*refused.*--data digits"):
        emnist.load(data)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(DataError, match="found 'no-such-folder', and no such folder"):
        emnist.load("no-such-folder")


def test_the_digits_have_no_letters(no_network):
    with pytest.raises(DataError, match="Expected 62 classes"):
        emnist.load("digits", only_digits=False)


class _Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, or only its first half and then falls silent."""

    def __init__(self, content, stall, *arguments):
        self._content, self._stall = content, stall
        super().__init__(*arguments)

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self._content)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self._content[: len(self._content) // 2] if self._stall else self._content)
        if self._stall:
            self.wfile.flush()
            threading.Event().wait(5)

    def log_message(self, *arguments):
        pass


@pytest.fixture(params=[False, True])
def served(request, tmp_path, monkeypatch):
    """An address that serves a small EMNIST, stalling or not; yields whether it stalls."""
    write_cache(tmp_path / "source.sqlite", clients=3, examples=10)
    content = lzma.compress((tmp_path / "source.sqlite").read_bytes())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Server, content, request.param))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{FILE}.lzma"
    original = tff.simulation.datasets.emnist.load_data
    fetch = original.__globals__["download"].get_compressed_file
    monkeypatch.setitem(
        original.__globals__,
        "download",
        type("Download", (), {"get_compressed_file": staticmethod(lambda origin, cache_dir: fetch(address, cache_dir))}),
    )
    monkeypatch.setattr(emnist, "_DOWNLOAD", address)
    monkeypatch.setattr(emnist, "_STALL_SECONDS", 0.5)
    yield request.param
    server.shutdown()


def test_a_download_arrives_whole_or_leaves_nothing(served, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    if served:
        with pytest.raises(DataError, match="the download broke off: .*timed out"):
            emnist.load(str(folder))
        assert list(folder.iterdir()) == []
    else:
        assert len(emnist.load(str(folder)).client_ids) == 3
        assert [path.name for path in folder.iterdir()] == [FILE]


@pytest.mark.parametrize("filters", [32, 8])
def test_layers_are_in_proportion_to_the_first(filters):
    convolutions = 25 * filters + filters, 25 * filters * 2 * filters + 2 * filters
    dense = 7 * 7 * 2 * filters * 16 * filters + 16 * filters, 16 * filters * 10 + 10
    model = create_original_fedavg_cnn_model(filters=filters)
    assert model.count_params() == sum(convolutions) + sum(dense)
