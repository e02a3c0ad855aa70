"""The README is short, and its examples run as they stand."""

import re

import pytest
from conftest import ROOT

import tff_kit
from tff_kit.tasks.emnist import data as emnist


def test_it_is_three_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def _examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_the_first_example_trains_and_evaluates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(emnist, "_DOWNLOAD", "http://127.0.0.1:9/emnist_all.sqlite.lzma")  # A closed port: scikit-learn's digits.
    shorter = _examples()[0].replace("rounds=20", "rounds=1")
    assert shorter != _examples()[0]
    exec(compile(shorter, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("{'accuracy': 0.")


@pytest.mark.slow
def test_the_example_of_an_own_model_and_own_data_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = [text for text in _examples() if "tff_kit.Experiment" in text]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert tff_kit.evaluate(names["MyTask"](), names["run"])["accuracy"] > 0.85
    rows = names["run"].read_metrics()
    assert rows[-1]["aggregate_bits"] < rows[-1]["broadcast_bits"] < 20 * 5 * 650 * 32 / 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("{'accuracy': 0.")
