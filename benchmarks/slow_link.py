"""Minutes to an accuracy where each client is behind a slow link of its own: 10 Mbit/s down, 1 Mbit/s up, 50 ms.

    sudo .venv/bin/python -m benchmarks.slow_link

Each client of a server on this machine runs in a network namespace, whose link the kernel shapes (`tc`). That needs root. Where
the kernel has no netem, there is no delay, and the results file says so. Training with TLS and authentication is real, on real
digits, once for each of the encoders.
"""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Optional

import matplotlib.pyplot as plt
import tyro
from rich.progress import track

from benchmarks import deployment, results
from benchmarks.wire_bytes import ENCODERS
from tff_kit.deploy import children

_DOWN, _UP, _DELAY = "10mbit", "1mbit", "50ms"
_NETWORK = "10.77"  # Client number i has 10.77.i.2, and the server 10.77.i.1 on that link; all reach 10.77.0.1.
_PORT = 9092
_SETTINGS = "--local-epochs 5 --client-lr 0.1 --eval-every 1"


class _Links:
    """A network namespace for each client, with a shaped link to this one."""

    def __init__(self, clients: Sequence[str]):
        self._clients = list(clients)
        self.has_delay = True

    def prefix(self, client: str) -> list[str]:
        """Returns what runs a command in a client's namespace."""
        return ["ip", "netns", "exec", _namespace(self._clients.index(client))]

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """Keeps the links while the context lasts."""
        with contextlib.ExitStack() as stack:
            stack.callback(_ip, f"addr del {_NETWORK}.0.1/32 dev lo", check=False)
            _ip(f"addr add {_NETWORK}.0.1/32 dev lo")
            for i in range(len(self._clients)):
                stack.callback(_ip, f"netns del {_namespace(i)}", check=False)
                self._add(i)
            yield

    def _add(self, i: int) -> None:
        space, here, there = _namespace(i), f"tff-kit{i}", f"tff-kit{i}c"
        _ip(f"netns add {space}")
        _ip(f"link add {here} type veth peer name {there}")
        _ip(f"link set {there} netns {space}")
        _ip(f"addr add {_NETWORK}.{i + 1}.1/24 dev {here}")
        _ip(f"link set {here} up")
        for command in (f"addr add {_NETWORK}.{i + 1}.2/24 dev {there}", f"link set {there} up", "link set lo up"):
            _ip(command, space=space)
        _ip(f"route add default via {_NETWORK}.{i + 1}.1", space=space)
        delayed = [_shape(here, _DOWN), _shape(there, _UP, space)]
        self.has_delay &= all(delayed)


def _namespace(i: int) -> str:
    return f"tff-kit-client{i}"


def _shape(device: str, rate: str, space: Optional[str] = None) -> bool:
    """Limits what leaves by a device; returns whether it is delayed too, by half the round trip."""
    half = f"{int(_DELAY[:-2]) // 2}ms"
    if _run(["tc", *f"qdisc add dev {device} root netem delay {half} rate {rate}".split()], space, check=False):
        return True
    _run(["tc", *f"qdisc add dev {device} root tbf rate {rate} burst 32kbit latency 400ms".split()], space)
    return False


def _ip(command: str, space: Optional[str] = None, check: bool = True) -> None:
    _run(["ip", *command.split()], space, check)


def _run(command: Sequence[str], space: Optional[str] = None, check: bool = True) -> bool:
    inside = ["ip", "netns", "exec", space] if space else []
    done = subprocess.run([*inside, *command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        found = done.stderr.strip()
        raise SystemExit(f"error: Expected `{' '.join(command)}` to work, as it does for root on Linux; found: {found}")
    return not done.returncode


def main(accuracy: float = 0.95, rounds: int = 15, clients: int = 6) -> None:
    """Measures and writes results/deploy/slow_link.csv and its figure.

    Args:
        accuracy: The test accuracy to reach.
        rounds: Of each training, at most.
        clients: Who take part in every round.
    """
    names = [f"form{i:02d}" for i in range(clients)]
    links, curves = _Links(names), {}
    with children.ended_by_sigterm(), tempfile.TemporaryDirectory() as folder, links.up():
        deployed = deployment.Deployment(pathlib.Path(folder), names, f"{_NETWORK}.0.1:{_PORT}", links.prefix)
        with deployed.joined():
            for name, flags in track(ENCODERS.items(), "encoders"):
                settings = f"--rounds {rounds} {_SETTINGS} {flags}".split()
                curves[name] = deployed.train(name.replace(" ", "_"), settings)
    _write(curves, accuracy, rounds, clients, links.has_delay)


def _write(curves: dict[str, list[dict[str, float]]], accuracy: float, rounds: int, clients: int, has_delay: bool) -> None:
    rows: list[results.Row] = [
        {"encoders": name, "flags": ENCODERS[name], **_summary(curve, accuracy)} for name, curve in curves.items()
    ]
    for row in rows:
        row["times_faster"] = round(rows[0]["minutes"] / row["minutes"], 1) if row["minutes"] and rows[0]["minutes"] else None
    delay = f"{_DELAY} round trip" if has_delay else "no delay, since this kernel has no netem"
    source = results.Source(
        command=f"python -m benchmarks.slow_link --rounds {rounds} --clients {clients}",
        data=f"the digits of scikit-learn, {clients} clients in every round, {_SETTINGS}; {_DOWN} down, {_UP} up, {delay}",
        seeds="0",
        spread="none: one run each",
    )
    _plot(curves, accuracy)
    results.write("deploy/slow_link", rows, source)


def _summary(metrics: list[dict[str, float]], accuracy: float) -> results.Row:
    nearly = accuracy - 1e-6  # The digits of a float32.
    reached = next((i for i, row in enumerate(metrics) if row["test_accuracy"] >= nearly), None)
    until = metrics[: reached + 1] if reached is not None else metrics
    seconds = sorted(row["seconds"] for row in metrics[1:])
    return {
        "rounds": len(until) if reached is not None else None,
        "minutes": round(sum(row["seconds"] for row in until) / 60, 2) if reached is not None else None,
        "seconds_a_round": round(seconds[len(seconds) // 2], 1),
        "best_accuracy": round(max(row["test_accuracy"] for row in metrics), 4),
        "wire_mb_down": round(until[-1]["wire_bytes_down"] / 1e6, 2),
        "wire_mb_up": round(until[-1]["wire_bytes_up"] / 1e6, 2),
    }


def _plot(curves: dict[str, list[dict[str, float]]], accuracy: float) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, metrics in curves.items():
        minutes, total = [], 0.0
        for row in metrics:
            total += row["seconds"] / 60
            minutes.append(total)
        axes.plot(minutes, [row["test_accuracy"] for row in metrics], marker=".", label=name)
    axes.axhline(accuracy, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel=f"Minutes, with {_DOWN[:-4]} Mbit/s down and {_UP[:-4]} Mbit/s up to each client", ylabel="Test accuracy")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(results.path("deploy/slow_link", ".png"), dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    tyro.cli(main)
