"""The commands of a deployment: `serve TASK`, `join`, `partition TASK` and `credential`."""

# Annotations here are evaluated at once, not kept as text: tyro reads types that exist only inside functions.

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Callable, Optional

import tyro

from tff_kit.deploy import children
from tff_kit.deploy import credentials as credential_files
from tff_kit.deploy.addresses import AddressError, is_loopback, parse_address
from tff_kit.errors import UserError
from tff_kit.tasks import TASKS


def serve(task: str, arguments: Sequence[str]) -> Callable:
    """Returns the command that trains `task` with real clients."""
    settings_type = _federated(task)
    from tff_kit.deploy import orders, serving
    from tff_kit.training.commands import default_settings

    default = default_settings(settings_type, arguments)

    def run(
        training: tyro.conf.OmitArgPrefixes[settings_type] = default,  # type: ignore[valid-type]
        attendance: tyro.conf.OmitArgPrefixes[orders.Attendance] = orders.Attendance(),  # noqa: B008
        place: tyro.conf.OmitArgPrefixes[orders.Place] = orders.Place(),  # noqa: B008
        address: str = "127.0.0.1:9092",
        credential: Optional[pathlib.Path] = None,
        insecure: bool = False,
    ) -> None:
        """Trains with real clients into a run directory: waits until enough are there, trains, and ends.

        Args:
            training: The settings.
            attendance: Which clients a round needs.
            place: Where the run is kept.
            address: Where nodes connect, HOST:PORT; port 0 for a free one, which is printed.
            credential: The server's folder that python -m tff_kit credential makes. Beyond loopback it is needed.
            insecure: Let everybody take part, unencrypted, also beyond loopback.
        """
        host, port = parse_address(address)
        serving.serve(orders.Order(training, attendance, place), host, port, _server_credential(credential, host, insecure))

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
    host, _ = parse_address(server)
    if task not in TASKS:
        raise UserError(f"Expected a task, one of {', '.join(TASKS)}; found {task!r}.")
    found = credential_files.NodeCredential(credential) if credential else None
    if not (found or insecure or is_loopback(host)):
        raise AddressError(_needs_credential(host))
    from tff_kit.deploy import joining

    joining.join(server, task, data, client, found, free_memory)


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


def _federated(task: str) -> Any:
    """Returns the settings class of a task, an `Experiment`; imports TensorFlow."""
    children.import_tensorflow()
    from tff_kit.deploy.node import find_federated_task

    return find_federated_task(task)


def _server_credential(folder: Optional[pathlib.Path], host: str, insecure: bool) -> Optional[credential_files.ServerCredential]:
    if folder:
        return credential_files.ServerCredential(folder)
    if not (insecure or is_loopback(host)):
        raise AddressError(_needs_credential(host))
    return None


def _needs_credential(host: str) -> str:
    return (
        f"Expected --credential FOLDER for {host}, which is beyond this machine, found none. Make one with python -m tff_kit "
        "credential FOLDER --hosts HOST --nodes ID ..., or say --insecure where nobody else reaches the network."
    )
