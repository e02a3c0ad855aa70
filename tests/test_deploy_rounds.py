"""A deployment without a network: server and nodes in one process, with the rounds of the simulation; faults are counted."""

import dataclasses
import errno
import os

import numpy as np
import pytest
import tensorflow as tf
from local_link import LocalLink

from tff_kit import datasets, encoders
from tff_kit.algorithm import assembly
from tff_kit.deploy import checkpoints, messages, optimizers, rounds
from tff_kit.deploy.client_work import ClientWork, model_variables
from tff_kit.deploy.node import Node
from tff_kit.experiment import Experiment, SettingsError
from tff_kit.tasks.emnist import Emnist
from tff_kit.training import runs
from tff_kit.training.rounds import train as simulate

CLIENTS = ("anna", "ben", "cleo")
PATIENT = rounds.Attendance(timeout=60)

pytestmark = pytest.mark.slow


class Points(Experiment):
    """Points of three classes, on three clients with 20, 21 and 22 of them."""

    data: str = "all"
    clients: int = 3
    rounds: int = 2
    batch_size: int = 8
    client_lr: float = 0.1
    threshold: int = 20
    eval_every: int = 2

    task = "points"

    def load_data(self):
        generator = np.random.default_rng(7)
        labels = [generator.integers(3, size=20 + i) for i in range(4)]
        points = [(generator.normal(size=(len(x), 8)) + x[:, np.newaxis], x) for x in labels]
        if self.data == "broken":
            points[0] = points[0][0] * np.nan, points[0][1]
        return datasets.from_arrays("points", dict(zip(CLIENTS, points)), points[3], self.batch_size, self.local_epochs)

    def build_model(self):
        initializers = [tf.keras.initializers.GlorotUniform(self.seed + i) for i in range(2)]
        hidden = tf.keras.layers.Dense(16, "tanh", kernel_initializer=initializers[0], input_shape=(8,))
        return tf.keras.Sequential([hidden, tf.keras.layers.Dense(3, kernel_initializer=initializers[1])])

    def build_loss(self):
        return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def answers():
    """What the three nodes of `Points` answer."""
    return [Node(Points, "all", client).answer for client in CLIENTS]


def deploy(path, answers, attendance=PATIENT, resume=False, **settings):
    return rounds.train(Points(**settings), LocalLink(answers), attendance, path, resume)


def only_on(kind, change):
    """Returns a function that changes a node's answers to messages of one kind."""

    def changed(answer):
        return lambda message: change(answer(message)) if isinstance(messages.unpack(message), kind) else answer(message)

    return changed


@pytest.mark.parametrize(
    ("settings", "bits_differ_by"),
    [
        ({"weighted": False, "proximal": 0.1, "local_epochs": 2}, 0),
        ({"broadcast": "uniform:8,nearest", "mean": "uniform:8,nearest", "server_optimizer": "adam", "server_lr": 0.01}, 0),
        # An update whose last digit differs may fall on the other side of a step, and the coder then takes other bits.
        (
            {
                "broadcast": "step:1+rice/uniform:8,nearest",
                "broadcast_change": True,
                "broadcast_feedback": True,
                "mean": "rate:2+rice/uniform:8,nearest",
                "client_optimizer": "adam",
                "client_lr": 0.01,
            },
            0.02,
        ),
    ],
    ids=["plain", "8 bits", "few bits"],
)
def test_rounds_are_those_of_the_simulation(tmp_path, answers, settings, bits_differ_by):
    deployed = deploy(tmp_path / "deployed", answers, **settings)
    simulated = simulate(Points(**settings), tmp_path / "simulated")
    for ours, theirs in zip(deployed.read_metrics(), simulated.read_metrics()):
        for name in ("broadcast_bits", "aggregate_bits"):
            assert ours[name] == pytest.approx(theirs[name], rel=bits_differ_by, abs=0)
        for name in ("train_loss", "test_loss", "broadcast_distortion", "aggregate_distortion"):
            assert ours[name] == pytest.approx(theirs[name], rel=0.02, abs=1e-6), name
    for ours, theirs in zip(deployed.load_model().get_weights(), simulated.load_model().get_weights()):
        # TFF's worker is another build of TensorFlow. Its update differs by 1e-7; a coarse step can make 1e-3 of that.
        np.testing.assert_allclose(ours, theirs, atol=1e-3 if bits_differ_by else 1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "yogi", "adagrad"])
