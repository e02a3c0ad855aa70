"""The deployment engine: all that touches Flower, so that its pin can move. Written for Flower 1.39.

A server has a SuperLink, a node a SuperNode. What runs in them is named by `app/pyproject.toml`, which holds no code: Flower
finds `server_app` and `client_app` here, in the installed package.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from tff_kit.deploy import channel, children, client_process
from tff_kit.deploy.credentials import NodeCredential, ServerCredential
from tff_kit.errors import UserError, first_line

APP = pathlib.Path(__file__).parent / "app"
"""The folder for `flwr run`."""

FOREIGN_APP = (
    "Expected the app of this tff_kit, found that the server sends another, which this node does not run. Both need one tff_kit."
)
FOREIGN_APP_CODE = 3
"""What a SuperNode says and ends with where a server sends an app of its own."""

_EXECUTOR_ENDED = "Expected Flower's SuperExec to stay, found that it ended: no message would be answered any more."
_EXECUTOR_ENDED_CODE = 4
_ENDED_CODE = 5

_RECORD, _BYTES = "m", "b"
_START_SECONDS = 180.0
_POLL_SECONDS = 0.2
_RECONNECT_SECONDS = 120  # After which a SuperNode without a link ends, since some never find one again; `join` restarts it.
_TASK_POLL = "0.2"  # Seconds between an engine's looks for something to start; 1 by default.
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _TASK_POLL}

client_app = ClientApp()
server_app = ServerApp()


class EngineError(UserError, RuntimeError):
    """Something that Flower could not do. The message says what was expected and where its log is."""


@client_app.train()
def _carry(message: Message, context: Context) -> Message:
    """Carries a message to the client's long-lived process, and its answer back."""
    socket = context.node_config.get("socket")
    process = pathlib.Path(str(socket)) if socket else _ensure_process(context.node_config)
    answer = channel.ask(process, bytes(message.content[_RECORD][_BYTES]), client_process.START_SECONDS)
    return Message(_content(answer), reply_to=message)


@server_app.main()
def _train(grid: Grid, context: Context) -> None:
    """Trains with the nodes of a federation: what `flwr run` starts, and `serve` too."""
    children.end_with(os.getppid())  # Flower's SuperExec, which starts the app in a session of its own and leaves it behind.
    children.import_tensorflow()
    from tff_kit.deploy.serving import run_server

    run_server(_GridLink(grid), context.run_config)


def _content(data: bytes) -> RecordDict:
    return RecordDict({_RECORD: ConfigRecord({_BYTES: data})})


class _GridLink:
    """Carries the server's messages by Flower's grid."""

    def __init__(self, grid: Grid):
        self._grid = grid
        self._waiting: dict[str, int] = {}  # From a message's id to its node.

    def nodes(self) -> set[int]:
        return set(self._grid.get_node_ids())

    def send(self, node: int, message: bytes) -> None:
        for sent in self._grid.push_messages([Message(_content(message), node, "train")]):
            self._waiting[sent] = node

    def receive(self) -> list[tuple[int, bytes]]:
        if not self._waiting:
            return []
        answers = []
        for reply in self._grid.pull_messages(list(self._waiting)):
            node = self._waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                answers.append((node, _answer(reply)))
        return answers

    def forget(self, node: int) -> None:
        self._waiting = {sent: its for sent, its in self._waiting.items() if its != node}


def _answer(reply: Message) -> bytes:
    """Returns a node's answer; what Flower says of a node that gave none becomes a refusal."""
    from tff_kit.deploy import messages

    if reply.has_error():
        return messages.Refusal(f"Flower lost it, error {reply.error.code}: {reply.error.reason}").pack()
    try:
        return bytes(reply.content[_RECORD][_BYTES])
    except (KeyError, TypeError):
        return messages.Refusal("Expected a message of tff_kit, found another.").pack()


def _ensure_process(config: Mapping[str, Any]) -> pathlib.Path:
    """Returns the socket of the client's process, which is started where the node was not started by `join`."""
    data, task = str(config.get("local-data", "")), str(config.get("task", ""))
    if not data or not task:
        raise ValueError('Expected the task and local-data in --node-config, as in task="emnist" local-data="FOLDER".')
    folder = pathlib.Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"tff_kit-{os.getuid()}-{os.getppid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise PermissionError(f"Expected the folder {folder} to be this user's alone, found others who may use it.")
    socket = folder / "node"
    if not (folder / "started").exists():
        (folder / "started").touch()
        client = str(config["client"]) if "client" in config else None
        command = client_process.command(task, socket, data, client, os.getppid())
        with open(folder / "log", "wb") as log:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    return socket


