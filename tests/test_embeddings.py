"""The store on disk: what goes in comes out, on the worker too, and killed runs end as others do."""

from __future__ import annotations

import collections
import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import write_speech

import tff_kit
from tff_kit.datasets import DataError, FederatedDataset, disk, partitions
from tff_kit.embeddings import store as stores
from tff_kit.embeddings import writer
from tff_kit.tasks.keywords import data as embeddings
from tff_kit.tasks.keywords import embed, speech_commands, whisper

POSITIONS, WIDTH = 50, 384


def _embed(clips: tf.Tensor) -> tf.Tensor:
    """A stand-in for the encoder: the clip's first sample everywhere, plus a pattern."""
    pattern = tf.random.stateless_normal([1, POSITIONS, WIDTH], [1, 2])
    return clips[:, 0][:, None, None] * 1000 + pattern


ENCODER = whisper.Encoder("stand-in", "a" * 64, "1s", POSITIONS, WIDTH, _embed)


def _expected(speech, clip) -> np.ndarray:
    return _embed(speech.read(clip)[None]).numpy()[0]


@pytest.fixture(scope="module")
def speech_folder(tmp_path_factory):
    """The clips, which nobody here changes."""
    return write_speech(tmp_path_factory.mktemp("clips") / "speech")


@pytest.fixture(scope="module")
def speech(speech_folder):
    return speech_commands.load_data(speech_folder)


@pytest.fixture(scope="module")
def written(speech, tmp_path_factory):
    return embed.embed(speech, ENCODER, tmp_path_factory.mktemp("embeddings") / "store", show_progress=False)


@pytest.fixture
def store(written, tmp_path):
    """A copy of the embeddings, for a test to spoil."""
    return stores.open_store(shutil.copytree(written.folder, tmp_path / "store"))


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    return embed.demo(tmp_path_factory.mktemp("demo") / "store", clients=4, clips_per_client=100).folder


def _bytes(folder: pathlib.Path) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def _stored(store, name: str, dtype: str) -> np.ndarray:
    """All clips of a folder as numbers, [clips, numbers]."""
    return np.stack([np.fromfile(path, dtype) for path in sorted((store.folder / name).iterdir())])


def _clients(dataset, client, seed=0):
    return list(dataset.client_dataset(tf.constant(client), tf.constant(seed, tf.int64)).as_numpy_iterator())


# What is stored.


def test_sizes_of_the_choices():
    """By hand: a clip is 1500 or 50 positions of 384 numbers of 2 bytes, or of 1 byte and a step of 2; and its label's byte."""
    by_hand = {("30s", "float16"): 1500 * 768, ("30s", "int8"): 1500 * 386, ("1s", "float16"): 50 * 768, ("1s", "int8"): 50 * 386}
    for (window, dtype), size in by_hand.items():
        assert embed.store_gigabytes(84_848, window, dtype) == pytest.approx(84_848 * (size + 1) / 1e9)
    assert round(embed.store_gigabytes(84_848), 1) == 97.7  # the published figure for float16


def test_files_hold_every_clip_in_order(store, speech):
    for name, clips in speech.splits.items():
        raw = _stored(store, name, "<f2").reshape(-1, POSITIONS, WIDTH)
        np.testing.assert_array_equal(np.fromfile(store.folder / f"{name}.labels", np.uint8), [clip.label for clip in clips])
        for found, clip in zip(raw, clips):
            np.testing.assert_array_equal(found, _expected(speech, clip).astype(np.float16))
        assert len(raw) == len(clips)


def test_description_tells_what_the_store_is_of(store, speech):
    description = json.loads((store.folder / "store.json").read_text())
    expected = {
        "model": "stand-in",
        "weights_sha256": "a" * 64,
        "window": "1s",
        "positions": 50,
        "width": 384,
        "dtype": "float16",
        "version": 1,
        "speakers_per_client": 5,
        "complete": True,
    }
    assert {key: description[key] for key in expected} == expected
    assert "Speech Commands" in description["name"] and sum(description["clips"].values()) == store.num_clips
    assert 0 < description["relative_error"] < 2**-11  # half a unit in the last place of float16's 11 bits
    assert stores.open_store(store.folder) == store


