"""A relay between the nodes and the SuperLink that counts every byte which the socket carries.

It passes TLS through unread: what it counts is encrypted, with all that gRPC and TLS add, but without the headers of TCP and IP.
"""

from __future__ import annotations

import asyncio
import mmap
import pathlib
import struct
import threading
from typing import Optional

_CHUNK = 2**18
_TOTALS = struct.Struct("<QQ")  # Bytes to the nodes, bytes from the nodes.


class Relay:
    """Listens for nodes and carries their connections to the SuperLink on this machine, while its context lasts.

    Args:
      host: Address to listen on.
      port: Port to listen on, 0 for a free one.
      superlink: The SuperLink's port on loopback.
      totals: File in which the totals are kept, for `read_totals` in any process.
    """

    def __init__(self, host: str, port: int, superlink: int, totals: pathlib.Path):
        self._host, self.port, self._superlink = host, port, superlink
        totals.write_bytes(bytes(_TOTALS.size))
        with open(totals, "r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _TOTALS.size)
        self._totals = [0, 0]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: Optional[asyncio.base_events.Server] = None

    def __enter__(self) -> Relay:
        self._thread.start()
        self._server = server = self._in_loop(asyncio.start_server(self._carry, self._host, self.port, limit=_CHUNK))
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exception) -> None:
        assert self._server is not None
        self._server.close()
        self._in_loop(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._superlink, limit=_CHUNK)
        except OSError:  # The SuperLink is starting, or being started again; the node tries again too.
            writer.close()
            return
        await asyncio.gather(self._pump(reader, there_writer, 1), self._pump(there_reader, writer, 0), return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                self._totals[direction] += len(chunk)
                self._shared[:] = _TOTALS.pack(*self._totals)
                writer.write(chunk)
                await writer.drain()
        finally:
            writer.close()


async def _cancel_others() -> None:
    """Ends all connections of this loop, which would complain if the loop were gone before them."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def read_totals(path: pathlib.Path) -> tuple[int, int]:
    """Returns the bytes that a relay carried to the nodes and from the nodes so far."""
    return _TOTALS.unpack(path.read_bytes())
