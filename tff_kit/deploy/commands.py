"""The commands of a deployment: `serve TASK`, `join`, `partition TASK` and `credential`."""

# Annotations here are evaluated at once, not kept as text: tyro reads types that exist only inside functions.

import contextlib
import dataclasses
import ipaddress
import json
import os
import pathlib
import shlex
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import tyro

from tff_kit.deploy import children, client_process, relay
from tff_kit.deploy import credentials as credential_files
from tff_kit.errors import UserError
from tff_kit.tasks import TASKS

_POLL_SECONDS = 0.2
_ALIVE_SECONDS = 5.0  # Between looks whether a run goes on.
_AGAIN_SECONDS = 5.0  # Until a SuperNode that ended is started again; its old lease lasts up to 60 s.
_START_SECONDS = 180.0  # Until a server app is there. It imports TensorFlow.
_RESTARTS = 3  # Of a SuperLink, in a row and without a round between them.


class AddressError(UserError, ValueError):
    """An address that can't be used. The message says why."""


def serve(task: str, arguments: Sequence[str]) -> Callable:
    """Returns the command that trains `task` with real clients."""
    settings_type = _federated(task)
    from tff_kit.deploy.rounds import Attendance
    from tff_kit.training.commands import default_settings

    default = default_settings(settings_type, arguments)

    def run(
        training: tyro.conf.OmitArgPrefixes[settings_type] = default,  # type: ignore[valid-type]
        attendance: tyro.conf.OmitArgPrefixes[Attendance] = Attendance(),  # noqa: B008
        address: str = "127.0.0.1:9092",
        credential: Optional[pathlib.Path] = None,
        insecure: bool = False,
        logdir: Optional[pathlib.Path] = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Trains with real clients into a run directory: waits until enough are there, trains, and ends.

        Args:
            training: The settings.
            attendance: Which clients a round needs.
            address: Where nodes connect, HOST:PORT; port 0 for a free one, which is printed.
            credential: The server's folder that python -m tff_kit credential makes. Beyond loopback it is needed.
            insecure: Let everybody take part, unencrypted, also beyond loopback.
            logdir: The run directory; by default a new one in logs/.
            resume: Go on with the stopped or killed run in --logdir, with its settings; more --rounds are allowed.
            overwrite: Replace a run in --logdir.
        """
        order = _Order(training, attendance, logdir, resume, overwrite)
        _serve(order, address, _server_credential(credential, _parse_address(address)[0], insecure))

    return run


def join(
    server: tyro.conf.Positional[str],
    task: tyro.conf.Positional[str],
    data: str,
    credential: Optional[pathlib.Path] = None,
    client: Optional[str] = None,
    insecure: bool = False,
    free_memory: bool = False,
) -> None:
    """Takes part in the trainings of a server as one client, until Ctrl-C. Survives a lost link and a restarted server.

    Args:
        server: Where the server is, HOST:PORT.
        task: The task to take part in, and no other.
        data: Where this client's data is, as --data of train; a folder that python -m tff_kit partition made.
        credential: This node's folder that python -m tff_kit credential made. Beyond loopback it is needed.
        client: This client's id, where the data is of more than one.
        insecure: Connect unencrypted, also beyond loopback.
        free_memory: Train in a process that ends with each round, so that all its memory is free in between, a GPU's too. Each
            round then takes some seconds more, in which TensorFlow starts.
    """
    host, _ = _parse_address(server)
    if task not in TASKS:
        raise UserError(f"Expected a task, one of {', '.join(TASKS)}; found {task!r}.")
    found = credential_files.NodeCredential(credential) if credential else None
    if not (found or insecure or _is_loopback(host)):
        raise AddressError(_needs_credential(host))
    _join(server, task, data, client, found, free_memory)


def partition(task: str, arguments: Sequence[str]) -> Callable:
    """Returns the command that writes clients' data of `task` to folders."""
    del arguments
    settings_type = _federated(task)
    default = settings_type()

    def run(
        out: pathlib.Path,
        only: tuple[str, ...] = (),
        training: tyro.conf.OmitArgPrefixes[settings_type] = default,  # type: ignore[valid-type]
    ) -> None:
        """Writes each client's data to a folder of its own, OUT/ID, to be copied to its device.

        Args:
            out: Folder of the folders.
            only: Ids of the clients to write; by default all.
            training: The settings, of which those of the data count.
        """
        from tff_kit.deploy.partition import write_all

        experiment: Any = training
        data = dataclasses.replace(experiment, local_epochs=1).load_data()
        for folder in write_all(data, only or data.client_ids, out):
            print(folder)

    return run


def credential(folder: tyro.conf.Positional[pathlib.Path], hosts: tuple[str, ...] = (), nodes: tuple[str, ...] = ()) -> None:
    """Makes credentials: FOLDER/server for the server, once, and FOLDER/ID for each node. Run again, it adds nodes.

    Args:
        folder: Where.
        hosts: Names and addresses by which nodes reach the server, beside localhost.
        nodes: Ids of new nodes.
    """
    credential_files.make(folder, hosts, nodes)
    for name in ("server", *nodes):
        print(folder / name)


@dataclasses.dataclass(frozen=True)
class _Order:
    """What a server is to do."""

    experiment: Any
    attendance: Any
    logdir: Optional[pathlib.Path] = None
    resume: bool = False
    overwrite: bool = False

    def write(self, path: pathlib.Path) -> None:
        from tff_kit.training import settings

        logdir = str(self.logdir.resolve()) if self.logdir else None
        fields = {
            "settings": settings.as_plain(self.experiment),
            "attendance": dataclasses.asdict(self.attendance),
            "logdir": logdir,
            "resume": self.resume,
            "overwrite": self.overwrite,
        }
        path.write_text(json.dumps(fields))


def run_server(link: Any, config: Mapping[str, Any]) -> None:
    """Trains in Flower's server app, as its run configuration says.

    Args:
      link: The way to the nodes, a `tff_kit.deploy.rounds.Link`.
      config: `task`; and `settings`, as on the command line, or `folder`, where `serve` left its order and waits for the outcome.
    """
    folder = pathlib.Path(str(config["folder"])) if config["folder"] else None
    if folder is None:
        order = _parse_order(str(config["task"]), shlex.split(str(config["settings"])))
        _train(order, link, None, None)
        return
    (folder / "started").touch()
    try:
        with open(folder / "output", "a", buffering=1) as output:
            _train(_read_order(str(config["task"]), folder / "order.json"), link, output, folder / "wire")
        outcome = ""
    except UserError as error:
        outcome = str(error)
    except Exception as error:
        outcome = f"The server failed: {error!r}"
    _write_whole(folder / "outcome", outcome)


def _train(order: _Order, link: Any, output: Any, wire: Optional[pathlib.Path]) -> None:
    from rich.console import Console

    from tff_kit.deploy import rounds

    counted = (lambda: relay.read_totals(wire)) if wire else None
    rounds.train(
        order.experiment,
        link,
        order.attendance,
        order.logdir,
        order.resume,
        order.overwrite,
        Console(file=output) if output else None,
        counted,
    )


def _read_order(task: str, path: pathlib.Path) -> _Order:
    from tff_kit.deploy.rounds import Attendance
    from tff_kit.training import settings

    fields = json.loads(path.read_text())
    logdir = pathlib.Path(fields["logdir"]) if fields["logdir"] else None
    attendance = Attendance(**fields["attendance"])
    experiment = settings.from_plain(_federated(task), fields["settings"])
    return _Order(experiment, attendance, logdir, fields["resume"], fields["overwrite"])


def _parse_order(task: str, arguments: Sequence[str]) -> _Order:
    settings_type = _federated(task)
    from tff_kit.deploy.rounds import Attendance
    from tff_kit.training.commands import default_settings

    default = default_settings(settings_type, arguments)

    def order(
        training: tyro.conf.OmitArgPrefixes[settings_type] = default,  # type: ignore[valid-type]
        attendance: tyro.conf.OmitArgPrefixes[Attendance] = Attendance(),  # noqa: B008
        logdir: Optional[pathlib.Path] = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> _Order:
        return _Order(training, attendance, logdir, resume, overwrite)

    return tyro.cli(order, args=list(arguments), prog="settings")


def _serve(order: _Order, address: str, credential: Optional[credential_files.ServerCredential]) -> None:
    from tff_kit.deploy.engine import SuperLink
    from tff_kit.deploy.rounds import check_deployable
    from tff_kit.training import runs

    check_deployable(order.experiment)
    host, port = _parse_address(address)
    experiment = order.experiment
    names = experiment.task, experiment.broadcast, experiment.mean, f"seed{experiment.seed}"
    logdir = runs.run_path(order.logdir, order.resume, *names)
    order = dataclasses.replace(order, logdir=logdir)
    with children.ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="tff_kit-") as name:
        folder = pathlib.Path(name)
        fleet, control = _free_port(), _free_port()
        with relay.Relay(host, port, fleet, folder / "wire") as relayed:
            print(f"Listening for clients on {host}:{relayed.port}{'' if credential else ', unencrypted and for everybody'}")
            outcome = _run_until_done(SuperLink(folder, credential, fleet, control), folder, order)
    if outcome:
        raise runs.RunError(outcome)


def _run_until_done(superlink: Any, folder: pathlib.Path, order: _Order) -> str:
    """Runs the server app until it tells its outcome; where its SuperLink ends before, both are started again."""
    reached, failures = -1, 0
    while True:
        order.write(folder / "order.json")
        (folder / "started").unlink(missing_ok=True)
        with superlink.running() as process:
            run_id = superlink.start_run({"task": order.experiment.task, "folder": str(folder)})
            outcome = _follow(superlink, process, run_id, folder)
        if outcome is not None:
            return outcome
        assert order.logdir is not None
        rounds_done = _rounds_done(order.logdir)
        failures = failures + 1 if rounds_done == reached else 0
        reached = rounds_done
        if failures == _RESTARTS:
            why = children.last_line(superlink.log)
            return f"Expected Flower's SuperLink to stay, found that it ended again and again; its log ends: {why}"
        print("Note: Flower's SuperLink or its server app ended; both are started again, and the run goes on.")
        order = dataclasses.replace(order, resume=True, overwrite=False)


def _follow(superlink: Any, process: Any, run_id: int, folder: pathlib.Path) -> Optional[str]:
    """Prints what the server app prints; returns its outcome, an error's sentence or "", or None where it has none."""
    began = looked = time.monotonic()
    with open(folder / "output", "a+") as output:
        while True:
            done = (folder / "outcome").exists()
            for line in output:
                print(line, end="", flush=True)
            if done:
                return (folder / "outcome").read_text()
            if process.poll() is not None:
                return None
            if not (folder / "started").exists() and time.monotonic() - began > _START_SECONDS:
                return None
            if time.monotonic() - looked > _ALIVE_SECONDS:
                looked = time.monotonic()
                if superlink.run_has_ended(run_id) and not (folder / "outcome").exists():
                    return None
            time.sleep(_POLL_SECONDS)


def _rounds_done(logdir: pathlib.Path) -> int:
    from tff_kit.training import runs

    with contextlib.suppress(runs.RunError):
        return len(runs.RunDirectory(logdir).read_metrics())
    return 0


def _join(server: str, task: str, data: str, client: Optional[str], credential: Any, free_memory: bool) -> None:
    from tff_kit.deploy import engine

    with children.ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="tff_kit-") as name:
        folder = pathlib.Path(name)
        command = client_process.command(task, folder / "node", data, client, os.getpid(), free_memory)
        print(f"Taking part in {task} on {server} with the data {data}, until Ctrl-C.", flush=True)
        with _ClientProcess(command) as process:
            while True:
                with engine.supernode(server, folder, credential, folder / "node", _free_port()) as node:
                    while node.poll() is None:
                        process.keep()
                        time.sleep(_POLL_SECONDS)
                if node.returncode == engine.FOREIGN_APP_CODE:
                    raise engine.EngineError(engine.FOREIGN_APP)
                print(
                    f"Note: The link to {server} ended; it is opened again. {children.last_line(folder / 'supernode.log')}",
                    flush=True,
                )
                time.sleep(_AGAIN_SECONDS)


