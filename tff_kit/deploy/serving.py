"""A server of real clients: Flower's SuperLink, the relay that counts bytes, and the server app, started again where they end."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shlex
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Optional

from rich.console import Console

from tff_kit.deploy import children, credentials, orders, relay, rounds
from tff_kit.deploy.addresses import free_port
from tff_kit.errors import UserError
from tff_kit.training import runs

_POLL_SECONDS = 0.2
_ALIVE_SECONDS = 5.0  # Between looks whether a run goes on.
_START_SECONDS = 180.0  # Until a server app is there. It imports TensorFlow.
_RESTARTS = 3  # Of a SuperLink, in a row and without a round between them.


def serve(order: orders.Order, host: str, port: int, credential: Optional[credentials.ServerCredential]) -> None:
    """Trains with the clients that connect to this machine, and prints what the server app prints.

    Args:
      order: What is trained, and where the run is kept.
      host: Where nodes connect.
      port: Likewise; 0 for a free one.
      credential: The server's; `None` lets everybody take part, unencrypted.

    Raises:
      tff_kit.experiment.SettingsError: If a setting is for the simulation only.
      tff_kit.training.runs.RunError: If the training can't go on; the message says why.
    """
    from tff_kit.deploy.engine import SuperLink  # Flower, which only a deployment's environment has.

    rounds.check_deployable(order.experiment)
    experiment = order.experiment
    names = experiment.task, experiment.broadcast, experiment.mean, f"seed{experiment.seed}"
    logdir = runs.run_path(order.place.logdir, order.place.resume, *names)
    order = dataclasses.replace(order, place=dataclasses.replace(order.place, logdir=logdir))
    with children.ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="tff_kit-") as name:
        folder = pathlib.Path(name)
        fleet, control = free_port(), free_port()
        with relay.Relay(host, port, fleet, folder / "wire") as relayed:
            print(f"Listening for clients on {host}:{relayed.port}{'' if credential else ', unencrypted and for everybody'}")
            outcome = _run_until_done(SuperLink(folder, credential, fleet, control), folder, order)
    if outcome:
        raise runs.RunError(outcome)


def _run_until_done(superlink: Any, folder: pathlib.Path, order: orders.Order) -> str:
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
        assert order.place.logdir is not None
        rounds_done = _rounds_done(order.place.logdir)
        failures = failures + 1 if rounds_done == reached else 0
        reached = rounds_done
        if failures == _RESTARTS:
            why = children.last_line(superlink.log)
            return f"Expected Flower's SuperLink to stay, found that it ended again and again; its log ends: {why}"
        print("Note: Flower's SuperLink or its server app ended; both are started again, and the run goes on.")
        order = dataclasses.replace(order, place=runs.Place(order.place.logdir, resume=True))


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
    with contextlib.suppress(runs.RunError):
        return len(runs.RunDirectory(logdir).read_metrics())
    return 0


def run_server(link: Any, config: Mapping[str, Any]) -> None:
    """Trains in Flower's server app, as its run configuration says.

    Args:
      link: The way to the nodes, a `tff_kit.deploy.rounds.Link`.
      config: `task`; and `settings`, as on the command line, or `folder`, where `serve` left its order and waits for the outcome.
    """
    folder = pathlib.Path(str(config["folder"])) if config["folder"] else None
    if folder is None:
        order = orders.parse(str(config["task"]), shlex.split(str(config["settings"])))
        _train(order, link, None, None)
        return
    (folder / "started").touch()
    try:
        with open(folder / "output", "a", buffering=1) as output:
            _train(orders.read(str(config["task"]), folder / "order.json"), link, output, folder / "wire")
        outcome = ""
    except UserError as error:
        outcome = str(error)
    except Exception as error:
        outcome = f"The server failed: {error!r}"
    runs.write_whole(folder / "outcome", outcome)


def _train(order: orders.Order, link: Any, output: Any, wire: Optional[pathlib.Path]) -> None:
    counted = (lambda: relay.read_totals(wire)) if wire else None
    rounds.train(
        order.experiment,
        link,
        order.attendance,
        order.place.logdir,
        order.place.resume,
        order.place.overwrite,
        Console(file=output) if output else None,
        counted,
    )
