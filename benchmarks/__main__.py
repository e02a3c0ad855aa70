"""Reruns everything behind the documents' tables, one benchmark after the other.

    python -m benchmarks --speech FOLDER_OF_WAVS     hours; what was measured with the code as it is now is not measured again
    python -m benchmarks --quick                     minutes: tries each benchmark on little data, into logs/results-quick/

Then `python -m benchmarks.tables` writes the tables. `make results` and `make results-quick` call this.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import subprocess
import sys
import time
from typing import Any, Optional

import tyro

from benchmarks import results


@dataclasses.dataclass(frozen=True)
class _Benchmark:
    """A command and the results files that it writes. In `arguments`, {emnist}, {store} and the like are where the data is."""

    module: str
    writes: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    environment: str = ""
    quick: Optional[dict[str, Any]] = None  # Arguments of its smoke test; `None` where another line here has one.


_KWS_1S = ("--window", "1s", "--data", "{store_1s}")
_KWS_30S = ("--window", "30s", "--data", "{store_30s}")
_TIME = ("--memory-rounds", "0")
_BENCHMARKS = (
    _Benchmark("encoder_time", ("encoders/time",), quick={}),
    _Benchmark("encoder_sizes", ("encoders/sizes",), quick={}),
    _Benchmark("coder_overhead", ("encoders/coder_overhead",), quick={}),
    _Benchmark("format_agreement", ("encoders/format_agreement",), quick={}),
    _Benchmark("fuzz_decoders", ("encoders/fuzz_decoders",), quick={}),
    _Benchmark("rate_distortion", ("encoders/rate_distortion",), ("--emnist", "{emnist}", "--kws", "{store_1s}"), quick={}),
    _Benchmark("coders", ("encoders/coders",), ("--emnist", "{emnist}", "--kws", "{store_1s}"), quick={}),
    _Benchmark("round_time", ("speed/rounds_emnist",), ("emnist", "--data", "{emnist}", "--rounds", "20", *_TIME), quick={}),
    _Benchmark("round_time", ("speed/rounds_kws_1s",), ("kws", *_KWS_1S, "--rounds", "12", *_TIME)),
    _Benchmark("round_time", ("speed/rounds_kws_30s",), ("kws", *_KWS_30S, "--rounds", "4", *_TIME)),
    _Benchmark(
        "round_time",
        ("speed/memory_emnist",),
        ("emnist", "--data", "{emnist}", "--clients", "3", "--rounds", "0", "--memory-rounds", "500"),
        environment="MALLOC_ARENA_MAX=1",
    ),
    _Benchmark("peers", ("speed/peers",), ("--emnist", "{emnist}", "--kws", "{store_1s}", "--rounds", "10"), quick={}),
    _Benchmark("faults", ("cluster/faults",), quick={}),
    _Benchmark("deploy_equality", ("deploy/equality",), quick={}),
    _Benchmark("wire_bytes", ("deploy/wire_sizes", "deploy/wire_encoders"), quick={}),
    _Benchmark("many_nodes", ("deploy/many_nodes",), quick={}),
    _Benchmark("real_faults", ("deploy/faults",), quick={}),
    _Benchmark("client_memory", ("deploy/client_memory",), quick={}),
    _Benchmark("free_memory", ("deploy/free_memory",), quick={}),
    _Benchmark("many_clients", ("cluster/many_clients",), ("--data", "{emnist}", "--halves"), quick={}),
    _Benchmark("other_models", ("encoders/other_models",), ("--emnist", "{emnist}"), quick={}),
    _Benchmark("emnist_accuracy", ("emnist/accuracy",), ("--data", "{emnist}"), quick={}),
    _Benchmark("bits_to_accuracy", ("emnist/bits",), ("emnist", "--data", "{emnist}"), quick={"task": "emnist"}),
    _Benchmark("bits_to_accuracy", ("emnist/one_setting",), ("emnist-one-setting", "--data", "{emnist}")),
    _Benchmark("bits_to_accuracy", ("keywords/one_setting_1s",), ("kws-1s-one-setting", "--data", "{store_1s}")),
    _Benchmark("bits_to_accuracy", ("keywords/bits_1s",), ("kws-1s", "--data", "{store_1s}"), quick={"task": "kws-1s"}),
    _Benchmark("bits_to_accuracy", ("keywords/bits_30s",), ("kws-30s", "--data", "{store_30s}")),
    _Benchmark("kws_accuracy", ("keywords/accuracy_1s",), _KWS_1S, quick={}),
    _Benchmark("kws_accuracy", ("keywords/accuracy_1s_2_copies",), ("--window", "1s", "--data", "{store_1s_2_copies}")),
    _Benchmark("kws_accuracy", ("keywords/accuracy_30s",), _KWS_30S),
    _Benchmark("sam_iou", ("sam/iou",), quick={}),
    _Benchmark("sam_memory", ("sam/memory",), quick={}),
    _Benchmark("kws_splits", ("keywords/splits",), ("--speech", "{speech}", "--whisper", "{whisper}"), quick={}),
)
_STORES = {
    "store_1s": ("--window", "1s"),
    "store_30s": ("--window", "30s"),
    "store_1s_2_copies": ("--window", "1s", "--copies", "2"),
}


def main(
    emnist: str = "mnist-by-writer",
    speech: pathlib.Path = pathlib.Path("speech_commands"),
    whisper: str = "openai/whisper-tiny",
    stores: pathlib.Path = pathlib.Path("logs/stores"),
    only: str = "",
    quick: bool = False,
) -> None:
    """Runs the benchmarks whose results are not those of the code as it is now; stops at the first that fails.

    Args:
        emnist: As in `python -m tff_kit train emnist --data`.
        speech: Folder of Speech Commands, as in `python -m tff_kit embed --speech`.
        whisper: As in `python -m tff_kit embed --whisper`.
        stores: Where the embeddings of --speech are, or shall be.
        only: Benchmarks with this in the name of a results file; by default all.
        quick: Try each benchmark on scikit-learn's digits and synthetic embeddings, in this process.
    """
    chosen = [benchmark for benchmark in _BENCHMARKS if any(only in name for name in benchmark.writes)]
    if quick:
        _try(chosen)
        return
    where = {"emnist": emnist, "speech": str(speech), "whisper": whisper}
    where.update({name: str(stores / name) for name in _STORES})
    for benchmark in chosen:
        if all(results.is_current(name) for name in benchmark.writes):
            print(f"{', '.join(benchmark.writes)}: measured with this code already")
            continue
        for name, arguments in _STORES.items():
            if f"{{{name}}}" in benchmark.arguments:  # Goes on where it was stopped, and is quick where all is there.
                _run("tff_kit", "embed", "--speech", str(speech), "--whisper", whisper, "--out", where[name], *arguments)
        filled = [argument.format(**where) for argument in benchmark.arguments]
        _run(f"benchmarks.{benchmark.module}", *filled, environment=benchmark.environment)


def _try(benchmarks: list[_Benchmark]) -> None:
    """Tries each benchmark in this process, so that TensorFlow is imported once, and prints how long it took."""
    for benchmark in benchmarks:
        if benchmark.quick is None:
            continue
        began, used = time.monotonic(), sum(os.times()[:4])
        _load(benchmark).main(**benchmark.quick, quick=True)
        print(
            f"benchmarks.{benchmark.module}: {time.monotonic() - began:.0f} s, {sum(os.times()[:4]) - used:.0f} s of a processor",
            flush=True,
        )


def _load(benchmark: _Benchmark) -> Any:
    """Returns the module of a benchmark."""
    return importlib.import_module(f"benchmarks.{benchmark.module}" + ".__main__" * (benchmark.module == "peers"))


def _run(module: str, *arguments: str, environment: str = "") -> None:
    command = [sys.executable, "-m", module, *arguments]
    print(f"$ python -m {' '.join([module, *arguments])}", flush=True)
    program = subprocess.run(["env", *environment.split(), *command], cwd=results.ROOT, check=False)
    if program.returncode:
        sys.exit(f"error: Expected {module} to end well, found exit code {program.returncode}. Run the same command to go on.")


if __name__ == "__main__":
    tyro.cli(main)
