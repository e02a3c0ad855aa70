"""Training without federation, on synthetic embeddings: the best epoch, going on after a kill, starting from a head."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf

import tff_kit
from tff_kit import __main__ as command_line
from tff_kit.tasks.keywords import embed
from tff_kit.tasks.keywords import head as kws_head
from tff_kit.training import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(embed.demo(tmp_path_factory.mktemp("demo") / "store", clients=3, clips_per_client=60).folder)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """Three epochs by the command line."""
    logdir = tmp_path_factory.mktemp("centralized") / "run"
    arguments = ["--data", store, "--window", "1s", "--epochs", "3", "--seed", "5", "--logdir", str(logdir)]
    assert command_line.main(["train", "kws-centralized", *arguments]) == 0
    return runs.RunDirectory(logdir)


def _rows(run):
    with open(run.metrics, newline="") as file:
        return list(csv.DictReader(file))


def _weights(run):
    return tf.keras.models.load_model(run.model, compile=False).get_weights()


def _train(store, logdir, **settings):
    resume = settings.pop("resume", False)
    training = tff_kit.CentralizedKeywordSpotting(data=store, window="1s", **settings)
    return tff_kit.train_centralized(training, logdir, resume=resume)


def test_loss_falls_and_the_run_directory_says_everything(run, store):
    rows = _rows(run)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    settings = json.loads(run.settings.read_text())
    assert settings["settings"]["data"] == store
    assert "synthetic" in settings["data"]
    assert list(run.path.rglob("events.out.tfevents.*"))


def test_evaluate_repeats_the_final_test(run, capsys):
    assert command_line.main(["evaluate", "kws-centralized", "--model", str(run.path)]) == 0
    found = json.loads(capsys.readouterr().out)
    tested = json.loads((run.path / "test.json").read_text())
    assert found["examples"] == tested["examples"] == 60
    assert found["accuracy"] == pytest.approx(tested["accuracy"])


def test_the_epoch_is_kept_that_validates_best(run, store, tmp_path):
    best = max(range(3), key=lambda epoch: float(_rows(run)[epoch]["val_sparse_categorical_accuracy"]))
    ended_there = _train(store, tmp_path / "run", epochs=best + 1, seed=5)
    for kept, expected in zip(_weights(run), _weights(ended_there)):
        np.testing.assert_array_equal(kept, expected)


def test_a_stopped_run_goes_on_to_the_same_weights(run, store, tmp_path):
    _train(store, tmp_path / "run", epochs=1, seed=5)
    resumed = _train(store, tmp_path / "run", epochs=3, seed=5, resume=True)
    assert _rows(resumed) == _rows(run)
    for found, expected in zip(_weights(resumed), _weights(run)):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def scratch(store, tmp_path_factory):
    """One epoch from weights drawn by chance."""
    return _train(store, tmp_path_factory.mktemp("centralized") / "scratch", epochs=1, seed=6)


@pytest.mark.parametrize("name", ["model.keras", "model.safetensors"])
def test_training_starts_from_a_head(run, scratch, store, tmp_path, name):
    first = _train(store, tmp_path / "run", epochs=1, seed=6, checkpoint=str(run.path / name))
    assert float(_rows(first)[0]["loss"]) < float(_rows(scratch)[0]["loss"])


def test_the_head_is_saved_for_pytorch_too(run):
    head = kws_head.create_kws_head(50)
    kws_head.load_safetensors(head, run.path / "model.safetensors")
    for found, expected in zip(head.get_weights(), _weights(run)):
        np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_started_from_is_refused_and_nothing_written(store, tmp_path, capsys):
    other = kws_head.create_kws_head(1500)
    kws_head.save_safetensors(other, tmp_path / "other.safetensors")
    (tmp_path / "classifier.pt").write_bytes(b"PK")
    for name in ("other.safetensors", "missing.keras", "classifier.pt"):
        arguments = ["--data", store, "--window", "1s", "--checkpoint", str(tmp_path / name), "--logdir", str(tmp_path / "run")]
        assert command_line.main(["train", "kws-centralized", *arguments]) == 2
        assert "Expected weights of kws-centralized's model in --checkpoint" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_federated_and_centralized_runs_are_not_taken_for_each_other(run, capsys):
    assert command_line.main(["evaluate", "kws", "--model", str(run.path)]) == 2
    assert "found one of kws-centralized" in capsys.readouterr().err


def test_without_data_the_way_to_it_is_told(tmp_path, capsys):
    for task in ("kws", "kws-centralized"):
        assert command_line.main(["train", task, "--data", str(tmp_path / "none"), "--logdir", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert "make embeddings" in error
        assert "demo" in error
        assert not (tmp_path / "run").exists()


def test_partitions_are_drawn_by_command(store, tmp_path, capsys):
    assert command_line.main(["plot", "partitions", "--data", store, "--out", str(tmp_path / "plots")]) == 0
    for path in capsys.readouterr().out.split():
        assert tf.io.decode_png(tf.io.read_file(path)).shape[2] == 4