def test_optimizers_step_as_those_of_the_simulation(optimizer):
    experiment = Points(server_optimizer=optimizer, server_lr=0.05)
    ours, theirs = optimizers.build_server_optimizer(experiment), assembly.build_server_optimizer(experiment)
    generator = np.random.default_rng(3)
    specs = [tf.TensorSpec([4, 3], tf.float32), tf.TensorSpec([3], tf.float32)]
    weights = expected = [tf.constant(generator.normal(size=spec.shape), tf.float32) for spec in specs]
    state, their_state = ours.initialize(specs), theirs.initialize(specs)
    numbers = [tf.constant(x, tf.float32) for x in ours.hyperparameters]
    for _ in range(4):
        gradients = [tf.constant(generator.normal(size=spec.shape), tf.float32) for spec in specs]
        state, weights = ours.next(numbers, state, weights, gradients)
        their_state, expected = theirs.next(their_state, expected, gradients)
    for x, y in zip(weights, expected):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_stopped_run_goes_on_to_the_same_weights(tmp_path, answers):
    whole = deploy(tmp_path / "whole", answers, rounds=4, mean="rate:1+rice")
    deploy(tmp_path / "parts", answers, rounds=2, mean="rate:1+rice")
    parts = deploy(tmp_path / "parts", answers, resume=True, rounds=4, mean="rate:1+rice")
    for x, y in zip(whole.load_model().get_weights(), parts.load_model().get_weights()):
        np.testing.assert_array_equal(x, y)
    assert [row["round"] for row in parts.read_metrics()] == [1, 2, 3, 4]
    assert parts.read_metrics()[-1]["aggregate_bits"] == whole.read_metrics()[-1]["aggregate_bits"]


def test_run_without_the_rows_of_its_rounds_does_not_go_on(tmp_path, answers):
    run = deploy(tmp_path, answers)
    header, first, second = run.metrics.read_text().splitlines(keepends=True)
    for damaged in (header + second, header + first + second[:20], ""):
        run.metrics.write_text(damaged)
        with pytest.raises(runs.RunError, match="Mend the file, or train in a new --logdir"):
            deploy(tmp_path, answers, resume=True, rounds=3)


def cut(answer):
    return answer[:-3]


def altered(answer):
    return answer[:-3] + bytes([answer[-3] ^ 1]) + answer[-2:]


def of_another_round(answer):
    return dataclasses.replace(messages.unpack(answer), round_num=99).pack()


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (lambda answer: None, "clients_late"),
        (lambda answer: messages.Refusal("The disk is full.").pack(), "clients_dropped"),
        (cut, "clients_dropped"),
        (altered, "clients_left_out"),
        (of_another_round, "clients_left_out"),
    ],
    ids=["silent", "refuses", "cut", "altered", "of another round"],
)
def test_round_goes_on_without_a_client_that_fails(tmp_path, answers, change, column):
    faulty = [only_on(messages.Train, change)(answers[0]), *answers[1:]]
    run = deploy(tmp_path / "faulty", faulty, rounds.Attendance(timeout=3))
    two = deploy(tmp_path / "two", answers[1:], rounds.Attendance(timeout=3), clients=2)
    for row in run.read_metrics():
        counts = {name: row[name] for name in ("clients_late", "clients_dropped", "clients_left_out")}
        assert counts == {**dict.fromkeys(counts, 0), column: 1}
    # The two clients that are left train on; their data is drawn by other seeds than in a round of two.
    assert run.read_metrics()[-1]["aggregate_bits"] == two.read_metrics()[-1]["aggregate_bits"]


