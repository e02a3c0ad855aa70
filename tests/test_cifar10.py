"""CIFAR-10: the archive's batches, how they are shared out, the two networks, and a training."""

import json
import pickle

import numpy as np
import pytest
import tensorflow as tf

import tff_kit
from tff_kit import __main__ as command_line
from tff_kit.datasets import DataError
from tff_kit.datasets.partitioning import split_by_class, split_evenly
from tff_kit.tasks.cifar10 import Cifar10, data, model

LABELS = np.random.default_rng(0).integers(10, size=2000)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A folder as the archive unpacks to, of 100 synthetic pictures a batch."""
    folder = tmp_path_factory.mktemp("cifar10")
    (folder / "cifar-10-batches-py").mkdir()
    train, test = data._demo_records()
    for i, name in enumerate(("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")):
        records = test[:100] if name == "test_batch" else train[100 * i : 100 * i + 100]
        batch = {b"batch_label": name.encode(), b"labels": records[:, 0].tolist(), b"data": records[:, 1:]}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


@pytest.mark.parametrize("split", [split_evenly, lambda labels, n, seed: split_by_class(labels, n, 0.1, seed)])
def test_every_example_has_one_client(split):
    parts = split(LABELS, 7, 3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(2000))
    assert {len(part) for part in parts} == {2000 // 7, 2000 // 7 + 1}
    assert all(np.array_equal(x, y) for x, y in zip(parts, split(LABELS, 7, 3)))
    assert not all(np.array_equal(x, y) for x, y in zip(parts, split(LABELS, 7, 4)))


def test_a_smaller_concentration_gives_clients_fewer_classes():
    def largest_share(concentration):
        parts = split_by_class(LABELS, 20, concentration, 0)
        return np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts])

    # A Dirichlet distribution of concentration a over k classes has shares of variance (k - 1) / (k^2 (k a + 1)).
    assert largest_share(0.05) > 0.6
    assert 0.2 < largest_share(1.0) < 0.45
    assert largest_share(1000.0) < 0.2
    with pytest.raises(DataError, match="an example for each of 2,001 clients, found 2,000"):
        split_evenly(LABELS, 2001, 0)


def test_a_client_reads_its_own_pictures(archive):
    loaded = data.load(str(archive), clients=4, batch_size=32, local_epochs=2)
    assert loaded.client_ids == ("0000", "0001", "0002", "0003")
    pixels, labels = [], []
    for client in loaded.client_ids:
        batches = list(loaded.client_dataset(tf.constant(client), tf.constant(1, tf.int64)).as_numpy_iterator())
        assert [len(x) for _, x in batches] == [32] * 7 + [26]  # 125 pictures twice.
        first_epoch = np.concatenate([x for x, _ in batches])[:125]
        pixels.append(first_epoch)
        labels.append(np.concatenate([y for _, y in batches])[:125])
    train, test = data._demo_records()
    planes = train[:500, 1:].reshape(-1, 3, 32, 32)
    restored = np.rint((np.concatenate(pixels) + 1) * 127.5).astype(np.uint8)  # Red, green and blue come last.
    assert sorted(map(bytes, restored)) == sorted(map(bytes, np.moveaxis(planes, 1, 3)))
    assert sorted(np.concatenate(labels)) == sorted(train[:500, 0])
    assert np.array_equal(np.concatenate([y for _, y in loaded.test.as_numpy_iterator()]), test[:100, 0])


def test_a_batch_that_would_run_code_is_refused(archive, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Harmful(), b"labels": [0]}, protocol=2))
    with pytest.raises(DataError, match="Expected a batch of CIFAR-10's Python version in .*data_batch_1, found: the name"):
        data.load(str(tmp_path))
    assert not (tmp_path / "written").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({b"data": np.zeros([2, 5], np.uint8), b"labels": [1, 2]})])
def test_a_broken_batch_is_named(content, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1, found"):
        data.load(str(tmp_path))


@pytest.mark.slow
def test_networks_have_the_weights_that_they_should():
    assert model.create_net(0).count_params() == 62_006  # The text's Net.
    assert model.create_resnet18(0).count_params() == 11_173_962  # A ResNet-18 for 32 x 32 with normalization.
    for create in (model.create_net, model.create_resnet18):
        first, second, other = (create(seed).get_weights() for seed in (0, 0, 1))
        assert all(np.array_equal(x, y) for x, y in zip(first, second))
        kernels = [(x, y) for x, y in zip(first, other) if x.ndim > 1]
        assert not any(np.array_equal(x, y) for x, y in kernels)
        drawn = [x.ravel()[:50].tobytes() for x, _ in kernels]
        assert len(set(drawn)) == len(drawn)


@pytest.mark.slow
def test_training_and_evaluation_on_the_command_line(tmp_path, capsys):
    arguments = [
        "--data",
        "demo",
        "--partitions",
        "3",
        "--clients",
        "2",
        "--rounds",
        "3",
        "--client-lr",
        "0.05",
        "--mean",
        "uniform:8",
    ]
    assert command_line.main(["train", "cifar10", *arguments, "--logdir", str(tmp_path / "run")]) == 0
    assert "synthetic pictures, 3 clients" in capsys.readouterr().out
    assert command_line.main(["evaluate", "cifar10", "--model", str(tmp_path / "run")]) == 0
    tested = json.loads(capsys.readouterr().out)
    assert tested["examples"] == 300
    assert tested["accuracy"] > 0.3  # Stripes are easy; chance is 0.1.
    assert command_line.main(["train", "cifar10", "--data", str(tmp_path / "nothing")]) == 2
    assert "a folder that holds cifar-10-batches-py; found none" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_of_the_sharing_out(tmp_path, capsys):
    assert command_line.main(["plot", "cifar10", "--data", "demo", "--concentration", "0.5", "--out", str(tmp_path)]) == 0
    names = [line.split("/")[-1] for line in capsys.readouterr().out.split()]
    assert names == ["pictures_per_client.png", "classes_per_client.png"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)


def test_the_default_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    loaded = Cifar10().load_data()
    assert loaded.name == "synthetic pictures, 2 clients"
    assert "CIFAR-10 is not here (Expected to fetch http://127.0.0.1:9/" in loaded.notes[0]
    assert tff_kit.Experiment in Cifar10.__mro__
