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
    """Computes for trainings that name this machine in --workers, until Ctrl-C or the end of the process that started it.

    Args:
        port: Port to listen on; 0 for a free port, which is printed.
        bind: Address to listen on. An address beyond loopback needs a credential.
        credential: PEM file with a key and its certificate, made by scripts/credential.sh. Only trainings with the same file can
            connect, and everything is encrypted.
        insecure: Serve everyone, unencrypted, and run even if the system allows no network namespace that shuts the worker in.
        max_concurrent: Clients that train at once. The default is the number of processors.
    """
    serve(port, bind, credential, insecure, max_concurrent)
