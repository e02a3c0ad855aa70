"""Rounds of federated averaging with real clients: who is there, who answers, and what becomes of the model."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Optional, Protocol, Union

from rich.console import Console

from tff_kit.datasets import FederatedDataset, batches
from tff_kit.deploy import checkpoints, messages
from tff_kit.deploy.aggregation import Averaging, Received, Sent, State
from tff_kit.encoders import PayloadError
from tff_kit.experiment import Experiment, SettingsError
from tff_kit.training import logs, memory, participation, report, runs, sources
from tff_kit.training.evaluation import check_measures, compiled, evaluate_model

_POLL_SECONDS = 0.2
_GREET_SECONDS = 30.0  # Until a node that could not take part is asked again.
_ASK_AGAIN_SECONDS = 60.0  # Until a silent node is asked again, and then twice as long: a link that breaks loses messages.
_TRIES = 3  # Of a round in which too few clients answer.


class Link(Protocol):
    """What carries messages between server and nodes. A node is a number that stays the same while the node's key does."""

    def nodes(self) -> set[int]:
        """Returns the nodes that are there."""

    def send(self, node: int, message: bytes) -> None:
        """Sends a message; its answer comes by `receive`, as does a refusal where the node is lost."""

    def receive(self) -> list[tuple[int, bytes]]:
        """Returns the answers that have come since the last call, without waiting."""

    def forget(self, node: int) -> None:
        """Gives up the answers that this node has not sent yet. What it is sent later is answered as ever."""


@dataclasses.dataclass(frozen=True)
class Attendance:
    """Which clients a round needs, and how long it waits for them."""

    min_clients: int = 1
    """Clients that have to answer in a round. With fewer the round is tried again, three times."""
    timeout: float = 600.0
    """Seconds in which a round's clients have to answer. Those that are later have received the model and do not count."""

    def __post_init__(self) -> None:
        if self.min_clients < 1 or not self.timeout > 0:
            raise SettingsError(
                f"Expected --min-clients of at least 1 and a --timeout of more than 0 s, found {self.min_clients} and "
                f"{self.timeout} s."
            )


def train(
    experiment: Experiment,
    link: Link,
    attendance: Attendance,
    logdir: Optional[Union[str, pathlib.Path]] = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Optional[Console] = None,
    wire: Optional[Callable[[], tuple[int, int]]] = None,
) -> runs.RunDirectory:
    """Trains with the nodes that `link` reaches, and writes the run directory that `tff_kit.train` writes.

    Args:
      experiment: The settings. Of its data the server reads the held-out examples only.
      link: The way to the nodes.
      attendance: Which clients a round needs.
      logdir: The run directory; by default a new one in `logs/`, named after the settings and the time.
      resume: Go on with a run that was stopped or killed, from its last round.
      overwrite: Replace a run in `logdir`.
      console: Where to report progress; by default standard output.
      wire: Returns the bytes that the sockets have carried to the nodes and from them; `None` where nobody counts.

    Raises:
      tff_kit.datasets.DataError: If the held-out data is missing or broken.
      tff_kit.experiment.SettingsError: If a setting is for the simulation only.
      tff_kit.training.runs.RunError: If `logdir` can't be used as asked, or too few clients answer.
    """
    check_deployable(experiment)
    console = console or Console()
    data = experiment.load_data()
    batches.check_held_out(data)
    check_measures(experiment, data)
    path = runs.run_path(logdir, resume, experiment.task, experiment.broadcast, experiment.mean, f"seed{experiment.seed}")
    learned_from = {"loss": sources.describe_loss(experiment.build_loss())}  # Clients come and go.
    with runs.open_run(path, experiment, resume, overwrite, learned_from) as run, runs.told(run):
        run.write_settings(experiment, data.name, data.notes, attendance=dataclasses.asdict(attendance), sources=learned_from)
        console.print(
            f"Training {experiment.task}, {experiment.clients} clients a round, broadcast {experiment.broadcast}, mean "
            f"{experiment.mean}, with real clients; tested on {data.name}; into {run.path}",
            highlight=False,
            soft_wrap=True,
        )
        _Training(experiment, data, run, link, attendance, console, wire).run()
    return run


