"""The example of docs/encoders.md runs and sends what it says."""

import re

from conftest import ROOT


def test_the_example_of_an_own_stage_trains(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/encoders.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, "docs/encoders.md", "exec"), names)
    measured = names["metrics"]["aggregator"]["mean_value"]
    assert measured["bits_per_client"] == 640 + 32 + 10 * 32
    assert 0 < measured["distortion"] < 1
    assert "bits_per_client" in capsys.readouterr().out