class _ClientProcess:
    """A client's process, which is started again where it ends."""

    def __init__(self, command: Sequence[str]):
        self._command, self._stack = command, contextlib.ExitStack()

    def __enter__(self):
        self._start()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def keep(self) -> None:
        """Starts the process again if it has ended; raises `UserError` if it did so at once."""
        if self._process.poll() is None:
            return
        if time.monotonic() - self._started < _ALIVE_SECONDS:
            raise UserError("Expected the client's process to start, found that it ended at once; it says why above.")
        print("Note: The client's process ended; it is started again.", flush=True)
        self._stack.close()
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._process = self._stack.enter_context(children.running(self._command, None))


def _federated(task: str) -> Any:
    """Returns the settings class of a task, an `Experiment`; imports TensorFlow."""
    children.import_tensorflow()
    from tff_kit.deploy.node import find_federated_task

    return find_federated_task(task)


def _server_credential(folder: Optional[pathlib.Path], host: str, insecure: bool) -> Optional[credential_files.ServerCredential]:
    if folder:
        return credential_files.ServerCredential(folder)
    if not (insecure or _is_loopback(host)):
        raise AddressError(_needs_credential(host))
    return None


def _needs_credential(host: str) -> str:
    return (
        f"Expected --credential FOLDER for {host}, which is beyond this machine, found none. Make one with python -m tff_kit "
        "credential FOLDER --hosts HOST --nodes ID ..., or say --insecure where nobody else reaches the network."
    )


def _parse_address(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise AddressError(f"Expected an address HOST:PORT, found {address!r}.")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as any_server:
        return any_server.getsockname()[1]


def _write_whole(path: pathlib.Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