def test_int8_is_within_half_a_step_and_says_its_error(speech, tmp_path):
    store = embed.embed(speech, ENCODER, tmp_path / "store", dtype="int8", show_progress=False)
    batches = list(embeddings.load(store.folder).test.as_numpy_iterator())
    found = np.concatenate([x for x, _ in batches])
    expected = np.stack([_expected(speech, clip) for clip in speech.test])
    step = np.abs(expected).max(axis=-1, keepdims=True) / 127
    # The step itself is rounded to float16, which moves the largest value by up to 127 x 2^-11 of a step.
    assert (np.abs(found - expected) <= step * (0.5 + 127 * 2**-11)).all()
    # The error of 64 clips from all over the store, decoded by hand.
    records = np.concatenate([_stored(store, name, "i1") for name in speech.splits])
    assert records.shape == (store.num_clips, 50 * 386)
    clips = [clip for clips in speech.splits.values() for clip in clips]
    numbers = np.linspace(0, len(clips) - 1, 64).astype(int)
    back = [records[i, 100:].reshape(50, 384) * records[i, :100].view("<f2").astype(np.float64)[:, None] for i in numbers]
    computed = np.stack([_expected(speech, clips[i]) for i in numbers])
    error = np.sqrt(np.square(np.stack(back) - computed).sum() / np.square(computed).sum())
    assert store.relative_error == pytest.approx(error, rel=0.01)
    assert any("int8" in note and f"{store.relative_error:.2%}" in note for note in embeddings.load(store.folder).notes)


