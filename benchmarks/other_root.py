"""Runs clients in the root of a Linux system of another machine, emulated: an arm64 one by qemu. Needs root.

`FOLDER/home/USER/tff_kit` in it holds the environment of clients, as docs/raspberry_pi.md makes it; the code is today's.
"""

from __future__ import annotations

import pathlib
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks import results

# In a mount namespace of its own, so that nothing has to be taken down. The clients' files have the same path inside.
_ENTER = """
root=$0 code=$1 files=$2; shift 2
mount --rbind /proc "$root/proc" && mount --rbind /dev "$root/dev" && mount --bind "$files" "$root$files" \
    && mount --bind "$code" "$root/mnt" \
    && exec chroot "$root" /usr/bin/env --chdir=/mnt HOME=/tmp TMPDIR="$files" PYTHONPATH=/mnt "$@"
"""


def machine(root: pathlib.Path) -> str:
    """Returns the name of the other machine, such as aarch64."""
    done = subprocess.run(["chroot", str(root), "uname", "-m"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: Expected the root of a Linux system that runs here, found {root}: {done.stderr.strip()}")
    return done.stdout.strip()


def environment(root: pathlib.Path) -> pathlib.Path:
    """Returns the folder of its environment .venv-deploy."""
    found = sorted(root.glob("home/*/tff_kit/.venv-deploy"))
    if len(found) != 1:
        raise SystemExit(f"error: Expected home/USER/tff_kit/.venv-deploy in {root}, found {len(found)} of them.")
    return found[0]


def of_clients(root: pathlib.Path, clients: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments of `Deployment` that run these clients there, and others here."""
    enter = ["unshare", "--mount", "sh", "-c", _ENTER, str(root), str(results.ROOT), tempfile.gettempdir()]
    python = "/" + str(environment(root).relative_to(root) / "bin/python")
    return {
        "prefix": lambda client: enter if client in clients else [],
        "pythons": dict.fromkeys(clients, python),
    }
