"""Client data, models and interruptions as people bring them: each right, or refused with one sentence."""

import dataclasses
import enum
import json
import pathlib
import shutil
from typing import Optional

import numpy as np
import pytest
import tensorflow as tf

import tff_kit
from tff_kit import __main__ as command_line
from tff_kit.datasets import DataError, FederatedDataset
from tff_kit.errors import UserError
from tff_kit.experiment import SettingsError
from tff_kit.tasks import emnist
from tff_kit.training import checkpoints, commands, runs, settings

K, L = tf.keras, tf.keras.layers
_DRAWN = np.random.default_rng(0)
X = _DRAWN.normal(size=[120, 8]).astype(np.float32)
Y = (X @ np.arange(-4, 4) > 0).astype(np.int32)
WEIGHTS = [_DRAWN.normal(size=[8, 2]), _DRAWN.normal(size=[2])]
PARAMETERS = 8 * 2 + 2


class Task(tff_kit.Experiment):
    """Five clients and one layer."""

    task = "mine"
    clients: int = 5
    client_lr: float = 0.5

    def load_data(self):
        clients = {f"c{i}": (X[i:100:5], Y[i:100:5]) for i in range(5)}
        return tff_kit.from_arrays("mine", clients, (X[100:], Y[100:]), self.batch_size)

    def build_model(self):
        return K.Sequential([L.Dense(2, "softmax", kernel_initializer="zeros", input_shape=(8,))])

    def build_loss(self):
        return K.losses.SparseCategoricalCrossentropy()


class Pretrained(Task):
    """Begins with weights of its own."""

    def build_model(self):
        model = super().build_model()
        model.set_weights(WEIGHTS)
        return model


class Unseeded(Task):
    """Begins with other weights in each call."""

    def build_model(self):
        return K.Sequential([L.Dense(2, "softmax", input_shape=(8,))])


class WithLambda(Task):
    """Has code in it."""

    def build_model(self):
        return K.Sequential([L.Lambda(lambda x: 2 * x, input_shape=(8,)), *super().build_model().layers])


def _rows(run, *without):
    return [{key: value for key, value in row.items() if key not in ("seconds", *without)} for row in run.read_metrics()]


@pytest.mark.slow
def test_changes_of_pretrained_weights_arrive_and_the_weights_are_counted_once_a_client(tmp_path):
    settings = {"rounds": 6, "clients": 3, "eval_every": 3, "dropout": 0.2}
    whole = tff_kit.train(Pretrained(**settings), tmp_path / "whole")
    change = tff_kit.train(Pretrained(**settings, broadcast_change=True), tmp_path / "change")
    for a, b in zip(_rows(whole, "broadcast_bits"), _rows(change, "broadcast_bits")):
        assert a == pytest.approx(b, abs=1e-5)
    more = np.array([row["broadcast_bits"] for row in change.read_metrics()])
    more -= [row["broadcast_bits"] for row in whole.read_metrics()]
    assert more[0] in (PARAMETERS * 32 * n for n in (1, 2, 3))
    assert more[-1] <= PARAMETERS * 32 * 5 and not np.any(more % (PARAMETERS * 32)) and (np.diff(more) >= 0).all()
    # Once a client: who received in the first half is remembered by the run that goes on.
    halved = tmp_path / "halved"
    tff_kit.train(dataclasses.replace(Pretrained(**settings, broadcast_change=True), rounds=3), halved)
    assert _rows(tff_kit.train(Pretrained(**settings, broadcast_change=True), halved, resume=True)) == _rows(change)


@pytest.mark.slow
def test_changes_of_weights_without_a_seed_go_on_from_the_same_ones(tmp_path):
    experiment = Unseeded(rounds=2, eval_every=1, broadcast="uniform:8", threshold=0, broadcast_change=True)
    tff_kit.train(dataclasses.replace(experiment, rounds=1), tmp_path / "run")
    run = tff_kit.train(experiment, tmp_path / "run", resume=True)
    first, last = run.read_metrics()
    # 8 bits a weight, minimum and maximum of both variables, the learning rate; at first the weights as well.
    assert last["broadcast_bits"] - first["broadcast_bits"] == 5 * (8 * PARAMETERS + 2 * 64 + 32)
    assert first["broadcast_bits"] == 5 * (8 * PARAMETERS + 2 * 64 + 32) + 5 * 32 * PARAMETERS
    assert first["broadcast_distortion"] == 0 < last["broadcast_distortion"] < 1e-4
    assert last["train_loss"] < first["train_loss"]
    shutil.rmtree(run.checkpoints / "initial_0" / "variables")
    with pytest.raises(runs.RunError, match="Expected the initial weights, which clients have, but .*initial_0 is damaged"):
        tff_kit.train(dataclasses.replace(experiment, rounds=3), run.path, resume=True)


