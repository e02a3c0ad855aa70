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
from tff_kit import cluster, datasets, experiments, runs, runtime
from tff_kit import whisper as whisper_encoder
from tff_kit.datasets import partitions, speech_commands, store, store_writer

_USAGE = """usage: python -m tff_kit COMMAND TASK [SETTINGS]

  train TASK        train, by federated averaging unless TASK says otherwise, into a run directory
  evaluate TASK     print accuracy, loss and number of examples of a trained model as JSON
  worker            compute for trainings that name this machine in --workers
  embed             make the embeddings that the task kws trains on, from a folder of Speech Commands
  plot partitions   draw how many clips, and of which classes, the clients of a folder of embeddings have

TASK is one of: {tasks}. COMMAND TASK --help lists the settings."""
_ERRORS = (datasets.DataError, experiments.SettingsError, runs.RunError, runtime.WorkerError, OSError)
_TASKS: dict[str, tuple[type[experiments.Training], Callable]] = {
    "emnist": (experiments.Emnist, tff_kit.train),
    "kws": (experiments.KeywordSpotting, tff_kit.train),
    "kws-centralized": (experiments.CentralizedKeywordSpotting, tff_kit.train_centralized),
}


@dataclasses.dataclass(frozen=True)
class _NoMachines:
    """Of a training that runs in this process."""


def _train_command(task: str, arguments: list[str]):
    settings_type, train_task = _TASKS[task]
    default = _default_settings(settings_type, arguments)
    machines_type = cluster.Machines if issubclass(settings_type, experiments.Experiment) else _NoMachines
    one_machine = machines_type()

    def train(
        training: tyro.conf.OmitArgPrefixes[settings_type] = default,  # type: ignore[valid-type]
        machines: tyro.conf.OmitArgPrefixes[machines_type] = one_machine,  # type: ignore[valid-type]
        logdir: Optional[pathlib.Path] = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Trains into a run directory.

        Args:
            training: The settings.
            machines: Where to compute.
            logdir: The run directory; by default a new one in logs/.
            resume: Go on with the stopped or killed run in --logdir, with its settings; more --rounds or --epochs are allowed.
            overwrite: Replace a run in --logdir.
        """
        where = {"machines": machines} if isinstance(machines, cluster.Machines) else {}
        train_task(training, logdir, resume, overwrite, **where)

    return train


def _evaluate_command(task: str):
    def evaluate(model: pathlib.Path, data: Optional[str] = None) -> None:
        """Prints one JSON object: accuracy, loss and examples of a trained model on held-out data.

        Args:
            model: The run directory.
            data: As in train; by default what the run was trained on.
        """
        run = runs.RunDirectory(model)
        training = run.read_settings(_TASKS[task][0])
        training = training if data is None else dataclasses.replace(training, data=data)
        print(json.dumps(tff_kit.evaluate(training, run)))

    return evaluate


def _plot_partitions(data: pathlib.Path = pathlib.Path("embeddings"), out: pathlib.Path = pathlib.Path("logs")) -> None:
    """Draws the clips of each client, and of each of its classes, as PNG.

    Args:
        data: Folder of embeddings.
        out: Folder of clips_per_client.png and classes_per_client.png.
    """
    opened = store.open_store(data)
    for name in partitions.plot_partitions(opened.client_labels, speech_commands.CLASS_NAMES, opened.name, out):
        print(out / name)


def _embed(
    speech: pathlib.Path,
    out: pathlib.Path = pathlib.Path("embeddings"),
    whisper: str = whisper_encoder.DEFAULT_MODEL,
    window: Literal["30s", "1s"] = "30s",
    dtype: Literal["float16", "int8"] = "float16",
    speakers_per_client: int = 5,
    copies: int = 0,
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
        copies: Altered copies of each training clip beside it, a little earlier or later and with some background noise: more
            to learn from, where clients have few clips.
        seed: Of the split by speaker, where the official lists are not there, of silence, and of what is done to copies.
        download: Fetch Speech Commands v0.02, 2.4 GB, into --speech first, where it is not there.
    """
    if download and not speech.exists():
        speech_commands.download(speech)
    data = speech_commands.load_data(speech, speakers_per_client, seed=seed, copies=copies, show_progress=True)
    for line in [*data.notes, *data.skipped]:
        print(f"Note: {line}", file=sys.stderr)
    store = store_writer.embed(data, whisper_encoder.load_encoder(whisper, window), out, dtype)
    print(f"{store.num_clips:,} clips, {len(store.client_ids)} clients, in {out}; relative error {store.relative_error:.2g}")


def _worker(
    port: int,
    bind: str = "127.0.0.1",
    credential: Optional[pathlib.Path] = None,
    insecure: bool = False,
    max_concurrent: Optional[int] = None,
) -> None:
    """Computes for trainings that have this machine in --workers, until Ctrl-C or the end of the process that started it.

    Args:
        port: Where to listen; 0 for a free port, which is printed.
        bind: Address to listen on. Beyond loopback it takes a credential.
        credential: PEM file of a key and its certificate, as scripts/credential.sh makes one. Only trainings with the same file
            can connect, and all is encrypted.
        insecure: Serve everybody, unencrypted; and run where the system allows no network namespace to shut the worker in.
        max_concurrent: Clients that train at once, by default as many as there are processors.
    """
    runtime.serve(port, bind, credential, insecure, max_concurrent)


_TASK_COMMANDS = ("train", "evaluate")
_COMMANDS: dict[str, Callable] = {"worker": _worker, "embed": _embed}


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    usage = _USAGE.format(tasks=", ".join(_TASKS))
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    command, task = (*arguments, "")[:2]
    if command in _COMMANDS:
        return _run(lambda: _COMMANDS[command], command, arguments[1:])
    if (command, task) == ("plot", "partitions"):
        return _run(lambda: _plot_partitions, "plot partitions", arguments[2:])
    if command not in _TASK_COMMANDS or task not in _TASKS:
        print(
            f"error: expected COMMAND TASK with COMMAND one of {', '.join(_TASK_COMMANDS)} and TASK one of {', '.join(_TASKS)}, "
            f"or worker, embed, or plot partitions; found {' '.join(arguments[:2])!r}.\n\n{usage}",
            file=sys.stderr,
        )
        return 2
    if command == "train":
        return _run(lambda: _train_command(task, arguments[2:]), f"train {task}", arguments[2:])
    return _run(lambda: _evaluate_command(task), f"evaluate {task}", arguments[2:])


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


def _default_settings(settings_type: type[experiments.Training], arguments: list[str]) -> experiments.Training:
    """Returns the defaults of the command line: those of the run to resume, where one is resumed."""
    if "--resume" in arguments:
        if "--logdir" not in arguments[:-1]:
            raise runs.RunError("Expected the run to go on with: --resume needs --logdir FOLDER.")
        logdir = arguments[arguments.index("--logdir") + 1]
        return runs.RunDirectory(pathlib.Path(logdir)).read_settings(settings_type)
    return settings_type()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
