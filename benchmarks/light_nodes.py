"""The program of many light nodes in one process, for `benchmarks.many_nodes`. It runs in .venv-deploy.

    python -m benchmarks.light_nodes HOST:PORT --keys FOLDER --data FOLDER --nodes light00 light01

A whole node is several processes and one of them has TensorFlow. A light node is a thread with a key and a TLS connection of its
own. It speaks to the server by the client code of Flower's SuperNode: it activates, sends heartbeats, looks for a message every
3 s and pushes its answer. All nodes of a process share one answerer, which trains once a round. Each says a client id of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn, Optional

import grpc
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.client.grpc_rere_client import connection
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.retry import make_simple_grpc_retry_invoker

from tff_kit.deploy import children, messages
from tff_kit.deploy.credentials import NodeCredential
from tff_kit.deploy.node import Node, find_federated_task

_POLL_SECONDS = 3.0  # As Flower's SuperNode.
_AGAIN_SECONDS = 5.0  # As `join`.
_START_SECONDS = 0.01  # Between two nodes, so that they come one after another.


class _Answerer:
    """Answers as a node does, for many: the first of a round trains, the others send its update as theirs."""

    def __init__(self, task: str, data: str):
        self._node, self._lock = Node(find_federated_task(task), data), threading.Lock()
        self._kept: dict[type, tuple[messages.Message, messages.Message]] = {}  # The last message of each kind, and its answer.

    def answer(self, client: str, data: bytes) -> bytes:
        asked = messages.unpack(data)
        if isinstance(asked, messages.Train):
            asked = dataclasses.replace(asked, seed=0)  # Only the seed differs between the clients of a round.
        with self._lock:
            if type(asked) not in self._kept or self._kept[type(asked)][0] != asked:
                self._kept[type(asked)] = asked, messages.unpack(self._node.answer(data))
            answer = self._kept[type(asked)][1]
        if isinstance(answer, messages.Hello):
            answer = dataclasses.replace(answer, client=client)
        return answer.pack()


def _own_channel(
    server_address: str, insecure: bool, root_certificates: bytes, max_message_length: int, interceptors: Any
) -> Any:
    """Flower's `create_channel` with a socket of its own: gRPC lets equal channels of a process share one."""
    del insecure
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", max_message_length),
        ("grpc.max_receive_message_length", max_message_length),
    ]
    channel = grpc.secure_channel(server_address, grpc.ssl_channel_credentials(root_certificates), options)
    channel = grpc.intercept_channel(channel, *interceptors)
    # Flower logs the state of a connection. For that gRPC starts a thread a channel that wakes five times a second.
    channel.subscribe = lambda callback: None
    return channel


def _failed(code: int, message: str) -> NoReturn:
    """Flower would end the process; here other nodes live in it."""
    raise ConnectionError(message)


def _live(address: str, client: str, credential: NodeCredential, answerer: _Answerer) -> None:
    """Is one node, for ever."""
    key: Any = load_ssh_private_key(credential.key.read_bytes(), None)
    certificate, keys = credential.certificate.read_bytes(), (key, key.public_key())
    while True:
        try:
            retry = make_simple_grpc_retry_invoker()
            with connection.grpc_request_response(
                address, False, retry, root_certificates=certificate, authentication_keys=keys
            ) as link:
                _answer_all(link, client, answerer)
        except Exception as error:
            print(f"{client}: {error}", flush=True)
        time.sleep(_AGAIN_SECONDS)


def _answer_all(link: Sequence[Any], client: str, answerer: _Answerer) -> NoReturn:
    """Does what Flower's SuperNode does with a message, without its processes."""
    _, receive, send, get_run, get_fab, pull_object, push_object, confirm = link
    known: Optional[int] = None
    while True:
        received = receive()
        if received is None:
            time.sleep(_POLL_SECONDS)
            continue
        message, tree = received
        run = message.metadata.run_id
        if run != known:
            get_fab(get_run(run).fab_hash, run)
            known = run
        ids = [its.object_id for its in iterate_object_tree(tree)]
        contents = pull_objects(ids, lambda one, run=run: pull_object(run, one))
        confirm(run, message.metadata.message_id)
        found: Any = inflate_object_from_contents(message.metadata.message_id, contents)
        data = answerer.answer(client, bytes(found.content["m"]["b"]))
        reply = Message(RecordDict({"m": ConfigRecord({"b": data})}), reply_to=message)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = {one: its.deflate() for one, its in get_all_nested_objects(reply).items()}
            wanted, session = send(reply, get_object_tree(reply), 0.0)
        push_object_contents_from_iterable(
            [(one, content) for one, content in objects.items() if one in wanted],
            lambda one, content, run=run, session=session: push_object(run, session, one, content),
        )


def run() -> None:
    """Reads the arguments, and is these nodes until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.light_nodes")
    parser.add_argument("address")
    parser.add_argument("--task", default="emnist")
    parser.add_argument("--keys", type=pathlib.Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--nodes", nargs="+", required=True)
    arguments = parser.parse_args()
    children.import_tensorflow()
    connection.create_channel, connection.flwr_exit = _own_channel, _failed
    answerer = _Answerer(arguments.task, arguments.data)
    for client in arguments.nodes:
        node = (arguments.address, client, NodeCredential(arguments.keys / client), answerer)
        threading.Thread(target=_live, args=node, daemon=True).start()
        time.sleep(_START_SECONDS)
    threading.Event().wait()


if __name__ == "__main__":
    run()
