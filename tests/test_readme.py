"""The README says what the results say, and its example of an own task runs as it stands."""

import re

import pytest
from conftest import ROOT

import tff_kit
from tff_kit.tasks.emnist import data as emnist


@pytest.mark.parametrize(
    "name",
    [
        "emnist_accuracy.md",
        "round_time.md",
        "kws_accuracy_1s.md",
        "kws_accuracy_1s_2_copies.md",
        "kws_accuracy_30s.md",
        "round_time_kws_1s.md",
        "round_time_kws_30s.md",
        "bits_to_accuracy_emnist.md",
        "bits_to_accuracy_kws-1s.md",
        "bits_to_accuracy_kws-30s.md",
        "encoder_time.md",
        "kws_splits.md",
        "faults.md",
        "many_clients.md",
        "peers.md",
        "memory.md",
    ],
)
def test_tables_are_those_of_the_results(name):
    text = (ROOT / "README.md").read_text()
    table = [line for line in (ROOT / "results" / name).read_text().splitlines() if line.startswith("|")]
    assert table
    assert [line for line in table if line not in text.splitlines()] == []


def _examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_first_example_trains_and_evaluates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(emnist, "_DOWNLOAD", "http://127.0.0.1:9/emnist_all.sqlite.lzma")  # A closed port: scikit-learn's digits.
    shorter = _examples()[0].replace("rounds=20", "rounds=1")
    assert shorter != _examples()[0]
    exec(compile(shorter, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("{'accuracy': 0.")


def test_the_example_of_an_own_model_and_own_data_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = [text for text in _examples() if "tff_kit.Experiment" in text]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert tff_kit.evaluate(names["MyTask"](), names["run"])["accuracy"] > 0.85
    rows = names["run"].read_metrics()
    assert rows[-1]["aggregate_bits"] < rows[-1]["broadcast_bits"] < 20 * 5 * 650 * 32 / 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("{'accuracy': 0.")
