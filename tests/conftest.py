"""What tests share: data, programs, and patience."""

import contextlib
import csv
import dataclasses
import functools
import os
import pathlib
import runpy
import sqlite3
import subprocess
import sys
import time
import types
import wave

import hypothesis
import numpy as np
import programs
import psutil
import pytest
import tensorflow as tf

# The same examples in every run. Benchmarks search longer, with others each time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # Before tests are selected by their marks.
def pytest_collection_modifyitems(items):
    for item in items:
        for fixture, mark in (("shared", "data"), ("start_program", "process")):
            if fixture in item.fixturenames:
                item.add_marker(mark)


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="session", autouse=True)
def graphs_as_they_are():
    """Leaves out what TFF does to make a graph faster, which takes longer than the few rounds of a test.

    Programs of `start_program` and notebooks do the same. Examples of the documents and what else trains in a process of its own
    have their graphs optimized as ever.
    """
    exec(programs.AS_THEY_ARE)


@pytest.fixture(scope="session")
def shared():
    """The folder of real data that developers have beside the project; users have none."""
    folder = pathlib.Path(os.environ.get("TFF_KIT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs the developers' data")
    return folder


@pytest.fixture(scope="session")
def unpack(shared):
    """The function of the developers' tool that unpacks a kind of data from one folder into another."""
    tool = runpy.run_path(str(shared / "tools/make_data.py"))
    return lambda kind, data, out: tool[kind](data, out)


@pytest.fixture(scope="session")
def cache_of_writers(shared, unpack, tmp_path_factory):
    """Returns a cache folder with the digits of the first `count` of the 700 writers."""

    @functools.cache
    def cache(count):
        folder = tmp_path_factory.mktemp(f"{count}-writers")
        archive = np.load(shared / "data/digits_by_writer.npz")
        kept = np.isin(archive["writer"], np.unique(archive["writer"])[:count])
        np.savez(folder / "digits_by_writer.npz", **{name: archive[name][kept] for name in archive})
        unpack("emnist", folder, folder)
        return folder

    return cache


@pytest.fixture
def small_cache(tmp_path):
    """A cache folder with twelve clients of a few real digits each, one of them without any."""
    folder = tmp_path / "cache"
    folder.mkdir()
    write_cache(folder / "emnist_all.sqlite", clients=12, examples=20, empty=("client03",))
    return folder


def write_cache(path, clients, examples, empty=(), nan=()):
    """Writes TFF's EMNIST database from scikit-learn's digits; pixels of the clients in `nan` are not numbers."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = tf.image.resize(digits.images[..., None] / 16, [28, 28]).numpy()[..., 0]
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)")
        database.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        for client in range(clients):
            name = f"client{client:02d}"
            rows = [] if name in empty else range(client * examples, (client + 1) * examples)
            for split, kept in (("train", [r for r in rows if r % 5]), ("test", [r for r in rows if not r % 5])):
                split = f"digits_only_{split}"
                for row in kept:
                    pixels = np.full(784, np.nan) if name in nan and split.endswith("train") else 1 - images[row].ravel()
                    database.execute("INSERT INTO examples VALUES (?, ?, ?)", (split, name, _example(pixels, digits.target[row])))
                database.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (name, split, len(kept)))


def _example(pixels, label):
    features = {
        "pixels": tf.train.Feature(float_list=tf.train.FloatList(value=pixels)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def run_python(*arguments, **options):
    """Runs the project's Python on `arguments` as a user would; returns the finished process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, text=True, capture_output=True, timeout=300, check=False, **options
    )


@pytest.fixture(scope="session")
def parent_of_programs():
    parent = programs.Parent(ROOT)
    yield parent
    parent.stop()


@pytest.fixture
def start_program(parent_of_programs):
    """Starts Python code as a program that has imported TensorFlow Federated already; one at a time."""
    with contextlib.ExitStack() as stack:

        def start(code):
            program = parent_of_programs.start(code)
            stack.callback(program.stop)
            return program

        yield start


@pytest.fixture(scope="session")
def whisper_folder(shared) -> pathlib.Path:
    """An encoder with the shapes of openai/whisper-tiny."""
    return shared / "data" / "whisper-tiny.en-encoder"