def check_deployable(experiment: Experiment) -> None:
    """Raises `SettingsError` for a setting that real clients can't be trained with."""
    only_simulated = ("noise_multiplier", "secure", "dropout", "straggling")
    for name in only_simulated:
        if getattr(experiment, name):
            flag = "--" + name.replace("_", "-")
            raise SettingsError(
                f"Expected no {flag} with real clients, found {getattr(experiment, name)}: it exists in the simulation only. "
                f"Leave it out, or use python -m tff_kit train."
            )
    own = [name for name in ("build_aggregation_process", "build_server_optimizer") if _is_own(experiment, name)]
    if own:
        raise SettingsError(f"Expected the aggregation of the settings, found a task of its own {own[0]}, which needs TFF.")


def _is_own(experiment: Experiment, name: str) -> bool:
    return getattr(type(experiment), name) is not getattr(Experiment, name)


class Population:
    """The clients that are there, by the nodes that they said hello from."""

    def __init__(self, link: Link, settings: messages.Settings, note: Callable[[str], None]):
        self._link, self._settings, self._note = link, settings.pack(), note
        self._clients: dict[int, str] = {}  # By node.
        self._greet_at: dict[int, float] = {}  # When a node is asked again; never, where it takes part.

    def greet(self) -> None:
        """Sends the settings to nodes that are new or due, and forgets those that have left."""
        there, now = self._link.nodes(), time.monotonic()
        for node in self._greet_at.keys() - there:
            del self._greet_at[node]
            if node in self._clients:
                self._note(f"Client {self._clients.pop(node)} has left.")
        for node in there:
            if now >= self._greet_at.get(node, now):
                self.greet_again(node)

    def greet_again(self, node: int) -> None:
        """Sends the settings to a node, such as one that has started anew."""
        self._greet_at[node] = time.monotonic() + _ASK_AGAIN_SECONDS
        self._link.send(node, self._settings)

    def hear(self, node: int, message: messages.Message) -> None:
        """Takes in a node's answer to the settings."""
        if isinstance(message, messages.Hello):
            if self.node_of(message.client) in (None, node):
                if node not in self._clients:
                    self._note(f"Client {message.client} is here, with TensorFlow {message.versions.get('tensorflow')}.")
                self._clients[node], self._greet_at[node] = message.client, math.inf
                return
            message = messages.Refusal(f"Client {message.client} is here already, on another node.")
        if isinstance(message, messages.Refusal):
            self._greet_at[node] = time.monotonic() + _GREET_SECONDS
            self._note(f"A node can't take part. {message.sentence}")

    def clients(self) -> list[str]:
        """Returns all clients that are there, sorted."""
        return sorted(self._clients.values())

    def node_of(self, client: str) -> Optional[int]:
        """Returns the node of a client, `None` where it is not there."""
        return next((node for node, its in self._clients.items() if its == client), None)

    def client_of(self, node: int) -> str:
        """Returns what to call a node."""
        return self._clients.get(node, f"of node {node}")


@dataclasses.dataclass
class _Answers:
    """What came of a round: the clients' updates, and who sent none that counts."""

    received: dict[str, Received] = dataclasses.field(default_factory=dict)
    left_out: int = 0
    dropped: int = 0
    late: int = 0
    sent: int = 0


class _Request:
    """The model that a node was sent in a round, and whether that seems to be lost."""

    def __init__(self, message: bytes):
        self.message, self.lost = message, False
        self._patience = _ASK_AGAIN_SECONDS
        self._due = time.monotonic() + self._patience

    def is_due(self) -> bool:
        """Returns whether the node has been silent for so long that it is to be asked again. It then counts as lost."""
        if time.monotonic() < self._due:
            return False
        self._patience *= 2
        self._due, self.lost = time.monotonic() + self._patience, True
        return True


