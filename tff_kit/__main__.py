"""The command line: `python -m tff_kit COMMAND TASK [SETTINGS]`."""

# Annotations here are evaluated at once, not kept as text: tyro reads types that exist only inside functions.

import dataclasses
import json
import logging
import pathlib
import sys
from typing import Optional

import tyro

import tff_kit
from tff_kit import datasets, experiments, runs, runtime

_USAGE = """usage: python -m tff_kit COMMAND TASK [SETTINGS]

  train TASK      train by federated averaging, into a run directory
  evaluate TASK   print accuracy, loss and number of examples of a trained model as JSON

TASK is one of: {tasks}. COMMAND TASK --help lists the settings."""
_ERRORS = (datasets.DataError, experiments.SettingsError, runs.RunError, runtime.WorkerError, OSError)


def _train_command(experiment_type: type[experiments.Experiment], default: experiments.Experiment):
    def train(
        experiment: tyro.conf.OmitArgPrefixes[experiment_type] = default,  # type: ignore[valid-type]
        logdir: Optional[pathlib.Path] = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Trains by federated averaging.

        Args:
            experiment: The settings.
            logdir: The run directory; by default a new one in logs/.
            resume: Go on with the stopped or killed run in --logdir, with its settings; more --rounds are allowed.
            overwrite: Replace a run in --logdir.
        """
        tff_kit.train(experiment, logdir, resume, overwrite)

    return train


def _evaluate_command(experiment_type: type[experiments.Experiment], default: experiments.Experiment):
    def evaluate(model: pathlib.Path, data: str = default.data) -> None:
        """Prints one JSON object: accuracy, loss and examples of a trained model on held-out data.

        Args:
            model: The run directory.
            data: As in train.
        """
        run = runs.RunDirectory(model)
        experiment = dataclasses.replace(run.read_experiment(experiment_type), data=data)
        print(json.dumps(tff_kit.evaluate(experiment, run)))

    return evaluate


_COMMANDS = {"train": _train_command, "evaluate": _evaluate_command}


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    tasks = ", ".join(experiments.EXPERIMENTS)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE.format(tasks=tasks))
        return 0
    command, task = (*arguments, "")[:2]
    if command not in _COMMANDS or task not in experiments.EXPERIMENTS:
        print(
            f"error: expected COMMAND one of {', '.join(_COMMANDS)} and TASK one of {tasks}; found "
            f"{' '.join(arguments[:2])!r}.\n\n{_USAGE.format(tasks=tasks)}",
            file=sys.stderr,
        )
        return 2
    logging.getLogger("asyncio").disabled = True  # On Ctrl-C it would add tracebacks of its own for what was interrupted.
    try:
        experiment_type = experiments.EXPERIMENTS[task]
        function = _COMMANDS[command](experiment_type, _default_settings(experiment_type, arguments[2:]))
        tyro.cli(function, args=arguments[2:], prog=f"python -m tff_kit {command} {task}")
    except _ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; go on with the same command and --resume, and --logdir where it trained", file=sys.stderr)
        return 130
    return 0


def _default_settings(experiment_type: type[experiments.Experiment], arguments: list[str]) -> experiments.Experiment:
    """Returns the defaults of the command line: those of the run to resume, where one is resumed."""
    if "--resume" in arguments:
        if "--logdir" not in arguments[:-1]:
            raise runs.RunError("Expected the run to go on with: --resume needs --logdir FOLDER.")
        logdir = arguments[arguments.index("--logdir") + 1]
        return runs.RunDirectory(pathlib.Path(logdir)).read_experiment(experiment_type)
    return experiment_type()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
