"""Becomes TFF's worker program, which nobody but its driver can reach and which ends with whoever started it.

TFF's worker serves everybody who can connect to its port, on all addresses of the machine, and knows neither encryption nor
credentials. Here it runs in a network namespace of its own, in which it is alone. A child of it carries the bytes between it
and one socket of the machine that the caller has opened, on the address that he wanted, with mutual TLS if he has a credential.

Run as a script by a bare interpreter, since the child stays as long as the worker: only Python's standard library is used.
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
    """Asks the kernel for a signal when the parent ends, the only way that also works when it is killed.

    The kernel means the *thread* that started this process. The check closes the gap in which the parent ended before.
    """
    _libc.prctl(_SET_PDEATHSIG, int(signal_number))
    if os.getppid() != parent:
        sys.exit(1)


def isolate() -> None:
    """Moves this process, which must have one thread, to a network namespace with a loopback device and nothing else.

    Raises:
      OSError: If the system does not allow it, as many containers don't.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _unshare(_NEW_NET)  # No user namespace, in which root could no longer read the files of others.
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
    """Returns the server's side of mutual TLS in which both sides have the key and certificate in the file `credential`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(credential)
    context.load_verify_locations(credential)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])  # As gRPC wants it.
    return context


async def _relay(listening: socket.socket, port: int, tls) -> None:
    """Carries bytes between whoever connects to `listening` and the worker's port, for ever."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            worker_reader, worker_writer = await _connect(port)
            await asyncio.gather(_pump(reader, worker_writer), _pump(worker_reader, writer))
        except OSError:
            writer.close()  # One side hung up, which the other sees by the end of its connection.

    # Whoever sends garbage to a port fills no log with it.
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
    """Reads the arguments, starts the child, and becomes the worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True, help="File descriptor of the socket that listens.")
    parser.add_argument("--parent", type=int, required=True, help="Process with which the worker ends.")
    parser.add_argument("--credential", help="PEM file with a key and its certificate, for mutual TLS.")
    parser.add_argument("--insecure", action="store_true", help="Go on where the system allows no network namespace.")
    parser.add_argument("command", nargs="+", help="The worker program and its flags.")
    arguments = parser.parse_args()
    tls = tls_context(arguments.credential) if arguments.credential else None
    try:
        isolate()
    except OSError as error:
        if not arguments.insecure:
            sys.exit(
                f"error: Expected a network namespace for TFF's worker, which would else listen everywhere; found none to be "
                f"had: {error}. Use --insecure where nobody else reaches this machine."
            )
    die_with_parent(arguments.parent)  # After the namespace: what changes a process's rights takes this back.
    listening, port, worker = socket.socket(fileno=arguments.socket), _free_port(), os.getpid()
    if os.fork() == 0:
        die_with_parent(worker)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # It ends with the worker, and only then.
        asyncio.run(_relay(listening, port, tls))
    listening.close()
    os.execv(arguments.command[0], [*arguments.command, f"--port={port}"])


if __name__ == "__main__":
    main()