class SuperLink:
    """A SuperLink on this machine, for one server.

    Args:
      folder: Of its files, this user's alone.
      credential: With it, nodes connect by TLS and have to have one of its keys.
      fleet_port: Where the nodes' connections arrive, on loopback.
      control_port: Where this class gives it orders, on loopback.
    """

    def __init__(self, folder: pathlib.Path, credential: Optional[ServerCredential], fleet_port: int, control_port: int):
        self._folder, self._credential, self.fleet_port = folder, credential, fleet_port
        self._control = f"127.0.0.1:{control_port}"
        self.log = folder / "superlink.log"

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen]:
        """Runs it while the context lasts, ready for nodes."""
        host, port = self._control.split(":")
        command = [
            _program("flower-superlink"),
            *("--fleet-api-address", f"127.0.0.1:{self.fleet_port}", "--host", host, "--port", port),
            *("--database", str(self._folder / "state.db"), "--disable-runtime-dependency-installation"),
        ]
        if self._credential:
            certificate = str(self._credential.certificate)
            command += ["--ssl-ca-certfile", certificate, "--ssl-certfile", certificate]
            command += ["--ssl-keyfile", str(self._credential.key), "--enable-supernode-auth"]
        else:
            command += ["--insecure"]
        with children.running(command, self.log, _environment(self._folder)) as process:
            self._wait_until_ready(process)
            yield process

    def start_run(self, config: Mapping[str, Any]) -> int:
        """Starts the server app with this run configuration, and returns the run's id."""
        content = build_fab_from_disk(APP)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        with self._client() as client:
            request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
            return client.StartRun(request).run_id

    def run_has_ended(self, run_id: int) -> bool:
        """Returns whether a run has ended, whichever way."""
        with self._client() as client:
            run = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
        return run.status.status == "finished"

    def _wait_until_ready(self, process: subprocess.Popen) -> None:
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._register()
                return
            except Exception as error:
                if process.poll() is not None or time.monotonic() > until:
                    why = children.last_line(self.log) or f"no answer in {_START_SECONDS:.0f} s"
                    raise EngineError(f"Expected Flower's SuperLink to start, found: {why}") from error
                time.sleep(_POLL_SECONDS)

    def _register(self) -> None:
        """Tells a SuperLink that answers which nodes may join."""
        with self._client() as client:
            client.ListRuns(ListRunsRequest())
            for name, key in (self._credential.nodes if self._credential else {}).items():
                with contextlib.suppress(Exception):  # A key that it knows already, from before it was started again.
                    client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    @contextlib.contextmanager
    def _client(self) -> Iterator[ControlHttpClient]:
        client = ControlHttpClient.from_server_address(
            server_address=self._control,
            insecure=self._credential is None,
            root_certificates=self._credential.certificate.read_bytes() if self._credential else None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        try:
            yield client
        finally:
            client.close()


@contextlib.contextmanager
def supernode(
    address: str, folder: pathlib.Path, credential: Optional[NodeCredential], socket: pathlib.Path, port: int
) -> Iterator[subprocess.Popen]:
    """Runs a SuperNode while the context lasts.

    Args:
      address: Of the server.
      folder: Of its files, this user's alone.
      credential: The node's; without one it connects unencrypted.
      socket: Of the client's process.
      port: A free one on loopback, for Flower's own use.
    """
    command = [sys.executable, "-m", "tff_kit.deploy.supernode", "--superlink", address, "--node-config", f'socket="{socket}"']
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-wait-time", str(_RECONNECT_SECONDS)]
    if credential:
        command += ["--root-certificates", str(credential.certificate), "--auth-supernode-private-key", str(credential.key)]
    else:
        command += ["--insecure"]
    with children.running(command, folder / "supernode.log", _environment(folder)) as process:
        yield process


def run_supernode() -> None:
    """Runs Flower's SuperNode with this process's arguments, for servers whose app is the installed one and no other.

    An app is code that a server sends and a node runs. Flower can verify its author only for apps of its hub. Here a node
    compares it with its own `app` folder, which holds no code, and ends where a server sends another.
    """
    own = hashlib.sha256(build_fab_from_disk(APP)).hexdigest()
    read_config = start_client_internal.get_fused_config_from_fab

    def read_own_config(content: bytes, run: Any) -> Any:
        if hashlib.sha256(content).hexdigest() != own:
            print(FOREIGN_APP, flush=True)
            os._exit(FOREIGN_APP_CODE)
        return read_config(content, run)

    start_client_internal.get_fused_config_from_fab = read_own_config
    start_client_internal.subprocess = types.SimpleNamespace(Popen=_start_executor)
    try:
        flower_supernode()
    except Exception as error:  # Such as no link for too long. Flower's threads would keep the process, deaf.
        print(f"Flower's SuperNode ended: {first_line(error)}", flush=True)
        os._exit(_ENDED_CODE)


def _start_executor(command: Sequence[str]) -> None:
    """Starts Flower's SuperExec, which starts the app for each message, and ends this process with it.

    Flower's SuperNode would not notice: it would take the next message and wait for its answer for ever.
    """
    process = subprocess.Popen(command)

    def watch() -> None:
        process.wait()
        print(_EXECUTOR_ENDED, flush=True)
        os._exit(_EXECUTOR_ENDED_CODE)

    threading.Thread(target=watch, daemon=True).start()


def _program(name: str) -> str:
    """Returns the path of one of Flower's programs in this environment."""
    return str(pathlib.Path(sys.executable).parent / name)


def _environment(folder: pathlib.Path) -> dict[str, str]:
    """Returns the environment of Flower's processes, which start each other by name."""
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **_QUIET, "FLWR_HOME": str(folder / "flower"), "PATH": path}
