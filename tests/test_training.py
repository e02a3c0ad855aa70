"""Training from the command line: what it leaves behind, what it refuses, and that a killed run goes on."""

import asyncio
import csv
import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import sqlite3

import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from conftest import wait_until, write_cache
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import tff_kit
from tff_kit import __main__ as command_line
from tff_kit import datasets
from tff_kit.tasks import TASKS
from tff_kit.tasks.keywords import embed
from tff_kit.training import logs, runs, sources

pytestmark = pytest.mark.usefixtures("built_once")

SETTINGS = "--data digits --filters 4 --clients 3 --broadcast uniform:8 --mean tensor_encoding:8 --client-lr 0.1"
SMALL = tuple(SETTINGS.split())
WEIGHTS = 26 * 4 + 25 * 4 * 8 + 8 + (7 * 7 * 8 + 1) * 64 + 65 * 10  # With 4 filters; all 32 are counted in test_sizing.
REQUIRED = ["round", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "broadcast_bits", "aggregate_bits", "seconds"]


def _train(*arguments):
    return command_line.main(["train", "emnist", *map(str, arguments)])


def _rows(logdir):
    with open(logdir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six rounds."""
    logdir = tmp_path_factory.mktemp("runs") / "whole"
    assert _train(*SMALL, "--rounds", 6, "--eval-every", 2, "--logdir", logdir) == 0
    return logdir


@pytest.mark.slow
def test_a_run_leaves_settings_metrics_curves_checkpoints_and_model(run):
    settings = json.loads((run / "settings.json").read_text())
    assert settings["task"] == "emnist"
    assert settings["settings"]["client_lr"] == 0.1
    assert settings["settings"]["server_lr"] == 1.0
    assert "scikit-learn" in settings["data"]
    assert settings["versions"]["tensorflow_federated"] == "0.87.0"
    rows = _rows(run)
    assert list(rows[0])[: len(REQUIRED)] == REQUIRED
    assert list(rows[0]) == list(logs.columns(tff_kit.Emnist().metrics()))
    assert [int(row["round"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["test_accuracy"]) for row in rows] == [False, True] * 3
    assert [int(row["broadcast_bits"]) for row in rows] == [n * int(rows[0]["broadcast_bits"]) for n in range(1, 7)]
    assert all(0 < float(row["aggregate_distortion"]) < 0.1 for row in rows)
    assert tf.keras.models.load_model(run / "model.keras", compile=False).count_params() == WEIGHTS
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["round_4", "round_6"]


@pytest.mark.slow
def test_tensorboard_has_the_tutorials_curves_and_more(run):
    events = event_accumulator.EventAccumulator(str(run), {event_accumulator.TENSORS: 0}).Reload()
    curves = {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}
    for name in ("loss", "sparse_categorical_accuracy", "cumulative_broadcasted_bits", "cumulative_aggregated_bits"):
        assert [event.step for event in curves[name]] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in curves["test_accuracy"]] == [2, 4, 6]
    rows = _rows(run)
    mebibytes = [(int(row["broadcast_bits"]) + int(row["aggregate_bits"])) // 2**23 for row in rows[1::2]]
    assert [event.step for event in curves["test_accuracy_by_total_MiB"]] == mebibytes


@pytest.mark.slow
def test_tensorboard_has_the_settings_as_hyperparameters(run):
    events = event_accumulator.EventAccumulator(str(run)).Reload()
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info.hparams
    assert shown["broadcast"].string_value == "uniform:8"
    assert shown["client_lr"].number_value == 0.1
    assert shown["data"].string_value == "the 1,797 digits of scikit-learn"
    data = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    table = plugin_data_pb2.HParamsPluginData.FromString(data).experiment
    assert [column.name for column in table.hparam_infos][:5] == ["broadcast", "mean", "client_lr", "seed", "rounds"]
    tags = {"test_accuracy", "cumulative_broadcasted_bits"}
    assert tags <= {metric.name.tag for metric in table.metric_infos} <= set(events.Tags()["tensors"])


@pytest.mark.slow
def test_evaluate_prints_the_last_rounds_test_as_json(run, capsys):
    assert command_line.main(["evaluate", "emnist", "--model", str(run), "--data", "digits"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = _rows(run)[-1]
    assert found["accuracy"] == pytest.approx(float(last["test_accuracy"]), abs=1e-6)
    assert found["loss"] == pytest.approx(float(last["test_loss"]), rel=1e-5)
    assert found["examples"] == 180


# Stops the worker at the beginning of round 4, so that this round does not end.
_STOPPING_IN_ROUND_4 = """
import psutil
from tff_kit.training import participation
draw = participation.draw_missing

def stop_in_round_4(experiment, round_num, count):
    if round_num == 4:
        for worker in psutil.Process().children():
            worker.suspend()
        print("in round 4", flush=True)
    return draw(experiment, round_num, count)

participation.draw_missing = stop_in_round_4
"""


def _training_program(*arguments, before=""):
    """Returns the code that `before` and then trains, as `python -m tff_kit` does."""
    command = ["tff_kit", "train", "emnist", *map(str, arguments)]
    return f"{before}\nimport runpy, sys\nsys.argv = {command}\nrunpy.run_module('tff_kit', run_name='__main__')"


@pytest.mark.slow
def test_a_run_killed_in_mid_round_goes_on_bit_for_bit(run, start_program, tmp_path):
    logdir = tmp_path / "killed"
    arguments = (*SMALL, "--rounds", 6, "--eval-every", 2, "--logdir", logdir)
    program = start_program(_training_program(*arguments, before=_STOPPING_IN_ROUND_4))
    assert b"in round 4\n" in iter(program.stdout.readline, b"")
    children = psutil.Process(program.pid).children(recursive=True)
    program.send_signal(signal.SIGKILL)
    program.communicate(timeout=120)
    assert len(_rows(logdir)) == 3
    assert len(psutil.wait_procs(children, timeout=10)[0]) == len(children) > 0
    assert not (logdir / "model.keras").exists()

    assert _train("--resume", "--logdir", logdir) == 0
    resumed, whole = ([{k: v for k, v in row.items() if k != "seconds"} for row in _rows(path)] for path in (logdir, run))
    assert resumed == whole
    weights = [tf.keras.models.load_model(path / "model.keras", compile=False).get_weights() for path in (logdir, run)]
    for a, b in zip(*weights):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_more_rounds_can_be_added_to_a_run(run, tmp_path):
    logdir = tmp_path / "longer"
    assert _train(*SMALL, "--rounds", 2, "--eval-every", 2, "--logdir", logdir) == 0
    assert _train("--resume", "--logdir", logdir, "--rounds", 4) == 0
    assert [row["train_loss"] for row in _rows(logdir)] == [row["train_loss"] for row in _rows(run)[:4]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "Expected --rounds to be at least 1, found 0"),
        (["--clients", "0"], "Expected --clients to be at least 1"),
        (["--client-lr", "0"], "Expected --client-lr to be more than 0"),
        (["--clients", "15"], "Expected at most 14 clients a round"),
        (["--broadcast", "gzip"], "Expected STAGE, or STAGE+STAGE, each STAGE one of identity"),
        (["--mean", "uniform:0"], "found 'uniform:0'"),
        (["--data", "nowhere"], "no such folder"),
        (["--resume"], "--resume needs --logdir"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _train(*SMALL, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_unknown_words_are_refused_with_those_there_are(capsys):
    assert command_line.main(["train", "mnist"]) == 2
    assert f"TASK one of {', '.join(TASKS)}, or join, credential, worker, embed" in capsys.readouterr().err
    assert command_line.main(["fly", "emnist"]) == 2
    assert "COMMAND one of train, evaluate" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        _train("--rownds", 3)
    assert stopped.value.code == 2


@pytest.mark.slow
def test_a_folder_with_another_run_is_refused_and_kept(run, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert _train(*SMALL, "--logdir", run) == 2
    assert "--resume to go on" in capsys.readouterr().err
    assert _train(*SMALL, "--rounds", 6, "--seed", 9, "--resume", "--logdir", run) == 2
    assert "seed 0 then, 9 now" in capsys.readouterr().err
    assert _train("--rounds", 5, "--resume", "--logdir", run) == 2
    assert "Expected at least the 6 rounds" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    assert _train(*SMALL, "--logdir", tmp_path / "mine") == 2
    assert _train(*SMALL, "--resume", "--logdir", tmp_path / "none") == 2
    assert not (tmp_path / "none").exists()


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path, capsys):
    logdir = tmp_path / "busy"
    logdir.mkdir()
    folder = os.open(logdir, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert _train(*SMALL, "--logdir", logdir) == 2
    assert "found one. Use another --logdir" in capsys.readouterr().err
    os.close(folder)


@pytest.mark.slow
def test_overwrite_replaces_a_run_and_nothing_else(run, tmp_path):
    logdir = shutil.copytree(run, tmp_path / "again")
    (logdir / "notes.txt").write_text("keep")
    assert _train(*SMALL, "--filters", 2, "--rounds", 1, "--seed", 1, "--logdir", logdir, "--overwrite") == 0
    assert (logdir / "notes.txt").read_text() == "keep"
    assert json.loads((logdir / "settings.json").read_text())["settings"]["seed"] == 1
    assert len(list(logdir.glob("events*"))) == 1


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(run, tmp_path, capsys):
    logdir = tmp_path / "foreign"
    experiment = tff_kit.Emnist(data="digits", clients=3, rounds=6, eval_every=2)
    logdir.mkdir()
    runs.RunDirectory(logdir).write_settings(experiment, "", ())
    manager = tff.program.FileProgramStateManager(logdir / "checkpoints", prefix="round_")
    asyncio.run(manager.save([np.zeros(3, np.float32), np.zeros(2, np.int64)], version=2))
    assert _train("--resume", "--logdir", logdir) == 2
    assert "Expected a checkpoint of emnist's model" in capsys.readouterr().err


def test_evaluating_what_is_no_run_or_another_model_is_refused(tmp_path, capsys):
    assert command_line.main(["evaluate", "emnist", "--model", str(tmp_path), "--data", "digits"]) == 2
    assert "Expected a run with its settings.json" in capsys.readouterr().err
    directory = runs.RunDirectory(tmp_path)
    directory.write_settings(tff_kit.Emnist(data="digits"), "", ())
    assert command_line.main(["evaluate", "emnist", "--model", str(tmp_path), "--data", "digits"]) == 2
    assert "Expected a trained model" in capsys.readouterr().err
    tf.keras.Sequential([tf.keras.layers.InputLayer(input_shape=[4]), tf.keras.layers.Dense(2)]).save(directory.model)
    assert command_line.main(["evaluate", "emnist", "--model", str(tmp_path), "--data", "digits"]) == 2
    assert "Expected weights of this model in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_client_that_sends_no_numbers_is_left_out_and_counted(tmp_path, capsys):
    cache = tmp_path / "cache"
    cache.mkdir()
    write_cache(cache / "emnist_all.sqlite", clients=3, examples=20, nan=("client01",))
    assert _train("--data", cache, "--filters", 2, "--clients", 3, "--rounds", 2, "--logdir", tmp_path / "run") == 0
    rows = _rows(tmp_path / "run")
    assert [row["clients_left_out"] for row in rows] == ["1", "1"]
    assert all(np.isfinite(float(row[name])) for row in rows for name in ("train_loss", "train_accuracy"))
    assert np.isfinite(float(rows[-1]["test_loss"]))
    assert "1 client left out: update not finite" in capsys.readouterr().out


@pytest.mark.slow
def test_examples_that_can_not_be_read_end_the_run_with_a_sentence(small_cache, tmp_path, capsys):
    with sqlite3.connect(small_cache / "emnist_all.sqlite") as database:
        database.execute("UPDATE examples SET serialized_example_proto = x'ff' WHERE split_name = 'digits_only_train'")
    assert _train("--data", small_cache, "--filters", 2, "--clients", 3, "--rounds", 1, "--logdir", tmp_path / "run") == 2
    assert "error: Round 1 failed on TFF's worker: " in capsys.readouterr().err


@pytest.mark.slow
def test_training_leaves_tffs_context_as_it_was(run):
    @tff.federated_computation
    def hello_world():
        return "Hello, World!"

    assert hello_world() == b"Hello, World!"


@pytest.mark.slow
def test_ctrl_c_ends_with_a_sentence_and_can_go_on(start_program, tmp_path):
    logdir = tmp_path / "stopped"
    arguments = (*SMALL, "--filters", 2, "--rounds", 200, "--eval-every", 1, "--logdir", logdir)
    program = start_program(_training_program(*arguments))
    wait_until(lambda: (logdir / "metrics.csv").exists() and len(_rows(logdir)) >= 2, 300)
    children = psutil.Process(program.pid).children(recursive=True)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert len(psutil.wait_procs(children, timeout=10)[0]) == len(children) > 0


@pytest.mark.slow
def test_keyword_spotting_trains_and_is_evaluated_like_digits(tmp_path, capsys):
    logdir = tmp_path / "kws"
    arguments = ["--data", "demo", "--window", "1s", "--rounds", "3", "--broadcast", "uniform:8", "--mean", "uniform:8"]
    assert command_line.main(["train", "kws", *arguments, "--logdir", str(logdir)]) == 0
    printed = capsys.readouterr().out
    assert "synthetic" in printed
    assert "kws, 8 clients a round" in printed  # Of the 21 that it should sample.
    rows = _rows(logdir)
    large, small = 128 * 384 * 12, 128 * 50 + 128 + 12  # The 1x1 convolution's kernel has 6,400 elements.
    weights = 8 * large + 2 * 32 + 32 * small
    assert large + small == 596_364
    assert int(rows[0]["broadcast_bits"]) == 8 * (weights + 4 * 32)  # Adam's learning rate, decays and epsilon.
    assert int(rows[0]["aggregate_bits"]) == 8 * (weights + 384)
    assert float(rows[-1]["test_accuracy"]) > 3 / 12
    assert command_line.main(["evaluate", "kws", "--model", str(logdir), "--data", "demo"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(float(rows[-1]["test_accuracy"]), abs=1e-6)
    assert command_line.main(["evaluate", "emnist", "--model", str(logdir), "--data", "digits"]) == 2
    assert "Expected a run of emnist" in capsys.readouterr().err


@pytest.fixture(scope="module")
def half_minutes(tmp_path_factory):
    """A folder of embeddings of 30 s."""
    return embed.demo(tmp_path_factory.mktemp("demo") / "store", window="30s", clients=2, clips_per_client=16).folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        ("identity", 25_022_848),  # Of the 781,964 weights, 32 each; 21 clients, 10 rounds, both ways: the seed's 1.314 GB.
        ("uniform:8", 8 * (128 * 1500 + 128 * 384 * 12) + 2 * 2 * 32 + 32 * (128 + 12)),
    ],
)
def test_bits_of_the_heads_weights_at_thirty_seconds(half_minutes, tmp_path, spec, bits):
    experiment = tff_kit.KeywordSpotting(data=str(half_minutes), rounds=1, broadcast=spec, mean=spec)
    row = _rows(tff_kit.train(experiment, tmp_path / "run").path)[0]
    assert int(row["broadcast_bits"]) == 2 * (bits + 4 * 32)
    assert int(row["aggregate_bits"]) == 2 * (bits + 384)


def test_keyword_spotting_without_embeddings_says_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["train", "kws"]) == 2
    assert "Expected a store of embeddings in embeddings, found none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


ROWS = "round,train_loss,broadcast_bits,seconds\n1,2.5,8,0.5\n2,,16,0.25\n3,nan,24,1\n"


@pytest.fixture
def directory(tmp_path):
    return runs.RunDirectory(tmp_path)


@pytest.mark.parametrize("before", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_metrics_are_read_as_numbers_with_a_mark_in_front_or_without(directory, before, end):
    directory.metrics.write_bytes((before + ROWS.replace("\n", end)).encode())
    first, second, third = directory.read_metrics()
    assert first == {"round": 1, "train_loss": 2.5, "broadcast_bits": 8, "seconds": 0.5}
    assert second["train_loss"] is None and np.isnan(third["train_loss"])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda text: text[:-8], "2 instead of 4 cells in row 3"),
        (lambda text: text[:-1], "no end of its last line"),
        (lambda text: text.replace("16", "16,4"), "5 instead of 4 cells in row 2"),
        (lambda text: text.replace("16", ""), "'' as broadcast_bits in row 2"),
        (lambda text: text.replace("\n2,", "\n2.5,"), "'2.5' as round in row 2"),
        (lambda text: text.replace("0.25", "0.2x"), "'0.2x' as seconds in row 2"),
        (lambda text: text.replace("0.25", "9" * 10_000 + "x"), r"'9+\.\.\.9+x' as seconds in row 2"),
        (lambda text: text.replace("seconds", "round"), "the column round twice"),
        (lambda text: "", "no names of its columns in the first line"),
        (lambda text: text.split("\n", 1)[1], "no names of its columns in the first line"),
        (lambda text: "x" * 100_000, "no names of its columns in the first line"),
        (lambda text: "\0" * 1000, "no "),
        (lambda text: "round\n" + "1" * 200_000, "no table: field larger than field limit"),
        (lambda text: b"\xff\xfe" + bytes(50), "bytes that are no text"),
        (lambda text: None, "No such file or directory"),
    ],
)
def test_damaged_metrics_are_refused_with_a_short_sentence(directory, damage, found):
    content = damage(ROWS)
    if content is not None:
        directory.metrics.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(runs.RunError, match=found) as refused:
        directory.read_metrics()
    (line,) = str(refused.value).split("\n")
    assert line.startswith(f"Expected a run with its metrics.csv in {directory.path}, found ") and len(line) < 300
    assert line.endswith("Mend the file, or train in a new --logdir.")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1, 2, 3], None),
        ([], "Expected round 1 in row 1 of .*metrics.csv, to go on after round 3, found none in row 1"),
        ([1, 2], "Expected round 3 in row 3 .* found none"),
        ([1, 3], "Expected round 2 in row 2 .* found 3 there"),
        ([1, 2, 2, 3], "Expected round 3 in row 3 .* found 2 there"),
        ([2, 1, 3], "Expected round 1 in row 1 .* found 2 there"),
        ([0, 1, 2, 3], "Expected round 1 in row 1 .* found 0 there"),
    ],
)
def test_a_run_goes_on_only_after_rounds_that_are_there_once_each(directory, found, message):
    experiment = tff_kit.Emnist(data="digits")
    cells = dict.fromkeys(logs.columns(experiment.metrics()), "1")
    lines = [
        ",".join({**cells, "round": str(number)}.values()) for number in [*found, 4]
    ]  # The last of an unfinished checkpoint.
    directory.metrics.write_text("\n".join([",".join(cells), *lines, ""]))
    written = logs.Logs(directory, experiment, experiment.load_data())
    if message is None:
        written.go_on_after(3)
        written.write({**dict.fromkeys(cells, 1), "round": 4})
        assert [row["round"] for row in directory.read_metrics()] == [1, 2, 3, 4]
    else:
        with pytest.raises(runs.RunError, match=message):
            written.go_on_after(3)


def test_a_run_does_not_go_on_with_metrics_that_lack_a_column_or_are_damaged(directory):
    experiment = tff_kit.Emnist(data="digits")
    directory.metrics.write_text(ROWS)
    with pytest.raises(runs.RunError, match=r"Expected a column train_accuracy in .*metrics\.csv, found none"):
        logs.Logs(directory, experiment, experiment.load_data())
    directory.write_settings(experiment, "", ())
    directory.metrics.write_text(ROWS[:-8])
    with pytest.raises(runs.RunError, match="cells in row 3"), runs.open_run(directory.path, experiment, True, False):
        pass


@pytest.mark.parametrize("name", ["file/run", "x" * 300])
def test_a_folder_that_can_not_be_made_is_refused_with_a_sentence(name, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert _train(*SMALL, "--logdir", tmp_path / name) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith(f"error: Expected a folder for the run's files that can be made, found {tmp_path / name}: ")


def test_a_folder_on_a_disk_that_can_only_be_read_is_refused_with_a_sentence(tmp_path, monkeypatch):
    def mkdir(path, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)
    with pytest.raises(runs.RunError, match="found logs/.*: Read-only file system. Use another --logdir"):
        runs.run_path(None, False, "mine")
    experiment = tff_kit.Emnist()
    refused = pytest.raises(runs.RunError, match="found .*run: Read-only file system. Use another --logdir")
    with refused, runs.open_run(tmp_path / "run", experiment, False, False):
        pass


def test_a_run_goes_on_with_its_clients_and_its_loss_only(directory):
    experiment, losses = tff_kit.Emnist(data="digits"), tf.keras.losses
    described = [
        sources.describe_loss(loss)
        for loss in (losses.Huber(), losses.Huber(2.0), losses.MeanSquaredError(), lambda y, z: 0, losses.mean_squared_error)
    ]
    assert len(set(described)) == 5
    assert (
        described[0]
        == sources.describe_loss(losses.Huber(np.float64(1.0)))
        == "Huber(delta=1.0, name='huber_loss', reduction='auto')"
    )
    ids = [("a", "b"), ("b", "a"), ("ab",), ("a", "b", "c")]
    clients = [sources.describe_clients(datasets.FederatedDataset("", of, None, None)) for of in ids]
    assert len(set(clients)) == 4
    then = {"clients": clients[0], "loss": described[0]}
    directory.write_settings(experiment, "", (), sources=then)
    with runs.open_run(directory.path, experiment, True, False, then):
        pass
    for name, now in (("clients", clients[1]), ("loss", described[1])):
        refused = pytest.raises(runs.RunError, match=f"Expected the {name} of the run in .* to resume it, found others: ")
        with refused, runs.open_run(directory.path, experiment, True, False, {**then, name: now}):
            pass
    directory.write_settings(experiment, "", ())  # As earlier versions did.
    with runs.open_run(directory.path, experiment, True, False, then):
        pass