@pytest.fixture(scope="session")
def real_clips(shared) -> np.ndarray:
    """Eight real clips of different words: float32 [8, 16000]."""
    soundfile = pytest.importorskip("soundfile")
    with open(shared / "data" / "speech_commands.csv", newline="") as file:
        first_of_word = {row["word"]: int(row["start"]) for row in csv.DictReader(file)}
    starts = [first_of_word[word] for word in sorted(first_of_word)[:8]]
    path = shared / "data" / "speech_commands.flac"
    return np.stack([soundfile.read(path, frames=16_000, start=start, dtype="float32")[0] for start in starts])


@pytest.fixture(scope="session")
def torch_python() -> str:
    """A Python with PyTorch: this one, or that of the variable TFF_KIT_TORCH_PYTHON, since nothing else here needs it."""
    python = os.environ.get("TFF_KIT_TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch, transformers, safetensors"], capture_output=True, check=False).returncode:
        pytest.skip("no PyTorch; set TFF_KIT_TORCH_PYTHON to a Python that has torch, transformers and safetensors")
    return python


def write_wav(path: pathlib.Path, samples, rate: int = 16_000, channels: int = 1) -> pathlib.Path:
    """Writes 16-bit samples, for stereo one channel after the other in turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return path


@pytest.fixture
def speech_folder(tmp_path) -> pathlib.Path:
    """A folder of its own with what `write_speech` writes."""
    return write_speech(tmp_path / "speech")


def write_speech(folder: pathlib.Path) -> pathlib.Path:
    """Thirty speakers who say yes, no, and bed twice; every clip holds its own number. Two background recordings."""
    for speaker in range(30):
        for k, word in enumerate(("yes", "no", "bed")):
            for n in range(2):
                write_wav(folder / word / f"{speaker:08x}_nohash_{n}.wav", np.full(16_000, 6 * speaker + 2 * k + n))
    # Recordings count up, so that a crop's first sample tells where it was cut.
    for k, seconds in enumerate((20, 30)):
        write_wav(folder / "_background_noise_" / f"noise{k}.wav", np.arange(seconds * 16_000) % 30_000)
    return folder


MOST_BYTES = 2**30  # Of a worker, which keeps what it has computed.


@pytest.fixture(scope="session", autouse=True)
def one_worker():
    """Lets all trainings of this process on one machine use one worker: to start one takes longer than to train a small model.

    Programs of `start_program`, and trainings on several machines, have workers of their own.
    """
    from tff_kit import runtime
    from tff_kit.runtime import cluster, sizing
    from tff_kit.training import rounds

    open_context, workers = cluster.open_context, []

    def worker():
        if workers and psutil.Process(workers[0].pid).memory_info().rss > MOST_BYTES:
            workers.pop().stop()
        if not workers:
            workers.append(runtime.Worker())
        return workers[0]

    @contextlib.contextmanager
    def open_shared(machines, sampled, log, note):
        if machines != cluster.ONE_MACHINE:
            with open_context(machines, sampled, log, note) as opened:
                yield opened
        else:
            sizes = sizing.sizing_executor_factory(worker())
            yield runtime.create_context(sizes), sizes

    # In the training alone, since tests of the cluster call the other one by its own name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "cluster", types.SimpleNamespace(**{**vars(cluster), "open_context": open_shared}))
        yield
    for started in workers:
        started.stop()


@pytest.fixture(scope="module")
def built_once():
    """Lets a module's trainings with equal settings share their graphs, which take long to build. Their data are equal, too."""
    from tff_kit.runtime import worker
    from tff_kit.training import rounds

    build, built = rounds.assembly.build_process, {}

    def build_process(experiment, data, weights):
        settings = dataclasses.asdict(dataclasses.replace(experiment, rounds=1, eval_every=1))
        known = [x.tobytes() for x in tf.nest.flatten(weights)] if weights else None  # They are in the graph.
        key = type(experiment), str(settings), data.client_ids, str(known)
        if key not in built:
            built.clear()  # Of one experiment at a time, since a worker keeps what was built.
            built[key] = build(experiment, data, weights)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds.assembly, "build_process", build_process)
        patch.setattr(worker.create_context, "__defaults__", (functools.lru_cache(8)(worker.compile_native),))
        yield
