"""The README says what the results say."""

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "name", ["emnist_accuracy.md", "round_time.md", "kws_accuracy.md", "round_time_kws_1s.md", "bits_to_accuracy.md"]
)
def test_tables_are_those_of_the_results(name):
    text = (ROOT / "README.md").read_text()
    table = [line for line in (ROOT / "results" / name).read_text().splitlines() if line.startswith("|")]
    assert table
    assert [line for line in table if line not in text.splitlines()] == []
