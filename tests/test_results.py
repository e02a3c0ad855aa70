"""Results files say where they come from, and the documents' tables are what the files say."""

import functools
import json
import subprocess

import pytest
import tyro
from conftest import ROOT

from benchmarks import __main__ as run_all
from benchmarks import bits_to_accuracy, coders, emnist_accuracy, results, tables, trained

_SOURCE = results.Source(command="python -m benchmarks.x", data="digits", seeds="0 to 1", spread="smallest and largest")
_ROWS = [
    {"encoder": "identity", "lr": 0.1, "accuracy": 0.96875, "bits": 53227872000, "points": None},
    {"encoder": "uniform:8", "lr": 0.1, "accuracy": 0.9375, "bits": 13464032000, "points": -3.125},
    {"encoder": "uniform:8", "lr": 0.02, "accuracy": 0.5, "bits": 13464032000, "points": -46.875},
]
_DOCUMENT = """# Results

<!-- table results/topic/x.csv
| both ways | accuracy | down | points |
| `{encoder}` | {accuracy:.3f} | {bits:bits} | {points:+.1f} |
where lr = 0.1
source no
-->
old
<!-- end -->
"""
_TABLE = """
| both ways | accuracy | down | points |
|---|---|---|---|
| `identity` | 0.969 | 49.57 Gibit |  |
| `uniform:8` | 0.938 | 12.54 Gibit | -3.1 |
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository of its own with one committed file of code, one document and one result."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "tff_kit").mkdir()
    (tmp_path / "tff_kit" / "code.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text(_DOCUMENT)
    for command in ("init -q", "add tff_kit", "-c user.name=a -c user.email=a@b commit -q -m first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    results.write("topic/x", _ROWS, _SOURCE)
    return tmp_path


def test_a_result_says_where_it_comes_from(root):
    described = json.loads((root / "results/topic/x.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    assert (described["command"], described["seeds"], described["commit"], described["changed"]) == (
        "python -m benchmarks.x", "0 to 1", head, False,
    )  # fmt: skip
    assert described["processor"] and described["cores"] and described["date"]
    assert described["versions"]["tensorflow_federated"] == "0.87.0"
    assert [row["bits"] for row in results.read(root / "results/topic/x.csv")] == ["53227872000", "13464032000", "13464032000"]


def test_a_result_is_current_until_the_code_changes(root):
    assert results.is_current("topic/x")
    assert not results.is_current("topic/y")
    (root / "tff_kit" / "code.py").write_text("x = 2\n")
    assert not results.is_current("topic/x")
    results.write("topic/x", _ROWS, _SOURCE)  # Measured with changes that no commit has: nobody can go back to that code.
    assert not results.is_current("topic/x")


def test_tables_are_written_from_the_files_and_a_changed_number_is_found(root, capsys):
    readme = root / "README.md"
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    written = readme.read_text()
    assert _TABLE in written
    assert tables.main(["--check"]) == 0
    readme.write_text(written.replace("0.969", "0.979"))
    assert tables.main(["--check"]) == 1
    assert "README.md: Expected its tables as `make tables` writes them" in capsys.readouterr().err
    assert "0.979" in readme.read_text()
    assert tables.main([]) == 0
    assert readme.read_text() == written


def test_a_file_changed_by_hand_is_found(root, capsys):
    file = root / "results/topic/x.csv"
    file.write_text(file.read_text().replace("0.96875", "0.97875"))
    assert tables.main([]) == 1
    assert "as its benchmark wrote it, found it changed since" in capsys.readouterr().err
    assert (root / "README.md").read_text() == _DOCUMENT


def test_the_line_below_a_table_says_when_and_where(root):
    assert tables.main([]) == 0
    assert "Measured" not in (root / "README.md").read_text()
    (root / "README.md").write_text(_DOCUMENT.replace("source no\n", ""))
    assert tables.main([]) == 0
    described = json.loads((root / "results/topic/x.json").read_text())
    (line,) = [line for line in (root / "README.md").read_text().splitlines() if line.startswith("Measured")]
    for part in (described["date"], described["commit"][:7], described["processor"], described["command"], "topic/x.csv"):
        assert part in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{accuracy:.3f}", "{acuracy:.3f}", "Expected one of the columns encoder, lr, accuracy, bits, points; found 'acuracy'"),
        ("{accuracy:.3f}", "{encoder:.3f}", "Expected a format that fits {encoder:.3f}"),
        ("lr = 0.1", "lr = 0.3", "Expected rows with lr = 0.3, found none"),
        ("lr = 0.1", "rate = 0.1", "found 'rate'"),
        ("lr = 0.1", "lr", "found 'where lr'"),
        ("| down |", "| down ", "Expected a header row and a row of as many cells"),
        ("<!-- end -->", "", "after 1 tables, found 0"),
        ("topic/x.csv", "topic/y.csv", "Expected a results file at"),
    ],
)
def test_a_marker_that_fits_no_file_gets_one_sentence(root, capsys, old, new, message):
    (root / "docs" / "page.md").write_text(_DOCUMENT.replace(old, new))
    assert tables.main([]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "page.md" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert (root / "docs" / "page.md").read_text() == _DOCUMENT.replace(old, new)


def test_the_documents_tables_are_those_of_the_results(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(results.RESULTS.rglob("*.csv")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_result_has_its_source(file):
    described = results.describe(file)
    assert {"command", "data", "seeds", "spread", "commit", "changed", "date", "processor", "cores", "versions"} <= set(described)
    assert results.read(file)


def test_a_result_of_unknown_circumstances_says_so(root):
    source = root / "results/topic/x.json"
    old = {
        **json.loads(source.read_text()),
        "changed": None,
        "processor": None,
        "date": "2026-11-21",
        "commit": "fc1857b2f94ea9f4",
    }
    source.write_text(json.dumps(old))
    (root / "README.md").write_text(_DOCUMENT.replace("source no\n", ""))
    assert tables.main([]) == 0
    text = (root / "README.md").read_text()
    assert "Measured before commit fc1857b of 2026-11-21, on " in text
    assert "of a processor that was not recorded" in text


# Benchmarks that need root, or another machine's or another TensorFlow's environment, and how their results' names begin.
BY_HAND = ("slow_link", "machines")
BY_HAND_RESULTS = ("deploy/slow_link", "deploy/codes_", "deploy/run_")


def test_every_result_is_written_by_make_results():
    written = {name for benchmark in run_all._BENCHMARKS for name in benchmark.writes}
    there = {f"{file.parent.name}/{file.stem}".replace("_runs", "") for file in results.RESULTS.rglob("*.csv")}
    assert there
    assert {name for name in there if not name.startswith(BY_HAND_RESULTS)} <= written


def test_every_benchmark_has_a_smoke_test():
    modules = {file.stem for file in (ROOT / "benchmarks").glob("*.py") if "def main(" in file.read_text()} - {
        "__main__",
        "tables",
        *BY_HAND,
    }
    tried = {benchmark.module for benchmark in run_all._BENCHMARKS if benchmark.quick is not None}
    assert tried == {*modules, "peers"}


@pytest.mark.parametrize("benchmark", run_all._BENCHMARKS, ids=lambda benchmark: benchmark.writes[0])
def test_the_arguments_of_make_results_are_understood(benchmark):
    where = dict.fromkeys(("emnist", "speech", "whisper", *run_all._STORES), "here")
    arguments = [argument.format(**where) for argument in benchmark.arguments]
    understood = tyro.cli(functools.wraps(run_all._load(benchmark).main)(lambda **settings: settings), args=arguments)
    assert [str(value) for value in understood.values()].count("here") == arguments.count("here")


def test_a_test_in_which_nothing_was_right_counts():
    rows = [{"round": 1, "test_accuracy": None}, {"round": 2, "test_accuracy": 0.0}, {"round": 3, "test_accuracy": 0.25}]
    assert [row["round"] for row in trained.tested(rows)] == [2, 3]


def _run(encoder, seed, accuracy, bits, **more):
    return {"mean": encoder, "seed": seed, "test_accuracy": accuracy, "broadcast_bits": bits, "aggregate_bits": bits, **more}


def test_accuracy_of_seeds_is_their_mean_with_the_smallest_and_the_largest():
    more = {"rounds": 5, "clients": 2}
    runs = [
        _run(encoder, seed, accuracy, bits, client_lr=lr, **more)
        for lr in (0.1, 0.02)
        for encoder, bits in (("identity", 800), ("tensor_encoding:8", 400), ("uniform:8", 200))
        for seed, accuracy in enumerate((0.0, 0.5, 0.25))
    ]
    rows = emnist_accuracy.summary(runs)
    assert len(rows) == 6
    assert [row["fewer_bits"] for row in rows] == [1, 2, 4, 1, 2, 4]
    assert {(row["test_accuracy"], row["test_accuracy_min"], row["test_accuracy_max"]) for row in rows} == {(0.25, 0.0, 0.5)}
    assert {row["seeds"] for row in rows} == {"0 to 2"}


def test_points_are_differences_seed_by_seed_with_their_standard_error():
    runs = []
    for name, accuracies, bits in (("nothing encoded", (0.75, 0.5), 800), ("tutorial", (0.5, 0.0), 100)):
        runs += [_run("", seed, x, bits, encoders=name, last_tests=x) for seed, x in enumerate(accuracies)]
    plain, tutorial = bits_to_accuracy.summary(runs, {"nothing encoded": {}, "tutorial": {"mean": "uniform:8", "secure": True}})
    assert plain["last_test_points"] is None
    # Differences of -25 and -50 points: a mean of -37.5, a standard deviation of 25 / sqrt(2), divided by sqrt(2).
    assert (tutorial["last_test_points"], tutorial["last_test_points_se"]) == (-37.5, 12.5)
    assert (tutorial["fewer_bits"], tutorial["flags"]) == (8, "--mean uniform:8 --secure")


def test_bits_at_an_error_lie_between_two_settings_and_are_none_beyond_them():
    times = {"encode_ns": 10.0, "decode_ns": 4.0}
    runs = [
        {"source": "s", "coder": "c", "nmse": nmse, "payload_bits": bits, **times} for nmse, bits in ((0.2, 1.0), (0.008, 3.0))
    ]
    runs.append({"source": "s", "coder": "another", "nmse": 0.05, "payload_bits": 9.0, **times})
    found = coders.summary("s", "c", runs)
    assert found["bits_at_200"] == 1.0
    # 0.05 is 4 times less than 0.2, and 0.008 is 25 times: ln 4 / ln 25 = 0.43068 of the way.
    assert found["bits_at_50"] == pytest.approx(1 + 2 * 0.43068, abs=1e-3)
    assert (found["bits_at_500"], found["bits_at_5"]) == (None, None)
    assert (found["encode_ns"], found["decode_ns"], found["least_bits"]) == (10, 4, 1.0)
