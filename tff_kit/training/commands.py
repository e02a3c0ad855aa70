"""The commands `train TASK` and `evaluate TASK`."""

# Annotations here are evaluated at once, not kept as text: tyro reads types that exist only inside functions.

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Callable, Optional

import tyro

from tff_kit.experiment import Experiment, Training
from tff_kit.tasks import find_task
from tff_kit.training import runs


@dataclasses.dataclass(frozen=True)
class _NoMachines:
    """The machines of a training that runs in this process: none to choose."""


def train(task: str, arguments: Sequence[str]) -> Callable:
    """Returns the command that trains `task`; its defaults are those of the run to resume, where one is resumed."""
    settings_type = find_task(task)
    default = default_settings(settings_type, arguments)
    federated = issubclass(settings_type, Experiment)
    module: Any = importlib.import_module(f"tff_kit.training.{'rounds' if federated else 'centralized'}")
    machines_type = module.cluster.Machines if federated else _NoMachines
    one_machine = machines_type()

    def run_training(
        training: tyro.conf.OmitArgPrefixes[settings_type] = default,  # type: ignore[valid-type]
        machines: tyro.conf.OmitArgPrefixes[machines_type] = one_machine,  # type: ignore[valid-type]
        place: tyro.conf.OmitArgPrefixes[runs.Place] = runs.Place(),  # noqa: B008
    ) -> None:
        """Trains into a run directory.

        Args:
            training: The settings.
            machines: The machines to train on.
            place: Where the run is kept.
        """
        where = {"machines": machines} if federated else {}
        module.train(training, place.logdir, place.resume, place.overwrite, **where)

    return run_training


def evaluate(task: str, arguments: Sequence[str]) -> Callable:
    """Returns the command that evaluates a trained model of `task`."""
    del arguments

    def run_evaluation(model: pathlib.Path, data: Optional[str] = None) -> None:
        """Prints one JSON object: metrics, loss and number of examples of a trained model on held-out data.

        Args:
            model: The run directory.
            data: The data, as in train. The default is the data that the run was trained on.
        """
        from tff_kit.training import evaluation

        run = runs.RunDirectory(model)
        training = run.read_settings(find_task(task))
        training = training if data is None else dataclasses.replace(training, data=data)
        print(json.dumps(evaluation.evaluate(training, run)))

    return run_evaluation


def default_settings(settings_type: type[Training], arguments: Sequence[str]) -> Training:
    """Returns the defaults of a command line: those of the run to resume, where one is resumed."""
    if "--resume" not in arguments:
        return settings_type()
    logdir = ""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        name, is_joined, value = argument.partition("=")
        if name == "--logdir":
            logdir = value if is_joined else following
    if not logdir:
        raise runs.RunError("Expected the run to go on with: --resume needs --logdir FOLDER.")
    return runs.RunDirectory(pathlib.Path(logdir)).read_settings(settings_type)