def test_node_that_started_anew_is_told_the_settings_again(tmp_path, answers):
    newcomers = iter([Node(Points, "all", "anna"), Node(Points, "all", "anna")])
    nodes = [next(newcomers)]

    def forgetful(message):
        if isinstance(messages.unpack(message), messages.Train) and messages.unpack(message).round_num == 2 and len(nodes) == 1:
            nodes.append(next(newcomers))
        return nodes[-1].answer(message)

    forgot = deploy(tmp_path / "forgot", [forgetful, *answers[1:]])
    never = deploy(tmp_path / "never", answers)
    for x, y in zip(forgot.load_model().get_weights(), never.load_model().get_weights()):
        np.testing.assert_array_equal(x, y)
    assert len(nodes) == 2
    sent = [run.read_metrics()[-1]["broadcast_bits"] for run in (forgot, never)]
    assert sent[0] == sent[1] * 7 // 6  # The model went to it twice in the second round.


@pytest.mark.parametrize("kind", [messages.Settings, messages.Train])
@pytest.mark.parametrize("half", ["request", "answer"])
def test_lost_message_is_sent_again(tmp_path, answers, monkeypatch, kind, half):
    monkeypatch.setattr(rounds, "_ASK_AGAIN_SECONDS", 0.5)
    seen = []

    def loses_the_first(message):
        if isinstance(messages.unpack(message), kind):
            seen.append(message)
            if len(seen) == 1:
                if half == "answer":
                    answers[0](message)
                return None
        return answers[0](message)

    lost = deploy(tmp_path / "lost", [loses_the_first, *answers[1:]], rounds.Attendance(min_clients=3, timeout=60))
    never = deploy(tmp_path / "never", answers)
    for x, y in zip(lost.load_model().get_weights(), never.load_model().get_weights()):
        np.testing.assert_array_equal(x, y)
    sent = [run.read_metrics()[-1]["broadcast_bits"] for run in (lost, never)]
    assert sent[0] == (sent[1] * 7 // 6 if kind is messages.Train else sent[1])  # The model is counted as often as it is sent.


class Bounded(Points):
    """A constraint, which Keras's own training keeps, and that of a client would not."""

    def build_model(self):
        model = super().build_model()
        bounded = tf.keras.layers.Dense(3, kernel_constraint=tf.keras.constraints.MaxNorm(0.1))
        return tf.keras.Sequential([*model.layers, bounded])


def test_what_federated_training_would_leave_out_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"constraints on .*kernel.*leaves out"):
        rounds.train(Bounded(), LocalLink([]), PATIENT, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_full_disk_ends_the_run_in_a_sentence_and_nobody_counts_twice(tmp_path, answers, monkeypatch):
    save = checkpoints.save

    def save_one(folder, round_num, *rest):
        if round_num == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(folder, round_num, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_one)
        with pytest.raises(runs.RunError, match=r"stopped: .*No space left on device.* it goes on with --resume"):
            deploy(tmp_path / "full", answers, rounds=3)
    resumed, whole = deploy(tmp_path / "full", answers, resume=True, rounds=3), deploy(tmp_path / "whole", answers, rounds=3)
    timeless = [[{**row, "seconds": 0} for row in run.read_metrics()] for run in (resumed, whole)]
    assert timeless[0] == timeless[1]
    for a, b in zip(resumed.load_model().get_weights(), whole.load_model().get_weights()):
        np.testing.assert_array_equal(a, b)


class OtherPoints(Points):
    """The same task, as a version of it that has another model."""

    def build_model(self):
        return tf.keras.Sequential([tf.keras.layers.Dense(3, input_shape=(8,))])


def test_client_with_another_model_is_dropped_with_the_reason(tmp_path, answers, capsys):
    run = deploy(tmp_path, [*answers[:2], Node(OtherPoints, "all", "cleo").answer])
    assert [row["clients_dropped"] for row in run.read_metrics()] == [1, 1]
    said = " ".join(capsys.readouterr().out.split())
    assert "Round 2: client cleo does not take part. Expected a broadcast by identity (digest " in said
    assert "both sides need the same SPEC, threshold and model." in said


def test_client_without_the_servers_encoder_says_so():
    settings = messages.Settings("points", {"mean": "newer:8"}).pack()
    refusal = messages.unpack(Node(Points, "all", "anna").answer(settings))
    assert refusal.sentence.startswith("--mean: Expected STAGE") and refusal.sentence.endswith("found 'newer' in 'newer:8'.")


def test_too_few_clients_end_the_run_in_a_sentence(tmp_path, answers):
    silent = [only_on(messages.Train, lambda answer: None)(answer) for answer in answers[:2]]
    with pytest.raises(runs.RunError, match=r"Round 1 failed: expected at least 2 clients within 1 s, found 1\. .*--resume"):
        deploy(tmp_path, [*silent, answers[2]], rounds.Attendance(min_clients=2, timeout=1))
    assert runs.RunDirectory(tmp_path).read_metrics() == []


def test_second_node_of_a_client_takes_no_part(tmp_path, answers, capsys):
    run = deploy(tmp_path, [*answers, Node(Points, "all", "cleo").answer])
    assert "Client cleo is here already, on another node." in capsys.readouterr().out
    assert [row["clients_dropped"] for row in run.read_metrics()] == [0, 0]


def test_node_of_another_task_says_so(tmp_path, answers, capsys):
    deploy(tmp_path, [*answers, Node(Emnist, "digits", "form00").answer])
    assert "Expected the task emnist, found a server that trains points." in capsys.readouterr().out


def test_node_without_its_client_says_so(tmp_path, answers, capsys):
    deploy(tmp_path, [*answers, Node(Points, "all").answer])
    assert "Expected one client in points, found 3 clients: anna, ben, cleo" in capsys.readouterr().out


def test_update_that_is_not_finite_counts_nothing():
    experiment = Points(data="broken")
    work = ClientWork(experiment, experiment.load_data(), "anna")
    update = work.train([x.numpy() for x in model_variables(work.model)], 1, [tf.constant(0.1)])
    assert update.weight == 0
    assert all(not np.any(x) for x in (*update.values, *update.measured))


@pytest.mark.parametrize("settings", [{"noise_multiplier": 1.0, "weighted": False}, {"secure": True}, {"dropout": 0.5}])
def test_settings_of_the_simulation_alone_are_refused(tmp_path, answers, settings):
    with pytest.raises(SettingsError, match="it exists in the simulation only"):
        deploy(tmp_path / "run", answers, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", [b"", b"\x09", b"\x02abc", messages.Unknown().pack() + b"x", messages.Refusal("no").pack()[:-1]])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(messages.MessageError, match="Expected a"):
        messages.unpack(data)


def test_messages_come_back_as_they_were():
    for message in (
        messages.Settings("points", {"seed": 3}, "ab"),
        messages.Hello("anna", {"tensorflow": "2"}),
        messages.Train(b"12345678", 3, 2**31 - 1, b"n", b"", b"model"),
        messages.Trained(3, b"s", b"update"),
        messages.Unknown(),
        messages.Refusal("Not today."),
    ):
        assert messages.unpack(message.pack()) == message


def test_server_of_another_format_is_refused():
    message = messages.Settings("points", {}).pack().replace(b'"format": 1', b'"format": 9')
    answer = messages.unpack(Node(Points, "all", "anna").answer(message))
    assert "messages of format 9, not 1; both sides need the same tff_kit" in answer.sentence


def test_damaged_payload_raises_nothing_but_a_payload_error(answers):
    del answers
    with pytest.raises(encoders.PayloadError):
        from tff_kit.deploy.aggregation import Averaging

        Averaging(Points()).read(messages.Trained(1, b"", b""))
