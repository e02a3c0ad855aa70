"""The command line: `python -m tff_kit COMMAND TASK [SETTINGS]`."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from typing import Callable

# Set before TensorFlow is imported: no start-up messages, and the faster kernels of oneDNN, which TensorFlow itself takes on
# the newest processors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Models are of Keras 2, which is a package of its own from TensorFlow 2.16 on.
if importlib.util.find_spec("tf_keras"):
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

from tff_kit.errors import UserError

_USAGE = """usage: python -m tff_kit COMMAND TASK [SETTINGS]

  train TASK        train, by federated averaging unless TASK says otherwise, into a run directory
  evaluate TASK     print metrics, loss and number of examples of a trained model as JSON
  serve TASK        train with real clients, which join over a network
  join              take part in the trainings of a server, as a client with data of its own
  partition TASK    write each client's data to a folder, to be copied to its device
  credential        make the keys of a server and of the clients that may join it
  worker            compute for trainings that name this machine in --workers
  embed             make the embeddings that the task kws trains on, from a folder of Speech Commands
  embed sam         make the embeddings that the task sam trains on, from a folder of images and masks
  export sam        write a trained mask decoder as safetensors in Hugging Face's names
  plot partitions   draw how many clips, and of which classes, the clients of a folder of embeddings have
  plot cifar10      draw how many pictures, and of which classes, the clients of CIFAR-10 have

TASK is one of: {tasks}. COMMAND TASK --help lists the settings."""
_TASK_COMMANDS = {
    "train": "tff_kit.training.commands:train",
    "evaluate": "tff_kit.training.commands:evaluate",
    "serve": "tff_kit.deploy.commands:serve",
    "partition": "tff_kit.deploy.commands:partition",
}
_COMMANDS = {
    "join": "tff_kit.deploy.commands:join",
    "credential": "tff_kit.deploy.commands:credential",
    "worker": "tff_kit.runtime.commands:worker",
    "embed": "tff_kit.tasks.keywords.commands:embed",
    "embed sam": "tff_kit.tasks.segmentation.commands:embed",
    "export sam": "tff_kit.tasks.segmentation.commands:export",
    "plot cifar10": "tff_kit.tasks.cifar10.commands:plot_partitions",
    "plot partitions": "tff_kit.tasks.keywords.commands:plot_partitions",
}
"""Where each command is, MODULE:FUNCTION; it is imported when it is run. Those of tasks are given the task's name."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    command, task = (*arguments, "")[:2]
    name = next((name for name in (f"{command} {task}", command) if name in _COMMANDS), None)
    if name:
        return _run(lambda: _find(_COMMANDS[name]), name, arguments[len(name.split()) :])
    if command in _TASK_COMMANDS and task in _tasks():
        return _run(lambda: _find(_TASK_COMMANDS[command])(task, arguments[2:]), f"{command} {task}", arguments[2:])
    print(
        f"error: expected COMMAND TASK with COMMAND one of {', '.join(_TASK_COMMANDS)} and TASK one of {', '.join(_tasks())}, "
        f"or {', '.join(_COMMANDS)}; found {' '.join(arguments[:2])!r}.\n\n{_usage()}",
        file=sys.stderr,
    )
    return 2


def _run(make_function: Callable[[], Callable], name: str, arguments: Sequence[str]) -> int:
    import tyro

    logging.getLogger("asyncio").disabled = True  # On Ctrl-C it would add tracebacks of its own for what was interrupted.
    try:
        tyro.cli(make_function(), args=list(arguments), prog=f"python -m tff_kit {name}")
    except ModuleNotFoundError as error:
        print(
            f"error: Expected the package {error.name}, found none. docs/install.md says what each command needs.",
            file=sys.stderr,
        )
        return 2
    except (UserError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with it, a training with --resume and its --logdir", file=sys.stderr)
        return 130
    return 0


def _find(place: str) -> Callable:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _tasks() -> Sequence[str]:
    from tff_kit.tasks import TASKS

    return tuple(TASKS)


def _usage() -> str:
    return _USAGE.format(tasks=", ".join(_tasks()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
