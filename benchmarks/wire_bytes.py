"""Bytes on the wire of real clients: what the sockets carry beside the payload, by the payload's size and by encoder.

    python -m benchmarks.wire_bytes

A server and its clients run on this machine, over TLS. The first table has one client and messages of five sizes. The second
trains the digits' network with four clients for 20 rounds: nothing encoded, 8 bits, and the fewest bits. Payload and bytes on the
wire come from metrics.csv. The bytes on the wire are counted in the server's relay: TLS, gRPC, Flower's messages and its polling,
without the headers of TCP and IP.
"""

from __future__ import annotations

import pathlib
import tempfile

import tyro
from rich.progress import track

from benchmarks import deployment, results
from benchmarks.bits_to_accuracy import LOW_RANK, flags_of

ENCODERS = {
    "nothing encoded": "",
    "8 bits": "--broadcast uniform:8 --mean uniform:8",
    "fewest bits": flags_of(LOW_RANK),
}
# Settings that make an update of about this size, in kilobytes: nothing encoded, of networks of these widths.
_SIZES = {10: "--filters 1", 100: "--filters 4", 1_000: "--filters 12", 10_000: "--filters 39", 100_000: "--filters 124"}
_TRAINED = "--rounds 20 --local-epochs 5 --client-lr 0.1 --eval-every 1"
_DIRECTIONS = (("down", "broadcast_bits", "wire_bytes_down"), ("up", "aggregate_bits", "wire_bytes_up"))


def main(rounds: int = 20, clients: int = 4, quick: bool = False) -> None:
    """Measures and writes results/deploy/wire_sizes.csv and results/deploy/wire_encoders.csv.

    Args:
        rounds: Of the second table's trainings.
        clients: In these.
        quick: Try the smallest size and three rounds, into logs/results-quick/.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _sizes(folder / "sizes", quick)
        if not quick:
            _encoders(folder / "encoders", rounds, clients)


def _sizes(folder: pathlib.Path, quick: bool) -> None:
    folder.mkdir()
    rows = []
    sizes = list(_SIZES)[:1] if quick else list(_SIZES)
    deployed = deployment.Deployment(folder, ["form00"], deployment.free_address())
    with deployed.joined():
        for kilobytes in track(sizes, "sizes"):
            metrics = deployed.train(f"{kilobytes}", ["--rounds", "4", *_SIZES[kilobytes].split()])
            row: results.Row = {"settings": _SIZES[kilobytes]}
            for direction, payload, wire in _DIRECTIONS:
                # From round to round, so that what a node sends when it joins is not in it.
                sent = (metrics[-1][payload] - metrics[0][payload]) / 8 / 3
                carried = (metrics[-1][wire] - metrics[0][wire]) / 3
                row[f"payload_bytes_{direction}"] = round(sent)
                row[f"wire_bytes_{direction}"] = round(carried)
                row[f"beside_{direction}"] = round(carried - sent)
                row[f"beside_percent_{direction}"] = round(100 * (carried - sent) / sent, 3)
            row["seconds_a_round"] = round((sum(x["seconds"] for x in metrics[1:])) / 3, 1)
            rows.append(row)
    source = results.Source(
        command="python -m benchmarks.wire_bytes",
        data="the digits of scikit-learn, one client; means of rounds 2 to 4",
        seeds="0",
        spread="none: one run a size. Polling adds bytes by the second, so slower rounds have more",
    )
    results.write("deploy/wire_sizes", rows, source, quick)


def _encoders(folder: pathlib.Path, rounds: int, clients: int) -> None:
    folder.mkdir()
    rows: list[results.Row] = []
    deployed = deployment.Deployment(folder, [f"form{i:02d}" for i in range(clients)], deployment.free_address())
    with deployed.joined():
        for name, flags in track(ENCODERS.items(), "encoders"):
            settings = f"{_TRAINED} --rounds {rounds} {flags}".split()
            metrics = deployed.train(name.replace(" ", "_"), settings)
            last = metrics[-1]
            row: results.Row = {
                "encoders": name,
                "flags": flags,
                "test_accuracy": round(last["test_accuracy"], 4),
                "test_accuracy_last_5": round(sum(x["test_accuracy"] for x in metrics[-5:]) / len(metrics[-5:]), 4),
                "payload_bytes": round((last["broadcast_bits"] + last["aggregate_bits"]) / 8),
                "wire_bytes_down": round(last["wire_bytes_down"]),
                "wire_bytes_up": round(last["wire_bytes_up"]),
                "wire_bytes": round(last["wire_bytes_down"] + last["wire_bytes_up"]),
                "seconds": round(sum(x["seconds"] for x in metrics)),
            }
            row["fewer_wire_bytes"] = round(rows[0]["wire_bytes"] / row["wire_bytes"], 1) if rows else 1.0
            rows.append(row)
    source = results.Source(
        command=f"python -m benchmarks.wire_bytes --rounds {rounds} --clients {clients}",
        data=f"the digits of scikit-learn, {clients} clients in every round, {rounds} rounds, {_TRAINED.split(' ', 2)[2]}",
        seeds="0",
        spread="none: one run each",
    )
    results.write("deploy/wire_encoders", rows, source)


if __name__ == "__main__":
    tyro.cli(main)