class WithEmptyClients(Task):
    """Some clients have no examples, and others no numbers."""

    empty: int = 1
    infinite: int = 1

    def load_data(self):
        inputs = np.where(np.arange(120)[:, None] % 5 < self.infinite, np.float32(np.inf), X)

        def client_dataset(client, seed):
            place = tf.strings.to_number(tf.strings.substr(client, 1, 1), tf.int64)
            rows = tf.data.Dataset.from_tensor_slices((inputs, Y)).shard(5, place)
            return rows.take(tf.where(place >= 5 - self.empty, tf.constant(0, tf.int64), 20)).batch(self.batch_size)

        test = tf.data.Dataset.from_tensor_slices((X, Y)).batch(20)
        return FederatedDataset("some are empty", tuple(f"c{i}" for i in range(5)), client_dataset, test)


@pytest.mark.slow
@pytest.mark.parametrize(("empty", "infinite"), [(2, 1), (0, 2), (5, 0), (3, 2)])
def test_clients_without_examples_are_no_broken_updates_and_nothing_measured_is_empty(empty, infinite, tmp_path, capsys):
    run = tff_kit.train(WithEmptyClients(rounds=1, empty=empty, infinite=infinite), tmp_path / "run")
    (row,) = run.read_metrics()
    assert (row["clients_empty"], row["clients_left_out"]) == (empty, infinite)
    none_left = empty + infinite == 5
    measured = [row[key] for key in ("train_loss", "train_accuracy", "aggregate_distortion")]
    assert [value is None for value in measured] == [none_left] * 3
    assert row["test_loss"] is not None
    printed = capsys.readouterr().out
    assert (f"{empty} client{'s' if empty > 1 else ''} left out: no examples" in printed) == bool(empty)
    assert (f"{infinite} client{'s' if infinite > 1 else ''} left out: update not finite" in printed) == bool(infinite)


def test_own_data_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    class Unbatched(Task):
        def load_data(self):
            data = super().load_data()
            return dataclasses.replace(data, client_dataset=lambda client, seed: data.client_dataset(client, seed).unbatch())

    class Untested(Task):
        def load_data(self):
            return dataclasses.replace(super().load_data(), test=super().load_data().test.take(0))

    for experiment, message in ((Unbatched(), "Add batch"), (Untested(), "Expected examples in the held-out test of mine")):
        with pytest.raises(DataError, match=message):
            tff_kit.train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_with_code_in_it_is_evaluated(tmp_path):
    run = tff_kit.train(WithLambda(rounds=1), tmp_path / "run")
    found = tff_kit.evaluate(WithLambda(), run)
    assert found["loss"] == pytest.approx(run.read_metrics()[-1]["test_loss"], rel=1e-6)
    model = WithLambda().build_model()
    run.load_weights(model)
    for other in (K.Sequential([L.Dense(3, input_shape=(8,))]), K.Sequential([*model.layers, L.Dense(2)])):
        with pytest.raises(runs.RunError, match="Expected weights of this model"):
            run.load_weights(other)
    with pytest.raises(runs.RunError, match="Expected 0 arrays of weights .* found 2"):
        run.load_weights(K.Sequential([L.Flatten(input_shape=(8,))]))
    run.model.write_bytes(run.model.read_bytes()[:2000])
    with pytest.raises(runs.RunError, match="Expected weights of this model .* damaged file"):
        tff_kit.evaluate(WithLambda(), run)