class _Training:
    """One run: the model's state, the nodes, and where it reports to."""

    def __init__(
        self,
        experiment: Experiment,
        data: FederatedDataset,
        run: runs.RunDirectory,
        link: Link,
        attendance: Attendance,
        console: Console,
        wire: Optional[Callable[[], tuple[int, int]]],
    ):
        self._experiment, self._data, self._run, self._link, self._console = experiment, data, run, link, console
        self._attendance, self._wire = attendance, wire
        self._averaging = Averaging(experiment)
        self._model = compiled(self._averaging.model, experiment)
        self._population = Population(link, self._averaging.settings, self._note)
        self._logs = logs.Logs(run, experiment, data, logs.WIRE)

    def run(self) -> None:
        """Goes on from the last round to the last one that the settings ask for, and keeps the model."""
        state, done, spent = self._start()
        with report.Progress(self._console, self._experiment, done) as progress, memory.given_back() as give_back:
            for round_num in range(done + 1, self._experiment.rounds + 1):
                state, row = self._round(state, round_num, spent)
                self._logs.write(row)
                spent = {name: row[name] for name in spent}
                checkpoints.save(self._run.checkpoints, round_num, state, spent)
                progress.show(row)
                give_back()
        self._averaging.put_weights(state)
        self._model.save(self._run.model)
        report.print_table(self._console, self._experiment, self._data, self._run)

    def _start(self) -> tuple[State, int, dict[str, int]]:
        """Returns the state to go on from, the rounds done, and the bits and bytes spent in them."""
        state = self._averaging.initial_state()
        spent = dict.fromkeys(("broadcast_bits", "aggregate_bits", *(logs.WIRE if self._wire else ())), 0)
        found = checkpoints.load_last(self._run.checkpoints, state, spent)
        if found is None:
            self._logs.clear()
        else:
            self._logs.go_on_after(found[1])
        state, done, spent = found or (state, 0, spent)
        if self._wire:
            self._wire_start = [spent[name] - carried for name, carried in zip(logs.WIRE, self._wire())]
        return state, done, spent

    def _round(self, state: State, round_num: int, spent: dict[str, int]) -> tuple[State, dict[str, Any]]:
        sent, began = self._averaging.send(state), 0.0
        for attempt in range(1, _TRIES + 1):
            clients = self._attend(round_num)
            began = began or time.monotonic()  # To wait for clients to come is no part of a round.
            answers = self._collect(round_num, clients, sent)
            enough = len(answers.received) >= self._attendance.min_clients
            if enough:
                break
            self._note(f"Round {round_num}: {len(answers.received)} of {len(clients)} clients answered, attempt {attempt}.")
        if not enough:
            raise self._too_few(round_num, len(answers.received))
        ordered = [answers.received[client] for client in clients if client in answers.received]
        state, found = self._averaging.apply(state, sent, ordered)
        seconds = time.monotonic() - began
        row = self._row(round_num, found, sent, answers, ordered, spent, seconds)
        if self._wire:
            row.update({name: start + carried for name, start, carried in zip(logs.WIRE, self._wire_start, self._wire())})
        if round_num % self._experiment.eval_every == 0 or round_num == self._experiment.rounds:
            self._averaging.put_weights(state)
            tested = evaluate_model(self._model, self._data.test, self._experiment)
            row.update({f"test_{name}": value for name, value in tested.items() if name != "examples"})
        return state, row

    def _row(
        self,
        round_num: int,
        found: dict[str, Optional[float]],
        sent: Sent,
        answers: _Answers,
        received: Sequence[Received],
        spent: dict[str, int],
        seconds: float,
    ) -> dict[str, Any]:
        names = ["loss", *(metric.name for metric in self._experiment.metrics())]
        return {
            "round": round_num,
            **{f"train_{name}": found[name] for name in names},
            **{f"test_{name}": None for name in names},
            "broadcast_bits": spent["broadcast_bits"] + sent.bits * answers.sent,
            "aggregate_bits": spent["aggregate_bits"] + sum(one.bits for one in received),
            "seconds": seconds,
            "broadcast_distortion": sent.distortion,
            "aggregate_distortion": found["distortion"],
            "clients_left_out": answers.left_out + sum(one.left_out for one in received),
            "clients_empty": sum(one.weight == 0 and not one.left_out for one in received) if self._experiment.weighted else None,
            "clients_dropped": answers.dropped,
            "clients_late": answers.late,
        }

    def _attend(self, round_num: int) -> list[str]:
        """Returns the clients of a round, once enough are there."""
        wanted, until, told = self._experiment.clients, time.monotonic() + self._attendance.timeout, False
        while True:
            self._population.greet()
            for node, answer in self._receive():
                self._population.hear(node, answer)
            there = self._population.clients()
            if len(there) >= wanted:
                break
            if not told:
                told = True
                self._note(f"Round {round_num} waits for {wanted} clients; {len(there)} are here.")
            if time.monotonic() > until:
                if len(there) < self._attendance.min_clients:
                    raise self._too_few(round_num, len(there))
                break
            time.sleep(_POLL_SECONDS)
        return participation.sample_clients(there, min(wanted, len(there)), round_num, self._experiment.seed)

    def _collect(self, round_num: int, clients: Sequence[str], sent: Sent) -> _Answers:
        """Sends the model to the clients of a round and waits for their updates."""
        asked = self._ask(round_num, clients, sent)
        answers, until = _Answers(sent=len(asked)), time.monotonic() + self._attendance.timeout
        while asked and time.monotonic() < until:
            for node, answer in self._receive():
                if node not in asked:
                    self._population.hear(node, answer)
                elif self._hear(round_num, node, answer, asked[node], answers):
                    self._link.forget(node)  # It may be asked more than once.
                    del asked[node]
            for node, request in asked.items():
                if request.is_due():
                    self._population.greet_again(node)
            time.sleep(_POLL_SECONDS)
        answers.late = len(asked)
        for node in asked:
            self._link.forget(node)
            self._note(f"Round {round_num}: client {self._population.client_of(node)} is late, and does not count.")
        return answers

    def _ask(self, round_num: int, clients: Sequence[str], sent: Sent) -> dict[int, _Request]:
        """Sends the model to the clients of a round; returns what was sent, by node."""
        seeds = participation.client_seeds(len(clients), round_num, self._experiment.seed)
        asked = {}
        for client, seed in zip(clients, seeds.tolist()):
            node = self._population.node_of(client)
            assert node is not None
            key = self._averaging.settings.key
            message = messages.Train(key, round_num, seed, sent.numbers, sent.params, sent.model).pack()
            asked[node] = _Request(message)
            self._link.send(node, message)
        return asked

    def _hear(self, round_num: int, node: int, answer: messages.Message, request: _Request, answers: _Answers) -> bool:
        """Takes in the answer of a node that was sent the model; returns whether it is its last one of the round."""
        client = self._population.client_of(node)
        if isinstance(answer, messages.Unknown):
            request.lost = True
            self._population.greet_again(node)
            return False
        if isinstance(answer, messages.Hello):
            self._population.hear(node, answer)
            if request.lost:  # A node answers in order: had it the model, it would have trained first.
                request.lost = False
                self._link.send(node, request.message)
                answers.sent += 1
            return False
        try:
            if isinstance(answer, messages.Refusal):
                answers.dropped += 1
                self._note(f"Round {round_num}: client {client} does not take part. {answer.sentence}")
            elif not isinstance(answer, messages.Trained) or answer.round_num != round_num:
                raise PayloadError("Expected the update of this round, found another message.")
            else:
                answers.received[client] = self._averaging.read(answer)
        except PayloadError as error:
            answers.left_out += 1
            self._note(f"Round {round_num}: the update of client {client} is left out. {error}")
        return True

    def _receive(self) -> list[tuple[int, messages.Message]]:
        """Returns what has come; what is no message becomes a refusal."""
        found: list[tuple[int, messages.Message]] = []
        for node, data in self._link.receive():
            try:
                found.append((node, messages.unpack(data)))
            except messages.MessageError as error:
                found.append((node, messages.Refusal(str(error))))
        return found

    def _too_few(self, round_num: int, found: int) -> runs.RunError:
        return runs.RunError(
            f"Round {round_num} failed: expected at least {self._attendance.min_clients} clients within "
            f"{self._attendance.timeout:.0f} s, found {found}. The run goes on with --resume --logdir {self._run.path}."
        )

    def _note(self, sentence: str) -> None:
        report.print_note(self._console, sentence)
