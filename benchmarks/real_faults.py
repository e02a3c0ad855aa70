"""Many rounds with real clients, of whom or of whose server a part fails every few rounds: does each round end, and right?

    python -m benchmarks.real_faults

Clients and their nodes are killed or stopped, as are Flower's SuperLink and the server, which is then started again with
--resume. Updates have a fixed number of bits, so a round's bits tell how many came. A round is right if that is a whole number,
and with the late, dropped and left-out clients no more than all clients: one that counted twice would show. A round asks fewer
where a client is not back in time.
"""

from __future__ import annotations

import collections
import contextlib
import pathlib
import random
import subprocess
import tempfile
import time
from typing import Optional

import psutil
import tyro
from rich.progress import Progress

from benchmarks import deployment, results

_SETTINGS = "--filters 2 --broadcast uniform:8,nearest --mean uniform:8,nearest --threshold 1000 --eval-every 100 --timeout 40"
_NAME = "run"
_POLL_SECONDS = 0.5
_STOPPED_SECONDS = 60.0  # Longer than the round waits.
_MISSING = ("clients_late", "clients_dropped", "clients_left_out")
# What fails: the program, by a word of its command line, and how.
_FAULTS = {
    "client killed": ("tff_kit.deploy.client_process", "kill"),
    "client hung": ("tff_kit.deploy.client_process", "stop"),
    "node killed": ("tff_kit.deploy.supernode", "kill"),
    "node hung": ("tff_kit.deploy.supernode", "stop"),
    "SuperLink killed": ("flower-superlink", "kill"),
    "server killed": ("tff_kit serve", "kill"),
}


def main(rounds: int = 100, every: int = 5, clients: int = 3, quick: bool = False) -> None:
    """Measures and writes results/deploy/faults.csv.

    Args:
        rounds: How many.
        every: Rounds between faults.
        clients: Who take part in every round.
        quick: Try three rounds with one fault, into logs/results-quick/.
    """
    if quick:
        rounds, every, clients = 3, 2, 1
    with tempfile.TemporaryDirectory() as folder:
        names = [f"form{i:02d}" for i in range(clients)]
        deployed = deployment.Deployment(pathlib.Path(folder), names, deployment.free_address())
        began = time.monotonic()
        with deployed.joined():
            faults, restarts = _train(deployed, rounds, every)
        metrics = deployed.metrics(_NAME)
    right, fewer, missing = _count(metrics, clients)
    row: results.Row = {
        "rounds_asked": rounds,
        "rounds": len(metrics),
        "in_order": "yes" if [row["round"] for row in metrics] == list(range(1, rounds + 1)) else "no",
        "right_rounds": right,
        "rounds_that_asked_fewer": fewer,
        **missing,
        "faults": ", ".join(f"{count} x {name}" for name, count in sorted(faults.items())),
        "server_started_again": restarts,
        "test_accuracy": metrics[-1].get("test_accuracy"),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    source = results.Source(
        command=f"python -m benchmarks.real_faults --rounds {rounds} --every {every} --clients {clients}",
        data=f"the digits of scikit-learn, {clients} clients in every round; {_SETTINGS}",
        seeds="0, of which client fails when",
        spread="none: one run",
    )
    results.write("deploy/faults", [row], source, quick)


def _train(deployed: deployment.Deployment, rounds: int, every: int) -> tuple[collections.Counter, int]:
    """Trains, and lets something fail every few rounds; returns the faults and how often the server was started again."""
    settings = [*_SETTINGS.split(), "--rounds", str(rounds)]
    draw, faults, restarts = random.Random(0), collections.Counter[str](), 0
    kinds = list(_FAULTS)
    stopped: list[tuple[float, psutil.Process]] = []
    server = deployed.start(_NAME, settings)
    with Progress() as progress:
        bar = progress.add_task("rounds", total=rounds)
        while server.poll() is None or server.returncode != 0:
            done = len(deployed.metrics(_NAME))
            progress.update(bar, completed=done)
            if server.poll() is not None:
                restarts += 1
                server = deployed.start(_NAME, [*settings, "--resume"])
            elif done >= every * (sum(faults.values()) + 1):
                kind = kinds[sum(faults.values()) % len(kinds)]
                time.sleep(draw.uniform(0, 3))  # At any moment of the round.
                failed = _fail(deployed, server, kind, draw)
                faults[kind] += failed is not None
                if failed is not None and _FAULTS[kind][1] == "stop":
                    stopped.append((time.monotonic() + _STOPPED_SECONDS, failed))
            while stopped and stopped[0][0] < time.monotonic():
                with contextlib.suppress(psutil.NoSuchProcess):
                    stopped.pop(0)[1].resume()
            time.sleep(_POLL_SECONDS)
    for _, process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    return faults, restarts


def _fail(deployed: deployment.Deployment, server: subprocess.Popen, kind: str, draw: random.Random) -> Optional[psutil.Process]:
    """Kills or stops a program; returns it, or `None` where there is none at the moment."""
    word, how = _FAULTS[kind]
    of_server = word in ("flower-superlink", "tff_kit serve")
    parent = server if of_server else draw.choice(list(deployed.processes.values()))
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(parent.pid)
        for process in (root, *root.children(recursive=True)):
            if word in " ".join(process.cmdline()):
                process.kill() if how == "kill" else process.suspend()
                return process
    return None


def _count(metrics: list[dict[str, float]], clients: int) -> tuple[int, int, dict[str, int]]:
    """Returns how many rounds are right, how many asked fewer clients, and how many clients were missing of which kind."""
    sent = [b["aggregate_bits"] - a["aggregate_bits"] for a, b in zip([{"aggregate_bits": 0.0}, *metrics], metrics)]
    update = max(sent) / clients  # In some round all of them came.
    missing = {name: round(sum(row[name] for row in metrics)) for name in _MISSING}
    came = [bits / update for bits in sent]
    asked = [number + sum(row[name] for name in _MISSING) for number, row in zip(came, metrics)]
    right = sum(number.is_integer() and total <= clients for number, total in zip(came, asked))
    return right, sum(total < clients for total in asked), missing


if __name__ == "__main__":
    tyro.cli(main)