@pytest.mark.slow
def test_ids_of_clients_are_any_strings(tmp_path):
    ids = ("Köln", "日本", "a/b", "a\0", "a", "")

    class Task2(Task):
        clients: int = 6

        def load_data(self):
            clients = {client: (X[i::6], Y[i::6]) for i, client in enumerate(ids)}
            return tff_kit.from_arrays("ids", clients, (X, Y), self.batch_size)

    (row,) = tff_kit.train(Task2(rounds=1), tmp_path / "run").read_metrics()
    assert row["clients_empty"] == 0 and np.isfinite(row["train_loss"])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two versions of three arrays."""
    folder = tmp_path_factory.mktemp("stored") / "checkpoints"
    kept = checkpoints.Checkpoints(folder, "round_", kept=2)
    for version in (1, 2, 3):
        kept.save([np.full([100], version, np.float32), np.int64(version), np.zeros([0], np.float16)], version)
    return folder


EXPECTED = [np.zeros([100], np.float32), np.int64(0), np.zeros([0], np.float16)]


def test_the_last_versions_are_kept_and_read(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "round_4_temp1234").mkdir()  # As a killed run leaves it.
    kept = checkpoints.Checkpoints(tmp_path / "checkpoints", "round_", kept=2)
    assert kept.versions() == [3, 2]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["round_2", "round_3"]
    found = kept.load(3, EXPECTED)
    np.testing.assert_array_equal(found[0], np.full([100], 3))
    assert kept.load(3, EXPECTED[:2]) is None
    assert kept.load(3, [np.zeros([99], np.float32), *EXPECTED[1:]]) is None


def _data(folder):
    return next(folder.glob("variables/*.data*"))


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "data cut": lambda folder: _data(folder).write_bytes(_data(folder).read_bytes()[:100]),
    "data empty": lambda folder: _data(folder).write_bytes(b""),
    "data gone": lambda folder: _data(folder).unlink(),
    "a bit of the data": lambda folder: _flip(_data(folder), 50),
    "a bit of the graph": lambda folder: _flip(folder / "saved_model.pb", -9),
    "graph empty": lambda folder: (folder / "saved_model.pb").write_bytes(b""),
    "graph gone": lambda folder: (folder / "saved_model.pb").unlink(),
    "index of zeros": lambda folder: next(folder.glob("variables/*.index")).write_bytes(bytes(500)),
    "all gone": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    "digest cut": lambda folder: (folder / "sha256").write_text("12"),
    "digest of no text": lambda folder: (folder / "sha256").write_bytes(b"\xff\xfe"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_goes_unnoticed(damage, stored, tmp_path):
    shutil.copytree(stored, tmp_path / "checkpoints")
    kept = checkpoints.Checkpoints(tmp_path / "checkpoints", "round_", kept=2)
    DAMAGES[damage](tmp_path / "checkpoints" / "round_3")
    with pytest.raises(checkpoints.DamagedError, match="round_3 is damaged"):
        kept.load(3, EXPECTED)
    np.testing.assert_array_equal(kept.load(2, EXPECTED)[0], np.full([100], 2))
    kept.save([np.full([100], 9, np.float32), *EXPECTED[1:]], 3)  # Replaces it.
    np.testing.assert_array_equal(kept.load(3, EXPECTED)[0], np.full([100], 9))


@pytest.mark.slow
def test_a_run_goes_back_to_the_checkpoint_before_a_damaged_one_and_says_so(tmp_path, capsys):
    whole = tff_kit.train(Task(rounds=3, eval_every=1), tmp_path / "whole")
    tff_kit.train(Task(rounds=2, eval_every=1), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    DAMAGES["data cut"](folder / "round_2")
    capsys.readouterr()
    run = tff_kit.train(Task(rounds=3, eval_every=1), tmp_path / "run", resume=True)
    printed = capsys.readouterr().out
    assert "round_2 is damaged" in printed and "The run goes on after round 1." in printed
    assert _rows(run) == _rows(whole)
    for version in (2, 3):
        DAMAGES["data gone"](folder / f"round_{version}")
    with pytest.raises(runs.RunError, match="found damaged ones only"):
        tff_kit.train(Task(rounds=4, eval_every=1), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_run_does_not_go_on_from_other_clients_or_without_the_rows_of_its_rounds(tmp_path, capsys):
    class Renamed(Task):
        def load_data(self):
            data = super().load_data()
            return dataclasses.replace(data, client_ids=data.client_ids[::-1])

    class OfAnotherLoss(Task):
        def build_loss(self):
            return K.losses.SparseCategoricalCrossentropy(from_logits=True)

    run = tff_kit.train(Task(rounds=2, eval_every=1), tmp_path / "run")
    header, first, second = run.metrics.read_text().splitlines(keepends=True)
    capsys.readouterr()
    for other, name in ((Renamed, "clients"), (OfAnotherLoss, "loss")):
        with pytest.raises(runs.RunError, match=f"Expected the {name} of the run"):
            tff_kit.train(other(rounds=3, eval_every=1), run.path, resume=True)
    for damaged in (header + first + second[:20], header + second, None):
        run.metrics.unlink() if damaged is None else run.metrics.write_text(damaged)
        with pytest.raises(runs.RunError, match="Mend the file, or train in a new --logdir"):
            tff_kit.train(Task(rounds=3, eval_every=1), run.path, resume=True)
    assert "round   3" not in capsys.readouterr().out
    run.metrics.write_text("\ufeff" + header + first + second)
    tff_kit.train(Task(rounds=3, eval_every=1), run.path, resume=True)
    assert [row["round"] for row in run.read_metrics()] == [1, 2, 3]


class Colour(enum.Enum):
    """A setting."""

    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Inner:
    """A setting of settings."""

    place: pathlib.Path = pathlib.Path("x")


class WithSettings(Task):
    """Has settings of many types."""

    folder: pathlib.Path = pathlib.Path("a/b")
    other: Optional[pathlib.Path] = None
    shape: tuple[int, ...] = (1, 2)
    pair: tuple[pathlib.Path, int] = (pathlib.Path("c"), 1)
    colour: Colour = Colour.RED
    inner: Inner = Inner()


def test_settings_are_kept_as_json_and_read_back():
    experiment = WithSettings(other=pathlib.Path("d"), colour=Colour.BLUE, client_lr=np.float32(0.5), rounds=np.int64(3))
    plain = json.loads(json.dumps(settings.as_plain(experiment)))
    assert (plain["folder"], plain["other"], plain["shape"], plain["colour"]) == ("a/b", "d", [1, 2], "BLUE")
    found = settings.from_plain(WithSettings, plain)
    assert found == experiment and isinstance(found.pair[0], pathlib.Path) and isinstance(found.inner.place, pathlib.Path)


def test_settings_that_json_can_not_keep_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SettingsError, match="Expected settings that can be written as JSON, found other=<object"):
        tff_kit.train(WithSettings(other=object()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_with_a_path_in_its_settings_goes_on(tmp_path):
    tff_kit.train(WithSettings(rounds=1), tmp_path / "run")
    tff_kit.train(WithSettings(rounds=2), tmp_path / "run", resume=True)
    with pytest.raises(runs.RunError, match="folder a/b then, e now"):
        tff_kit.train(WithSettings(rounds=2, folder=pathlib.Path("e")), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_runs_that_begin_in_one_second_have_different_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [runs.run_path(None, False, "mine", "identity") for _ in range(5)]
    assert len({path.name for path in paths}) == 5 and all(path.is_dir() for path in paths)
    with pytest.raises(runs.RunError, match="no --logdir"):
        runs.run_path(None, True, "mine")


@pytest.mark.slow
@pytest.mark.parametrize("written", [["--logdir", "{}"], ["--logdir={}"]])
def test_the_run_to_go_on_with_is_found_however_it_is_written(written, tmp_path):
    runs.RunDirectory(tmp_path).write_settings(emnist.Emnist(clients=3), "", ())
    arguments = ["--resume", *(part.format(tmp_path) for part in written)]
    assert commands.default_settings(emnist.Emnist, arguments).clients == 3
    with pytest.raises(runs.RunError, match="--resume needs --logdir"):
        commands.default_settings(emnist.Emnist, ["--resume", "--logdir="])


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [tf.errors.ResourceExhaustedError(None, None, "a/b; No space left on device\nmore"), OSError(28, "No space left on device")],
)
def test_what_the_system_refuses_is_one_sentence(error, monkeypatch, tmp_path, capsys):
    def save(*arguments, **options):
        raise error

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    logdir = str(tmp_path / "run")
    assert (
        command_line.main(
            ["train", "emnist", "--data", "digits", "--filters", "1", "--clients", "1", "--rounds", "1", "--logdir", logdir]
        )
        == 2
    )
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith(f"error: The training in {logdir} stopped: ") and "No space left on device. Once" in line
    assert line.endswith(f"it goes on with --resume --logdir {logdir}.")


class WithWrongLabels(Task):
    """Has a label that is no class of the model, among the clients' or in the test."""

    of_clients: bool = True

    def load_data(self):
        wrong = (X[100:], np.where(np.arange(20) == 3, 7, Y[100:]))
        rest = (X[:100], Y[:100])
        return tff_kit.from_arrays("wrong", {"c": wrong if self.of_clients else rest}, rest if self.of_clients else wrong, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("of_clients", "where"), [(True, "Round 1 failed on TFF's worker: "), (False, "to fit wrong, ")])
def test_labels_that_are_no_class_end_the_training_with_a_sentence(of_clients, where, tmp_path):
    with pytest.raises(UserError) as refused:
        tff_kit.train(WithWrongLabels(rounds=1, clients=1, of_clients=of_clients), tmp_path / "run")
    (line,) = str(refused.value).split("\n")
    assert where in line and "Received a label value of 7 which is outside the valid range of [0, 2)" in line
