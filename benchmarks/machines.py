"""Whether clients on different machines and releases of TensorFlow send the same: in one run, and of the same model.

    sudo .venv/bin/python -m benchmarks.machines --root FOLDER
    .venv/bin/python -m benchmarks.machines --python FOLDER/bin/python

The first has an aarch64 client, emulated by qemu; the second one with the Python of another environment. It trains beside a
client of .venv-deploy, over TLS, and the run is compared with one in which both clients are of it. Besides, both Pythons
encode the same update, decode the same payload and train the same model, and what comes of it is compared.
"""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tyro
from rich.progress import track

from benchmarks import answers, deployment, other_root, results

_CLIENTS = ("form00", "form01")
_ENCODERS = {
    "nothing encoded": "",
    "uniform:8,nearest": "--broadcast uniform:8,nearest --mean uniform:8,nearest",
    "uniform:8": "--broadcast uniform:8 --mean uniform:8",
    "uniform:4+rice": "--broadcast uniform:8 --mean uniform:4+rice",
}
_SETTINGS = "--filters 8 --threshold 1000 --timeout 3600 --min-clients 2 --eval-every 1000"


def main(
    root: Optional[pathlib.Path] = None,
    python: Optional[pathlib.Path] = None,
    rounds: int = 3,
    encoders: tuple[str, ...] = tuple(_ENCODERS),
    codes: bool = True,
    quick: bool = False,
) -> None:
    """Measures and writes results/deploy/run_NAME.csv and codes_NAME.csv, where NAME is the other machine or TensorFlow.

    Args:
        root: The root of a system of another machine, for one of the clients.
        python: The Python of another environment, for one of the clients.
        rounds: Of each training.
        encoders: To train with; none for no training.
        codes: Whether to compare what both make of the same update, too. Emulated, that takes longer than the trainings.
        quick: Compare .venv-deploy with itself, with one encoder for one round, into logs/results-quick/.
    """
    if quick:
        encoders, rounds, python = encoders[1:2], 1, deployment.ENVIRONMENT / "bin" / "python"
    if (root is None) == (python is None):
        raise SystemExit("error: Expected either --root or --python, found both or none.")
    other: dict[str, Any] = {"pythons": {_CLIENTS[1]: str(python)}} if root is None else other_root.of_clients(root, _CLIENTS[1:])
    version = _version(other)
    name = "quick" if quick else other_root.machine(root) if root else f"tensorflow_{version}"
    source = results.Source(
        command="python -m benchmarks.machines " + ("--root FOLDER" if root else "--python FOLDER/bin/python"),
        data=f"a client with TensorFlow {version} on {other_root.machine(root) if root else platform.machine()}"
        f"{', emulated by qemu' if root else ''}, and one with {_version({})} on {platform.machine()}",
        seeds="0",
        spread="none: one run each",
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        if codes:
            rows = _compare_codes(_answers(folder, {}), _answers(folder, other))
            results.write(f"deploy/codes_{name}", rows, source, quick)
        if encoders:
            same, mixed = (_train(folder / part, encoders, rounds, of) for part, of in (("same", {}), ("mixed", other)))
            rows = [{"encoders": encoder, **_compare_runs(same[encoder], mixed[encoder])} for encoder in encoders]
            results.write(f"deploy/run_{name}", rows, source, quick)


def _python(other: Mapping[str, Any]) -> list[str]:
    """Returns what starts the Python of the second client."""
    client = _CLIENTS[1]
    prefix = other["prefix"](client) if "prefix" in other else []
    return [*prefix, other.get("pythons", {}).get(client, str(deployment.ENVIRONMENT / "bin" / "python"))]


def _version(other: Mapping[str, Any]) -> str:
    """Returns the second client's release of TensorFlow."""
    return _output([*_python(other), "-c", "from importlib import metadata; print(metadata.version('tensorflow'))"]).strip()


def _output(command: Sequence[str]) -> str:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=results.ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: Expected the Python of a client, found: {done.stderr[-2000:]}")
    return done.stdout


def _answers(folder: pathlib.Path, other: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns what the second client's Python makes of the same update and model."""
    name = "there" if other else "here"
    _output([*_python(other), "-m", "benchmarks.answers", str(folder), name])
    return dict(np.load(folder / f"{name}.npz"))


def _compare_codes(here: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray]) -> list[results.Row]:
    """Returns a row for each encoder of the same update, and one for the training of the same model."""
    rows = []
    for spec in answers.SPECS:
        a, b = here[f"payload {spec}"], there[f"payload {spec}"]
        rows.append(
            {
                "encoder": spec,
                "bytes": len(a),
                "bytes_there": len(b),
                "bytes_that_differ": int(np.sum(a != b)) if len(a) == len(b) else None,
                "values_differ_by": _difference(here[f"own {spec}"], there[f"own {spec}"]),
                "decoded_differ_by": _difference(here[f"decoded {spec}"], there[f"decoded {spec}"]),
            }
        )
    trained = _difference(here["trained"], there["trained"])
    return [*rows, {**dict.fromkeys(rows[0]), "encoder": "trained, nothing encoded", "values_differ_by": trained}]


def _train(folder: pathlib.Path, encoders: Sequence[str], rounds: int, other: Mapping[str, Any]) -> dict[str, Any]:
    """Trains with each encoder; returns by encoder its metrics and its last weights."""
    folder.mkdir()
    deployed = deployment.Deployment(folder, _CLIENTS, deployment.free_address(), **other)
    found = {}
    with deployed.joined():
        for i, encoder in enumerate(track(encoders, folder.name)):
            settings = f"--rounds {rounds} {_SETTINGS} {_ENCODERS[encoder]}".split()
            found[encoder] = deployed.train(str(i), settings), _weights(folder / str(i))
    return found


def _weights(run: pathlib.Path) -> np.ndarray:
    (*_, last) = sorted((run / "checkpoints").glob("round_*.npz"), key=lambda path: int(path.stem.split("_")[1]))
    with np.load(last) as arrays:
        return np.concatenate([np.ravel(arrays[name]) for name in arrays.files if arrays[name].dtype == np.float32])


def _compare_runs(same: Any, mixed: Any) -> results.Row:
    (rows, weights), (other_rows, other_weights) = same, mixed
    a, b = rows[-1], other_rows[-1]
    return {
        "rounds": len(rows),
        "bits_down": round(a["broadcast_bits"]),
        "bits_down_mixed": round(b["broadcast_bits"]),
        "bits_up": round(a["aggregate_bits"]),
        "bits_up_mixed": round(b["aggregate_bits"]),
        "clients_that_failed": round(sum(row[f"clients_{why}"] for row in other_rows for why in ("dropped", "late", "left_out"))),
        "weights_differ_by": _difference(weights, other_weights),
        "largest_weight": float(f"{np.abs(weights).max():.3g}"),
        "seconds_a_round": round(np.mean([row["seconds"] for row in rows]), 1),
        "seconds_a_round_mixed": round(np.mean([row["seconds"] for row in other_rows]), 1),
    }


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(f"{np.abs(a - b).max():.2g}")


if __name__ == "__main__":
    tyro.cli(main)
