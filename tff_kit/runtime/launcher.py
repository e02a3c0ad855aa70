"""A script that becomes TFF's worker program, which only its driver can reach and which ends with the process that started it.

TFF's worker serves everyone who can connect to its port, on all addresses of the machine. It has neither encryption nor
credentials. Here it runs alone in its own network namespace. A child process carries the bytes between the worker and one
socket that the caller has opened on an address of its choice, with mutual TLS if there is a credential.

A bare interpreter runs this script, and it uses only Python's standard library: the child stays as long as the worker and
should be small.
"""

import argparse
import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import ssl
import struct
import sys

_SET_PDEATHSIG = 1  # linux/prctl.h
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # linux/sched.h
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
_CHUNK = 2**20
_START_SECONDS = 60.0

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Asks the kernel to send this process a signal when its parent ends. This also works if the parent is killed.

    For the kernel, the parent is the *thread* that started this process. If the parent has ended already, this process exits.

    Args:
      parent: The parent's process id.
      signal_number: The signal to send.
    """
    _libc.prctl(_SET_PDEATHSIG, int(signal_number))
    if os.getppid() != parent:
        sys.exit(1)


def isolate() -> None:
    """Moves this process, which must have one thread, to a network namespace that has only a loopback device.

    Raises:
      OSError: If the system does not allow it. Many containers do not.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _unshare(_NEW_NET)  # No user namespace: in it, root could no longer read other users' files.
    else:
        _unshare(_NEW_USER | _NEW_NET)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket() as any_socket:
        reply = fcntl.ioctl(any_socket, _GET_FLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack("16xh14x", reply)
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def tls_context(credential: str) -> ssl.SSLContext:
    """Returns the server's context for mutual TLS.

    Args:
      credential: PEM file with the key and certificate that both sides have.

    Raises:
      OSError: If the file cannot be read.
      ssl.SSLError: If it is not such a file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(credential)
    context.load_verify_locations(credential)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])  # gRPC requires it.
    return context


async def _relay(listening: socket.socket, port: int, tls) -> None:
    """Carries bytes between clients of `listening` and the worker's port, until the process ends."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            worker_reader, worker_writer = await _connect(port)
            await asyncio.gather(_pump(reader, worker_writer), _pump(worker_reader, writer))
        except OSError:
            writer.close()  # One side hung up, so the other side's connection ends too.

    # Garbage sent to the port must not fill a log.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with await asyncio.start_server(carry, sock=listening, ssl=tls, limit=_CHUNK) as server:
        await server.serve_forever()


async def _connect(port: int):
    for _ in range(int(_START_SECONDS / 0.02)):
        try:
            return await asyncio.open_connection("127.0.0.1", port, limit=_CHUNK)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)  # The worker is still starting.
    raise TimeoutError


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            chunk = await reader.read(_CHUNK)
            if not chunk:
                return
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


def _free_port() -> int:
    with socket.create_server(("", 0)) as any_server:
        return any_server.getsockname()[1]


def main() -> None:
    """Reads the arguments, starts the child process, and becomes the worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True, help="File descriptor of the socket that listens.")
    parser.add_argument("--parent", type=int, required=True, help="Id of the process with which the worker ends.")
    parser.add_argument("--credential", help="PEM file with a key and its certificate, for mutual TLS.")
    parser.add_argument("--insecure", action="store_true", help="Run even if the system allows no network namespace.")
    parser.add_argument("command", nargs="+", help="The worker program and its flags.")
    arguments = parser.parse_args()
    tls = tls_context(arguments.credential) if arguments.credential else None
    try:
        isolate()
    except OSError as error:
        if not arguments.insecure:
            sys.exit(
                f"error: Expected a network namespace for TFF's worker, found that the system allows none: {error}. Without it, "
                "the worker listens on all addresses. Use --insecure if nobody else reaches this machine."
            )
    die_with_parent(arguments.parent)  # After the namespace: a change of the process's rights resets it.
    listening, port, worker = socket.socket(fileno=arguments.socket), _free_port(), os.getpid()
    if os.fork() == 0:
        die_with_parent(worker)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # It ends only with the worker.
        asyncio.run(_relay(listening, port, tls))
    listening.close()
    os.execv(arguments.command[0], [*arguments.command, f"--port={port}"])


if __name__ == "__main__":
    main()
