"""The documents' examples run as they stand, and pages that are written from the code are those of today's code."""

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from sklearn.datasets import load_diabetes
from tensorboard.backend.event_processing import event_accumulator

import tff_kit
from scripts import settings_page


def _code(page: str, language: str, containing: str) -> str:
    """Returns the one block of code on a page that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if containing in block]
    return block


def _run(page: str, containing: str) -> dict:
    names: dict = {}
    exec(compile(_code(page, "python", containing), page, "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page_of_settings_has_todays_settings():
    assert settings_page.PAGE.read_text() == settings_page.page()


@pytest.mark.slow
def test_an_old_page_of_settings_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settings_page, "PAGE", tmp_path / "settings.md")
    assert settings_page.main(["--check"]) == 1
    assert "make settings" in capsys.readouterr().err
    assert settings_page.main([]) == 0
    assert settings_page.main(["--check"]) == 0


@pytest.mark.slow
def test_the_tutorials_example_trains(capsys):
    names = _run("docs/tutorial.md", "set_sizing_environment")
    assert names["metrics"]["client_work"]["train"]
    assert capsys.readouterr().out.splitlines()[-1].endswith(" Mibit")


@pytest.mark.slow
def test_an_encoder_of_ones_own_trains(folder):
    run = _run("docs/extending.md", "class SignStage")["run"]
    sizes = [variable.shape.num_elements() for variable in run.load_model().weights]
    large = [size for size in sizes if size > 10_000]
    small = sum(size for size in sizes if size <= 10_000)
    # A bit for each number, packed to bytes, and a size of 32 bits; 384 bits of scalars beside the weights.
    expected = 2 * (sum(8 * -(-size // 8) + 32 for size in large) + 32 * small + 384)
    assert run.read_metrics()[-1]["aggregate_bits"] == expected


@pytest.mark.slow
def test_an_aggregation_of_ones_own_trains(folder):
    names = _run("docs/extending.md", "class MedianFactory")
    process = names["MedianFactory"]().create(names["tff"].to_type((np.float32, (np.float32, [2]))))
    values = [(1.0, (0.0, 5.0)), (7.0, (1.0, 6.0)), (2.0, (100.0, -3.0)), (3.0, (2.0, 4.0))]
    output = process.next(process.initialize(), values)
    assert output.result[0] == 2.5
    assert list(output.result[1]) == [1.5, 4.5]
    assert len(names["run"].read_metrics()) == 2


@pytest.mark.slow
def test_a_server_optimizer_of_ones_own_trains(folder):
    run = _run("docs/extending.md", "class RmsPropDigits")["run"]
    plain = tff_kit.train(tff_kit.Emnist(data="digits", rounds=2, clients=3, filters=4, server_lr=0.01), folder / "plain")
    assert run.read_metrics()[0]["train_loss"] == plain.read_metrics()[0]["train_loss"]
    assert run.read_metrics()[1]["train_loss"] != plain.read_metrics()[1]["train_loss"]


@pytest.mark.process
def test_the_task_of_the_diff_trains_and_shows_its_own_metric(folder):
    shutil.copytree(ROOT / "tff_kit", folder / "tff_kit", ignore=shutil.ignore_patterns("__pycache__"))
    diff = _code("docs/extending.md", "diff", "class Diabetes")
    subprocess.run(["git", "apply", "--recount", "--unidiff-zero", "-"], input=diff, text=True, check=True, cwd=folder)
    command = [sys.executable, "-m", "tff_kit"]
    settings = ["--rounds", "20", "--mean", "uniform:8", "--threshold", "5", "--logdir", "run"]
    trained = subprocess.run([*command, "train", "diabetes", *settings], cwd=folder, text=True, capture_output=True, check=True)
    assert "accuracy" not in trained.stdout and "mean absolute error" in " ".join(trained.stdout.split())
    with open(folder / "run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    error = float(rows[-1]["test_mean_absolute_error"])
    assert error < np.mean(_diabetes_errors())
    curves = event_accumulator.EventAccumulator(str(folder / "run"), {event_accumulator.TENSORS: 0}).Reload()
    (last,) = [point for point in curves.Tensors("test_mean_absolute_error") if point.step == 20]
    assert tf.make_ndarray(last.tensor_proto) == np.float32(error)
    assert not [name for name in curves.Tags()["tensors"] if "accuracy" in name]
    evaluation = [*command, "evaluate", "diabetes", "--model", "run"]
    evaluated = json.loads(subprocess.check_output(evaluation, cwd=folder, text=True))
    assert evaluated.keys() == {"mean_absolute_error", "loss", "examples"}
    assert evaluated["mean_absolute_error"] == pytest.approx(error, rel=1e-6)


def _diabetes_errors() -> tuple[float, float]:
    """Returns the mean absolute errors of predicting the mean, and of least squares on all training patients together."""
    x, y = load_diabetes(return_X_y=True)
    held_out = np.arange(len(x)) % 5 == 0
    x, y = np.c_[x, np.ones(len(x))], y / 100
    weights = np.linalg.lstsq(x[~held_out], y[~held_out], rcond=None)[0]
    return np.abs(y[held_out] - y[~held_out].mean()).mean(), np.abs(y[held_out] - x[held_out] @ weights).mean()