@pytest.mark.parametrize("dtype", stores.DTYPES)
@pytest.mark.parametrize("value", [0.0, 1e-12, -3.0, 60_000.0])
def test_constant_embeddings_survive(dtype, value):
    store = stores.Store(pathlib.Path(), "", "", "", "1s", 2, 3, dtype, 1, "", {})
    x = np.full([1, 2, 3], value, np.float32)
    back = stores.decode(store, tf.constant([stores.encode(x, dtype)[0].tobytes()]))
    np.testing.assert_allclose(back, x, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dtype", stores.DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_float16_cannot_hold_is_refused(dtype, value):
    with pytest.raises(DataError, match="that float16 can hold"):
        stores.encode(np.full([1, 2, 3], value, np.float32), dtype)


# What is read.


def test_dataset(store, speech):
    dataset = embeddings.load(store.folder)
    assert isinstance(dataset, FederatedDataset) and dataset.client_ids == tuple(speech.clients)
    inputs, labels = dataset.element_spec
    assert (inputs.shape.as_list(), inputs.dtype) == ([None, 50, 384], tf.float32)
    assert (labels.shape.as_list(), labels.dtype) == ([None], tf.int32)
    assert dataset.test.element_spec == dataset.validation.element_spec == (inputs, labels)


def test_held_out_sets_are_all_their_clips_in_order(store, speech):
    dataset = embeddings.load(store.folder)
    for batches, clips in ((dataset.test, speech.test), (dataset.validation, speech.validation)):
        for _ in range(2):
            found = list(batches.as_numpy_iterator())
            np.testing.assert_array_equal(np.concatenate([y for _, y in found]), [clip.label for clip in clips])
            expected = np.stack([_expected(speech, clip) for clip in clips])
            np.testing.assert_allclose(np.concatenate([x for x, _ in found]), expected, rtol=1e-3, atol=1e-3)


def test_a_client_trains_on_whole_batches_of_its_own_clips(store, speech):
    for client, clips in speech.clients.items():
        batches = _clients(embeddings.load(store.folder), client)
        assert [len(y) for _, y in batches] == [8] * (len(clips) // 8)
        own = {_expected(speech, clip).astype(np.float16).tobytes(): clip.label for clip in clips}
        for x, y in batches:
            assert [own[embedding.astype(np.float16).tobytes()] for embedding in x] == y.tolist()


def test_in_each_local_epoch_a_client_trains_once_on_a_clip(store, speech):
    (client, clips), *_ = speech.clients.items()
    batches = _clients(embeddings.load(store.folder, local_epochs=2), client)
    assert len(batches) == 2 * (len(clips) // 8)
    clip_bytes = [x.astype(np.float16).tobytes() for xs, _ in batches for x in xs]
    epochs = clip_bytes[: len(clip_bytes) // 2], clip_bytes[len(clip_bytes) // 2 :]
    own = collections.Counter(_expected(speech, clip).astype(np.float16).tobytes() for clip in clips)
    assert not any(collections.Counter(epoch) - own for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.slow
@pytest.mark.parametrize("balanced", [False, True])
def test_draws_depend_on_seed_and_client_only(demo_folder, balanced):
    dataset = embeddings.load(demo_folder, balanced=balanced)

    def drawn(client, seed):
        return b"".join(x.tobytes() + y.tobytes() for x, y in _clients(dataset, client, seed))

    assert drawn("0000", 1) == drawn("0000", 1)
    assert len({drawn("0000", 1), drawn("0000", 2), drawn("0001", 1), drawn("0000", -1), drawn("0000", 2**62)}) == 5


def test_classes_are_drawn_by_the_weights_of_flowers_example():
    """Of 3 and 77 clips: weights 80/4 + 1 and 80/78 + 1 a clip, so 63 to 156 for the classes."""
    labels = tf.constant([4] * 3 + [11] * 77)
    drawn = np.concatenate([embeddings._draw_balanced(labels, tf.constant([seed, 0], tf.int64)) for seed in range(200)])
    assert len(drawn) == 200 * 80 and set(drawn) == set(range(80))
    share = (drawn < 3).mean()
    weights = 3 * (80 / 4 + 1), 77 * (80 / 78 + 1)
    expected = weights[0] / sum(weights)
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / len(drawn))


def test_all_clients_together_draw_from_every_client(store, speech):
    batches = list(embeddings.load(store.folder).all_clients(tf.constant(0, tf.int64)).as_numpy_iterator())
    total = sum(map(len, speech.clients.values()))
    assert [len(y) for _, y in batches] == [8] * (total // 8)
    of_client = {_expected(speech, c).astype(np.float16).tobytes(): i for i, cs in speech.clients.items() for c in cs}
    seen = {of_client[x.astype(np.float16).tobytes()] for xs, _ in batches for x in xs}
    assert seen == set(speech.clients)


def test_clients_with_fewer_than_two_batches_are_left_out_and_counted(speech_folder, tmp_path):
    speech = speech_commands.load_data(speech_folder, speakers_per_client=2)  # 12 words and 1 silence each
    store = embed.embed(speech, ENCODER, tmp_path / "store", show_progress=False)
    assert embeddings.load(store.folder, batch_size=6).client_ids == tuple(speech.clients)
    with pytest.raises(DataError, match="clients with 14 clips or more"):
        embeddings.load(store.folder, batch_size=7)
    description = json.loads((store.folder / "store.json").read_text())
    assert len(description["clips"]) == 14
    uneven = speech_commands.load_data(speech_folder, speakers_per_client=23)  # and one speaker alone
    store = embed.embed(uneven, ENCODER, tmp_path / "uneven", show_progress=False)
    dataset = embeddings.load(store.folder)
    assert dataset.client_ids == ("0000",)
    assert any("1 of 2 clients have fewer than two batches of 8" in note for note in dataset.notes)


def test_altered_copies_are_embedded_beside_the_clips_and_the_store_says_so(speech_folder, tmp_path):
    speech = speech_commands.load_data(speech_folder, copies=2)
    written = embed.embed(speech, ENCODER, tmp_path / "store", show_progress=False)
    store = stores.open_store(written.folder)
    assert store.copies == 2 and store.name.endswith("of stand-in, each training clip with 2 altered copies")
    assert {name: len(clips) for name, clips in speech.splits.items()} == store.clips
    for file, clip in zip(stores.clip_files(store), speech.clients["0000"]):
        expected = _expected(speech, clip).astype(np.float16)
        assert np.array_equal(np.fromfile(file, np.float16).reshape(expected.shape), expected)


def test_the_worker_reads_the_store_by_a_clients_id(demo_folder):
    import tensorflow_federated as tff

    from tff_kit import runtime

    dataset = embeddings.load(demo_folder)

    @tff.tensorflow.computation(tf.string, tf.int64)
    def sums(client_id, seed):
        return dataset.client_dataset(client_id, seed).reduce(
            (0.0, 0), lambda total, batch: (total[0] + tf.reduce_sum(batch[0]), total[1] + tf.reduce_sum(batch[1]))
        )

    worker = runtime.Worker()
    try:
        context = runtime.create_context(runtime.worker_executor_factory(worker))
        with tff.framework.get_context_stack().install(context):
            total, labels = sums("0002", 7)
    finally:
        worker.stop()
    batches = _clients(dataset, "0002", 7)
    assert labels == sum(int(y.sum()) for _, y in batches)
    assert total == pytest.approx(sum(float(x.sum(dtype=np.float64)) for x, _ in batches), rel=1e-3, abs=1.0)


@pytest.mark.process
def test_memory_does_not_grow_with_the_store(tmp_path):
    """A store of 77 MB, read once: the peak stays near what it was with the first batches."""
    store = embed.demo(tmp_path / "store", clients=2, clips_per_client=500)
    code = (
        "import resource, sys, tensorflow as tf\nfrom tff_kit.tasks.keywords import data as embeddings\n"
        "dataset = embeddings.load(sys.argv[1])\n"
        "batches = dataset.all_clients(tf.constant(0, tf.int64))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "for _ in batches.take(20): pass\nbefore = peak()\n"
        "for _ in batches: pass\nfor _ in dataset.test: pass\nprint(before, peak())\n"
    )
    root = pathlib.Path(tff_kit.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(store.folder)], capture_output=True, text=True, cwd=root, check=True)
    before, after = map(float, done.stdout.split())
    assert after - before < 30  # MiB


# What is written in pieces.


def test_a_finished_store_is_left_alone(store, speech):
    before = {p: p.stat().st_mtime_ns for p in store.folder.rglob("*") if p.is_file() and p.name != ".lock"}
    assert embed.embed(speech, ENCODER, store.folder, show_progress=False) == store
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 1, 31, 32, 40, 100, 150, 198])
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(store, speech, left):
    whole = _bytes(store.folder)
    _cut(store, left * store.record_bytes + (left * 977) % store.record_bytes)
    asked = []
    counting = whisper.Encoder("stand-in", "a" * 64, "1s", POSITIONS, WIDTH, lambda clips: asked.append(0) or _embed(clips))
    embed.embed(speech, counting, store.folder, show_progress=False)
    assert _bytes(store.folder) == whole
    batches = -(-(store.num_clips - left // 32 * 32) // 32)
    assert len(asked) == batches + 2  # two more to measure the error of 64 clips


def _cut(store, keep: int) -> None:
    """Leaves a store as a run that wrote `keep` bytes would."""
    description = json.loads((store.folder / "store.json").read_text())
    (store.folder / "store.json").write_text(json.dumps({**description, "relative_error": None, "complete": False}))
    for name in store.clips:
        for path in sorted((store.folder / name).iterdir()):
            here = min(keep, store.record_bytes)
            keep -= here
            if here:
                os.truncate(path, here)
            else:
                path.unlink()


_SLOWLY = """
import sys, time
import tensorflow as tf
sys.path[:0] = sys.argv[3:]
import test_embeddings as here
from tff_kit.tasks.keywords import whisper
from tff_kit.tasks.keywords import embed, speech_commands

def slow(clips):
    time.sleep(0.2)
    return here._embed(clips)

speech = speech_commands.load_data(sys.argv[1])
encoder = whisper.Encoder("stand-in", "a" * 64, "1s", here.POSITIONS, here.WIDTH, slow)
embed.embed(speech, encoder, sys.argv[2], batch_size=16)
"""


@pytest.mark.process
def test_killed_and_started_again(speech_folder, speech, tmp_path):
    whole = embed.embed(speech, ENCODER, tmp_path / "whole", batch_size=16, show_progress=False)
    killed = tmp_path / "killed"
    root = pathlib.Path(tff_kit.__file__).parent.parent
    arguments = [str(speech_folder), str(killed), str(root), str(pathlib.Path(__file__).parent)]
    process = subprocess.Popen([sys.executable, "-c", _SLOWLY, *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while _written(killed) < 3 * 16 * whole.record_bytes and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = _written(killed) // whole.record_bytes
    assert 3 * 16 <= left < whole.num_clips
    with pytest.raises(DataError, match=f"found {left:,} of {whole.num_clips:,} clips.*Run the same"):
        embeddings.load(killed)
    finished = _clip_stamps(killed, whole)[: left // 16 * 16]
    embed.embed(speech, ENCODER, killed, batch_size=16, show_progress=False)
    assert _bytes(killed) == _bytes(whole.folder)
    assert _clip_stamps(killed, whole)[: len(finished)] == finished  # whole batches were not made again


def _clip_stamps(folder: pathlib.Path, store) -> list:
    paths = [folder / name / f"{number:06d}" for name, count in store.clips.items() for number in range(count)]
    return [path.stat().st_mtime_ns if path.exists() else None for path in paths]


def _written(folder: pathlib.Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("0*") if p.is_file() and p.suffix == "")


def test_killed_before_there_is_a_description(store, speech):
    whole = _bytes(store.folder)
    _cut(store, 0)
    (store.folder / "store.json").unlink()
    (store.folder / "test.labels").write_bytes(b"")
    embed.embed(speech, ENCODER, store.folder, show_progress=False)
    assert _bytes(store.folder) == whole


# What does not fit.


def test_two_at_once_are_refused(store, speech):
    with writer._alone(store.folder), pytest.raises(DataError, match="another process"):
        embed.embed(speech, ENCODER, store.folder, show_progress=False)


def test_another_encoder_or_data_does_not_go_on(store, speech, speech_folder):
    other = whisper.Encoder("other", "b" * 64, "1s", POSITIONS, WIDTH, _embed)
    with pytest.raises(DataError, match="weights_sha256: expected 'bbb.*found 'aaa"):
        embed.embed(speech, other, store.folder, show_progress=False)
    with pytest.raises(DataError, match="dtype: expected 'int8', found 'float16'"):
        embed.embed(speech, ENCODER, store.folder, dtype="int8", show_progress=False)
    with pytest.raises(DataError, match="clips_sha256"):
        embed.embed(speech_commands.load_data(speech_folder, seed=5), ENCODER, store.folder, show_progress=False)
    with pytest.raises(DataError, match="clips_sha256"):
        embed.embed(speech_commands.load_data(speech_folder, copies=1), ENCODER, store.folder, show_progress=False)


def test_a_store_of_another_encoder_or_window_is_refused(store):
    assert embeddings.load(store.folder, window="1s", weights_sha256="a" * 64)
    with pytest.raises(DataError, match="30s window, found .*store with the 1s window, 50 positions"):
        embeddings.load(store.folder, window="30s")
    with pytest.raises(DataError, match="weights bbbbbbbbbbbb, found .*made by stand-in with weights aaaaaaaaaaaa"):
        embeddings.load(store.folder, weights_sha256="b" * 64)


_SPOILED = {
    "no store": (shutil.rmtree, "found none"),
    "short file": (lambda folder: os.truncate(folder / "test" / "000003", 5), "38,400 bytes in .*test/000003, found 5"),
    "no labels": (lambda folder: (folder / "test.labels").unlink(), "bytes in .*test.labels, found 0"),
    "no json": (lambda folder: (folder / "store.json").write_text("{"), "description of a store in .*store.json"),
    "a list": (lambda folder: (folder / "store.json").write_text("[]"), "description of a store in .*store.json"),
    "other version": (lambda folder: (folder / "store.json").write_text('{"version": 2}'), "version 1 in .*found version 2"),
}


@pytest.mark.parametrize("kind", _SPOILED)
def test_a_spoiled_store_is_refused_by_name(store, kind):
    spoil, reason = _SPOILED[kind]
    spoil(store.folder)
    with pytest.raises(DataError, match=reason) as caught:
        embeddings.load(store.folder)
    assert str(store.folder) in str(caught.value)


def test_a_folder_with_other_things_is_not_written_to(speech, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="thesis.txt"):
        embed.embed(speech, ENCODER, tmp_path / "out", show_progress=False)
    with pytest.raises(DataError, match="Expected a folder to write to"):
        embed.embed(speech, ENCODER, tmp_path / "out" / "thesis.txt", show_progress=False)


def test_too_little_space_is_said_before_anything_is_written(speech, tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match="0.01 GB of free space .*found 0.00 GB"):
        embed.embed(speech, ENCODER, tmp_path / "store", show_progress=False)
    assert not (tmp_path / "store" / "store.json").exists()


def test_a_disk_that_fills_up_stops_with_a_sentence_and_goes_on_later(store, speech, tmp_path, monkeypatch):
    write, written = pathlib.Path.write_bytes, []

    def full(path, data):
        written.append(path)
        if len(written) > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", full)
        with pytest.raises(DataError, match="disk full .*It resumes where it stopped"):
            embed.embed(speech, ENCODER, tmp_path / "second", show_progress=False)
    embed.embed(speech, ENCODER, tmp_path / "second", show_progress=False)
    assert _bytes(tmp_path / "second") == _bytes(store.folder)


def test_a_limit_of_the_system_on_files_is_a_full_disk_too(speech, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match="disk full"):
            embed.embed(speech, ENCODER, tmp_path / "store", show_progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


# The synthetic store and the pictures.


def test_demo_is_synthetic_by_name_and_the_same_each_time(demo_folder, tmp_path):
    dataset = embeddings.load(demo_folder)
    assert "synthetic" in dataset.name and any("synthetic" in note for note in dataset.notes)
    again = embed.demo(tmp_path / "again", clients=4, clips_per_client=100)
    assert (_bytes(again.folder) == _bytes(demo_folder)) is True  # and no difference of megabytes to print


@pytest.mark.slow
def test_demo_has_the_shape_of_the_long_window_and_a_folder_of_its_own():
    store = embed.demo(window="30s", clients=1, clips_per_client=16)
    assert embeddings.load(store.folder).element_spec[0].shape.as_list() == [None, 1500, 384]
    shutil.rmtree(store.folder)


def test_partitions_are_drawn(store, tmp_path):
    figures = partitions.plot_partitions(store.client_labels, speech_commands.CLASS_NAMES, store.name, tmp_path / "plots")
    assert set(figures) == {"clips_per_client.png", "classes_per_client.png"}
    for name in figures:
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    heights = [bar.get_height() for bar in figures["clips_per_client.png"].axes[0].patches]
    assert heights == [store.clips[f"clients/{client}"] for client in store.client_ids]
    shares = np.asarray(figures["classes_per_client.png"].axes[0].images[0].get_array())
    assert shares.shape == (12, len(heights))
    np.testing.assert_allclose(shares.sum(axis=0), 100)
    np.testing.assert_allclose(shares[10] * heights / 100, [(x == 10).sum() for x in store.client_labels.values()])
