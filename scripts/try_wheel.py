"""What an installed wheel can do without TFF: imports with their CPU seconds and memory, tasks' initial weights, commands."""

import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tempfile

_IMPORT = """
import resource, time
import {module}
peak = resource.getrusage(resource.RUSAGE_SELF)
print(f"{{peak.ru_utime + peak.ru_stime:.2f}} s, {{peak.ru_maxrss / 1024:.0f}} MiB")
"""


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def main() -> None:
    """Prints one line for each fact."""
    names = ("tff_kit", "tensorflow", "tensorflow-model-optimization", "tf_keras", "numpy", "tyro")
    installed = {found.metadata["Name"].lower().replace("-", "_"): found.version for found in importlib.metadata.distributions()}
    versions = [f"{name} {installed.get(name.replace('-', '_'), 'missing')}" for name in names]
    print(f"Python {sys.version.split()[0]}: {', '.join(versions)}")
    for module in ("tff_kit", "tff_kit.encoders"):
        print(f"  import {module}: {_run('-c', _IMPORT.format(module=module)).stdout.splitlines()[-1]}")

    from tff_kit.tasks import TASKS, find_task

    for name in TASKS:
        weights = find_task(name)(seed=3).build_model().get_weights()
        digest = hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()[:12]
        print(f"  initial weights of {name}: {digest}")
    trained = _run("-m", "tff_kit", "train", "emnist")
    print(f"  train emnist: exit code {trained.returncode}, {trained.stderr.splitlines()[-1][:70]}...")
    with tempfile.TemporaryDirectory() as folder:
        _evaluate(pathlib.Path(folder))


def _evaluate(folder: pathlib.Path) -> None:
    from tff_kit.tasks import find_task
    from tff_kit.training import runs

    task = find_task("emnist")(data="digits")
    run = runs.RunDirectory(folder)
    run.write_settings(task, "digits", ())
    task.build_model().save(run.model)
    evaluated = _run("-m", "tff_kit", "evaluate", "emnist", "--model", str(folder))
    last = (evaluated.stdout or evaluated.stderr).splitlines()[-1]
    print(f"  evaluate emnist: exit code {evaluated.returncode}, {json.loads(last) if last.startswith('{') else last}")


if __name__ == "__main__":
    main()
