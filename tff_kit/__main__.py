"""The command line: `python -m tff_kit COMMAND TASK [SETTINGS]`."""

# Annotations here are evaluated at once, not kept as text: tyro reads types that exist only inside functions.

import dataclasses
import json
import logging
import pathlib
import sys
from typing import Callable, Optional

import tyro
from typing_extensions import Literal

import tff_kit
from tff_kit import datasets, experiments, runs, runtime
from tff_kit import whisper as whisper_encoder
from tff_kit.datasets import embeddings, speech_commands

_USAGE = """usage: python -m tff_kit COMMAND TASK [SETTINGS]

  train TASK      train by federated averaging, into a run directory
  evaluate TASK   print accuracy, loss and number of examples of a trained model as JSON
  embed           make the embeddings that the task kws trains on, from a folder of Speech Commands

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


def _embed(
    speech: pathlib.Path,
    out: pathlib.Path = pathlib.Path("embeddings"),
    whisper: str = whisper_encoder.DEFAULT_MODEL,
    window: Literal["30s", "1s"] = "30s",
    dtype: Literal["float16", "int8"] = "float16",
    speakers_per_client: int = 5,
    seed: int = 0,
    download: bool = False,
) -> None:
    """Makes embeddings of all clips of Speech Commands by Whisper's encoder. Goes on where it was stopped.

    Args:
        speech: Folder of Speech Commands as the archive unpacks: a folder of wavs for each word.
        out: Folder of the embeddings.
        whisper: Id of a Whisper model on the Hugging Face hub, or a local folder of one.
        window: Sound that the encoder is given: the seed's 30 s, or just the clip's 1 s, 25 times cheaper and 30 times smaller.
        dtype: float16, or int8 for half of the space.
        speakers_per_client: How many speakers make a client.
        seed: Of the split by speaker, where the official lists are not there, and of silence.
        download: Fetch Speech Commands v0.02, 2.4 GB, into --speech first, where it is not there.
    """
    if download and not speech.exists():
        speech_commands.download(speech)
    data = speech_commands.load_data(speech, speakers_per_client, seed=seed, show_progress=True)
    for line in [*data.notes, *data.skipped]:
        print(f"Note: {line}", file=sys.stderr)
    store = embeddings.embed(data, whisper_encoder.load_encoder(whisper, window), out, dtype)
    print(f"{store.num_clips:,} clips, {len(store.client_ids)} clients, in {out}; relative error {store.relative_error:.2g}")


_COMMANDS = {"train": _train_command, "evaluate": _evaluate_command}


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    tasks = ", ".join(experiments.EXPERIMENTS)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE.format(tasks=tasks))
        return 0
    if arguments[0] == "embed":
        return _run(lambda: _embed, "embed", arguments[1:])
    command, task = (*arguments, "")[:2]
    if command not in _COMMANDS or task not in experiments.EXPERIMENTS:
        print(
            f"error: expected COMMAND one of {', '.join(_COMMANDS)} and TASK one of {tasks}, or embed; found "
            f"{' '.join(arguments[:2])!r}.\n\n{_USAGE.format(tasks=tasks)}",
            file=sys.stderr,
        )
        return 2
    experiment_type = experiments.EXPERIMENTS[task]
    return _run(
        lambda: _COMMANDS[command](experiment_type, _default_settings(experiment_type, arguments[2:])),
        f"{command} {task}",
        arguments[2:],
    )


def _run(make_function: Callable[[], Callable], name: str, arguments: list[str]) -> int:
    logging.getLogger("asyncio").disabled = True  # On Ctrl-C it would add tracebacks of its own for what was interrupted.
    try:
        tyro.cli(make_function(), args=arguments, prog=f"python -m tff_kit {name}")
    except _ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with it, a training with --resume and its --logdir", file=sys.stderr)
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
