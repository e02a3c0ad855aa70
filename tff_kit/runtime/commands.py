"""The command `worker`."""

import pathlib
from typing import Optional

from tff_kit.runtime.worker import serve


def worker(
    port: int,
    bind: str = "127.0.0.1",
    credential: Optional[pathlib.Path] = None,
    insecure: bool = False,
    max_concurrent: Optional[int] = None,
) -> None:
    """Computes for trainings that have this machine in --workers, until Ctrl-C or the end of the process that started it.

    Args:
        port: Where to listen; 0 for a free port, which is printed.
        bind: Address to listen on. Beyond loopback it takes a credential.
        credential: PEM file of a key and its certificate, as scripts/credential.sh makes one. Only trainings with the same file
            can connect, and all is encrypted.
        insecure: Serve everybody, unencrypted; and run where the system allows no network namespace to shut the worker in.
        max_concurrent: Clients that train at once, by default as many as there are processors.
    """
    serve(port, bind, credential, insecure, max_concurrent)
