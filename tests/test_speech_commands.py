"""The index of a folder of Speech Commands, against folders built by hand."""

from __future__ import annotations

import hashlib
import http.server
import io
import pathlib
import shutil
import struct
import tarfile
import threading
import time
import uuid
import wave

import numpy as np
import pytest
import soundfile
from conftest import write_wav
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_kit.datasets import DataError
from tff_kit.datasets import download as archive
from tff_kit.tasks.keywords import speech_commands, wav
from tff_kit.tasks.keywords.speech_commands import Clip


def _speakers(clips):
    return {clip.speaker for clip in clips} - {""}


def _everything(speech):
    return [clip for clips in speech.splits.values() for clip in clips]


def _files(speech):
    return sorted(clip.path for clip in _everything(speech) if clip.speaker)


def test_twelve_classes():
    order = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
    assert list(speech_commands.CORE_WORDS) == order
    assert (speech_commands.SILENCE, speech_commands.OTHER, len(speech_commands.CLASS_NAMES)) == (10, 11, 12)


def test_labels_are_those_of_the_folders(speech_folder):
    expected = {"yes": 0, "no": 1, "bed": 11, "_background_noise_": 10}
    clips = _everything(speech_commands.load_data(speech_folder))
    assert {clip.word for clip in clips} == set(expected)
    assert all(clip.label == expected[clip.word] for clip in clips)


@pytest.mark.parametrize("seed", range(5))
def test_every_clip_is_used_once_and_no_speaker_is_on_two_sides(speech_folder, seed):
    speech = speech_commands.load_data(speech_folder, seed=seed)
    assert _files(speech) == sorted(str(p.relative_to(speech_folder)) for p in speech_folder.glob("[!_]*/*.wav"))
    groups = [_speakers(clips) for clips in speech.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 30
    assert [len(_speakers(clips)) for clips in speech.clients.values()] == [5, 5, 5, 5, 4]
    assert len(_speakers(speech.validation)) == len(_speakers(speech.test)) == 3


def test_the_same_seed_gives_the_same_clips_and_another_other_speakers(speech_folder):
    assert speech_commands.load_data(speech_folder, seed=1) == speech_commands.load_data(speech_folder, seed=1)
    tests = {frozenset(_speakers(speech_commands.load_data(speech_folder, seed=seed).test)) for seed in range(4)}
    assert len(tests) > 1


@pytest.mark.parametrize("speakers_per_client", [1, 7, 24, 1000])
def test_speakers_per_client(speech_folder, speakers_per_client):
    speech = speech_commands.load_data(speech_folder, speakers_per_client)
    sizes = [len(_speakers(clips)) for clips in speech.clients.values()]
    assert all(size == speakers_per_client for size in sizes[:-1])
    assert 1 <= sizes[-1] <= speakers_per_client
    assert sum(sizes) == 24


def test_a_tenth_of_every_set_is_silence(speech_folder):
    for clips in speech_commands.load_data(speech_folder).splits.values():
        silent = sum(clip.label == 10 for clip in clips)
        assert abs(silent - 0.1 * len(clips)) <= 0.5


def test_silence_is_cut_at_different_places_that_no_other_set_touches(speech_folder):
    speech = speech_commands.load_data(speech_folder, speakers_per_client=2)
    crops = {name: [c for c in clips if c.label == 10] for name, clips in speech.splits.items()}
    places = [(c.path, c.start) for cut in crops.values() for c in cut]
    assert len(set(places)) == len(places) > 15
    heard = {"train": set(), "validation": set(), "test": set()}
    for name, cut in crops.items():
        for crop in cut:
            heard[name if name in heard else "train"] |= {
                (crop.path, sample) for sample in range(crop.start, crop.start + 16_000)
            }
            sound = speech.read(crop)
            assert sound[0] * 32768 == crop.start % 30_000
            assert sound.shape == (16_000,) and np.count_nonzero(sound) >= 15_999
    assert len(set.union(*heard.values())) == sum(map(len, heard.values()))


@given(st.integers(1, 2000), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_crops_are_distinct_and_inside_their_recording(count, seed):
    lengths = {"a": 320_000, "b": 400_123}
    for split, (low, high) in {"train": (0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1)}.items():
        crops = speech_commands._crops(lengths, split, count, seed)
        assert len({(c.path, c.start) for c in crops}) == count
        assert all(int(low * lengths[c.path]) <= c.start and c.start + 16_000 <= int(high * lengths[c.path]) for c in crops)


def test_more_silence_than_there_are_places_is_refused():
    with pytest.raises(DataError, match="32,000 different crops.*found 16,001"):
        speech_commands._crops({"a": 320_000}, "test", 32_000, 0)


def test_recorded_silence_serves_the_held_out_sets(speech_folder):
    for n in range(3):
        write_wav(speech_folder / "_silence_" / f"{n}.wav", np.full(16_000, n))
    speech = speech_commands.load_data(speech_folder)
    recorded = {name: [c.path for c in clips if c.word == "_silence_"] for name, clips in speech.splits.items()}
    assert len(recorded.pop("test")) == 2 and len(recorded.pop("validation")) == 1
    assert not any(recorded.values())


def test_altered_copies_are_of_training_clips_only_and_stay_with_their_client(speech_folder):
    speech, before = speech_commands.load_data(speech_folder, copies=2), speech_commands.load_data(speech_folder)
    assert (speech.validation, speech.test) == (before.validation, before.test)
    for client, clips in speech.clients.items():
        spoken = [c for c in clips if c.speaker]
        assert sorted(c.path for c in spoken) == sorted(3 * [c.path for c in before.clients[client] if c.speaker])
        assert sum(c.alteration is None for c in spoken) * 3 == len(spoken) == len(set(spoken))
        assert abs(len(clips) - len(spoken) - 0.1 * len(clips)) <= 0.5
    assert speech == speech_commands.load_data(speech_folder, copies=2)


def test_an_altered_copy_comes_earlier_or_later_with_noise_that_is_for_training(speech_folder):
    speech = speech_commands.load_data(speech_folder, copies=3)
    copies = [c for clips in speech.clients.values() for c in clips if c.alteration]
    for copy in copies:
        shift, noise, volume = copy.alteration.shift, copy.alteration.noise, copy.alteration.volume
        assert abs(shift) <= 1600 and 0 <= volume <= 0.1
        with wave.open(str(speech_folder / noise.path)) as file:
            assert noise.start + 16_000 <= 0.8 * file.getnframes()
        sound = np.concatenate([np.zeros(1600), speech.read(Clip(copy.path, copy.label)), np.zeros(1600)])
        expected = sound[1600 - shift : 17_600 - shift] + volume * speech.read(noise)
        np.testing.assert_allclose(speech.read(copy), np.clip(expected, -1, 1), atol=1e-6)
    alterations = [c.alteration for c in copies]
    assert min(a.shift for a in alterations) < 0 < max(a.shift for a in alterations)
    assert 0.6 < np.mean([a.volume > 0 for a in alterations]) < 0.95


def _write_lists(folder, validation, test):
    for name, speakers in (("validation_list.txt", validation), ("testing_list.txt", test)):
        lines = [f"{w}/{s:08x}_nohash_{n}.wav" for w in ("yes", "no", "bed") for s in speakers for n in range(2)]
        (folder / name).write_text("\n".join(lines) + "\n")


def test_official_lists_decide(speech_folder):
    _write_lists(speech_folder, [3, 4], [17])
    speech = speech_commands.load_data(speech_folder)
    assert _speakers(speech.validation) == {f"{3:08x}", f"{4:08x}"}
    assert _speakers(speech.test) == {f"{17:08x}"}
    assert not any("seed" in note for note in speech.notes)


def test_an_official_list_that_splits_a_speaker_is_refused(speech_folder):
    _write_lists(speech_folder, [3, 4], [17])
    (speech_folder / "testing_list.txt").write_text(f"yes/{17:08x}_nohash_0.wav\n")
    with pytest.raises(DataError, match=f"{17:08x}"):
        speech_commands.load_data(speech_folder)


def test_one_official_list_alone_is_refused(speech_folder):
    _write_lists(speech_folder, [3], [4])
    (speech_folder / "validation_list.txt").unlink()
    with pytest.raises(DataError, match="no validation_list.txt"):
        speech_commands.load_data(speech_folder)


def test_sound_is_read_as_it_was_written_and_filled_up_with_zeros(speech_folder):
    path = write_wav(speech_folder / "yes" / f"{99:08x}_nohash_0.wav", [-32768, 16384, 1])
    speech = speech_commands.load_data(speech_folder)
    sound = speech.read(Clip(f"yes/{path.name}", 0))
    assert sound.dtype == np.float32
    assert sound[:3].tolist() == [-1.0, 0.5, 2.0**-15]
    assert not sound[3:].any() and len(sound) == 16_000


def _stereo(path):
    write_wav(path, np.zeros(2000), channels=2)


def _wav_of(code, bits, samples, extensible=False, chunks=b""):
    """Returns a wav file of one channel at 16 kHz, as the format's specification has it; `chunks` stand before the samples."""
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else code, 1, 16_000, 16_000 * bits // 8, bits // 8, bits)
    if extensible:
        # Bytes to follow, valid bits, the speakers' places, and the GUID that Microsoft gives to the format `code`.
        guid = uuid.UUID(f"{code:08x}-0000-0010-8000-00aa00389b71")
        form += struct.pack("<HHI", 22, bits, 4) + guid.bytes_le
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + chunks + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _write_wav_of(path, *arguments, **options):
    path.write_bytes(_wav_of(*arguments, **options))


@pytest.mark.parametrize("chunks", [b"", b"LIST\3\0\0\0abc\0fact\4\0\0\0\1\2\3\4"])
@pytest.mark.parametrize("extensible", [False, True])
def test_plain_and_extensible_headers_are_read_alike(tmp_path, extensible, chunks):
    samples = np.array([-32768, 16384, 1, 32767], "<i2")
    _write_wav_of(tmp_path / "a.wav", 1, 16, samples.tobytes(), extensible=extensible, chunks=chunks)
    header = wav.read_header(tmp_path / "a.wav")
    assert (header.encoding, header.channels, header.rate, header.bits, header.samples) == ("PCM", 1, 16_000, 16, 4)
    np.testing.assert_array_equal(wav.read_samples(tmp_path / "a.wav", 1, 100), samples[1:])
    np.testing.assert_array_equal(
        soundfile.read(tmp_path / "a.wav", dtype="int16")[0], samples
    )  # The specification's other reader.


def test_clips_with_an_extensible_header_are_clips(speech_folder):
    path = speech_folder / "yes" / f"{1:08x}_nohash_7.wav"
    _write_wav_of(path, 1, 16, np.full(16_000, -77, "<i2").tobytes(), extensible=True)
    speech = speech_commands.load_data(speech_folder)
    assert not speech.skipped
    clips = [clip for clips in [*speech.clients.values(), speech.validation, speech.test] for clip in clips]
    (clip,) = [clip for clip in clips if clip.path == f"yes/{path.name}"]
    np.testing.assert_array_equal(speech.read(clip), np.full(16_000, np.float32(-77 / 32768)))


def _truncated(path):
    write_wav(path, np.zeros(16_000))
    path.write_bytes(path.read_bytes()[:10_000])


_BROKEN = {
    "wrong rate": (lambda path: write_wav(path, np.zeros(100), rate=8000), "sample rate 8000, expected 16000"),
    "stereo": (_stereo, "2 channels, expected 1"),
    "truncated": (_truncated, r"truncated, 4,978 samples of 16,000"),
    "empty file": (lambda path: path.write_bytes(b""), "an empty file"),
    "cut in its header": (lambda path: path.write_bytes(b"RIFF"), "ends within its header"),
    "no samples": (lambda path: write_wav(path, []), "no samples"),
    "floats": (lambda path: _write_wav_of(path, 3, 32, bytes(400)), "32 bits a sample, floating point, expected 16 bits, PCM"),
    "24 bits": (lambda path: _write_wav_of(path, 1, 24, bytes(300)), "24 bits a sample, PCM, expected 16 bits, PCM"),
    "extensible floats": (
        lambda path: _write_wav_of(path, 3, 32, bytes(400), extensible=True),
        "32 bits a sample, floating point, expected 16 bits, PCM",
    ),
    "of another coding": (lambda path: _write_wav_of(path, 0x55, 16, bytes(400)), "16 bits a sample, format 0x0055"),
    "extensible, cut": (
        lambda path: path.write_bytes(_wav_of(1, 16, np.arange(100, dtype="<i2").tobytes(), True)[:-50]),
        "truncated, 75 samples of 100",
    ),
    "without a format": (
        lambda path: path.write_bytes(b"RIFF\0\0\0\0WAVEdata\4\0\0\0\0\0\0\0"),
        "not a wav file (it does not say",
    ),
    "with an endless chunk": (lambda path: path.write_bytes(b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\xff"), "ends within its header"),
    "too long": (lambda path: write_wav(path, np.zeros(16_001)), "16,001 samples, expected at most 16,000"),
    "not a wav": (lambda path: path.write_bytes(b"hello, this is text and no sound at all"), "not a wav file"),
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_a_broken_clip_is_named_counted_and_left_out(speech_folder, kind):
    write, reason = _BROKEN[kind]
    write(speech_folder / "yes" / f"{1:08x}_nohash_7.wav")
    speech = speech_commands.load_data(speech_folder)
    assert len(speech.skipped) == 1
    assert speech.skipped[0].startswith(f"yes/{1:08x}_nohash_7.wav: ") and reason in speech.skipped[0]
    assert len(_files(speech)) == 180
    assert any("1 files" in note for note in speech.notes)


def test_a_clip_without_speaker_is_named_and_left_out(speech_folder):
    write_wav(speech_folder / "yes" / "hello.wav", np.zeros(16_000))
    assert speech_commands.load_data(speech_folder).skipped == (
        "yes/hello.wav: no speaker in its name, expected <speaker>_nohash_<n>.wav.",
    )


def test_a_clip_that_vanishes_after_indexing_is_named(speech_folder):
    speech = speech_commands.load_data(speech_folder)
    (speech_folder / speech.test[0].path).unlink()
    with pytest.raises(DataError, match=speech.test[0].path):
        speech.read(speech.test[0])


def _remove_words(folder):
    for word in ("yes", "no", "bed"):
        shutil.rmtree(folder / word)


def _only_broken(folder):
    for path in folder.glob("[!_]*/*.wav"):
        path.write_bytes(b"")


_BAD_FOLDERS = {
    "empty word folder": (lambda folder: (folder / "up").mkdir(), "up, found an empty folder"),
    "no background": (lambda folder: shutil.rmtree(folder / "_background_noise_"), "_background_noise_"),
    "short background": (
        lambda folder: [write_wav(p, np.zeros(100)) for p in (folder / "_background_noise_").glob("*")],
        "noise0.wav: 100 samples, expected at least 320,000",
    ),
    "no words": (_remove_words, "named by words"),
    "nothing usable": (_only_broken, "found 180 that cannot, such as bed/.*an empty file"),
    "missing": (shutil.rmtree, "found nothing"),
}


@pytest.mark.parametrize("kind", _BAD_FOLDERS)
def test_a_bad_folder_is_refused_by_name(speech_folder, kind):
    spoil, reason = _BAD_FOLDERS[kind]
    spoil(speech_folder)
    with pytest.raises(DataError, match=reason) as caught:
        speech_commands.load_data(speech_folder)
    assert str(speech_folder) in str(caught.value)


def test_fewer_copies_than_none_are_refused(speech_folder):
    with pytest.raises(DataError, match="Expected 0 or more altered copies of a clip, found -1"):
        speech_commands.load_data(speech_folder, copies=-1)


@pytest.mark.parametrize("held_out", [(0.0, 0.1), (0.5, 0.5)])
def test_bad_shares_are_refused(speech_folder, held_out):
    with pytest.raises(DataError, match="shares"):
        speech_commands.load_data(speech_folder, held_out=held_out)


# Downloads, from a server on this machine.


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves one body; breaks off after `break_after` bytes and, at `stall`, stops sending without hanging up."""

    body = b""
    break_after = None
    resumes = True
    stall = threading.Event()
    ranges: list = []

    def do_GET(self):
        start = 0
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        if asked and self.resumes:
            start = int(asked[len("bytes=") : -1])
            if start >= len(self.body):
                return self.send_error(416)
        self.send_response(206 if asked and self.resumes else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        stop = len(self.body) if self.break_after is None else start + self.break_after
        self.wfile.write(self.body[start:stop])
        self.wfile.flush()
        if self.stall.is_set():
            time.sleep(3)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (_Handler,), {"ranges": [], "stall": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{running.server_port}/speech.tar.gz"
        running.shutdown()


def _archive(names=("./yes/a_nohash_0.wav", "./README.md")) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in names:
            content = np.random.default_rng(0).bytes(50_000)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _left(folder: pathlib.Path) -> list:
    return sorted(p.name for p in folder.parent.iterdir())


def test_download_unpacks_and_leaves_nothing_else(server, tmp_path):
    handler, url = server
    handler.body = _archive()
    folder = archive.download(url, tmp_path / "speech", _sha256(handler.body))
    assert (folder / "yes" / "a_nohash_0.wav").stat().st_size == 50_000
    assert _left(folder) == ["speech"]
    archive.download("http://127.0.0.1:1/never-asked", folder, "")  # it is there already


def test_download_goes_on_where_the_connection_broke(server, tmp_path):
    handler, url = server
    handler.body, handler.break_after = _archive(), 30_000
    archive.download(url, tmp_path / "speech", _sha256(handler.body))
    assert handler.ranges == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"][: -(-len(handler.body) // 30_000)]


def test_download_starts_anew_where_the_server_does_not_resume(server, tmp_path):
    handler, url = server
    handler.body, handler.resumes = _archive(), False
    (tmp_path / "speech.tar.part").write_bytes(b"something else")
    archive.download(url, tmp_path / "speech", _sha256(handler.body))


def test_download_that_was_whole_but_not_unpacked_is_unpacked(server, tmp_path):
    handler, url = server
    handler.body = _archive()
    (tmp_path / "speech.tar.part").write_bytes(handler.body)
    archive.download(url, tmp_path / "speech", _sha256(handler.body))
    assert handler.ranges == [f"bytes={len(handler.body)}-"]


def test_download_of_another_archive_is_refused_and_removed(server, tmp_path):
    handler, url = server
    handler.body = _archive()
    with pytest.raises(DataError, match="SHA-256"):
        archive.download(url, tmp_path / "speech", "0" * 64)
    assert _left(tmp_path / "speech") == []


@pytest.mark.slow
def test_download_that_stalls_is_given_up_and_kept(server, tmp_path):
    handler, url = server
    handler.body, handler.break_after = _archive(), 0
    handler.stall.set()
    before = time.monotonic()
    with pytest.raises(DataError, match="2 attempts in a row failed after 0 bytes: .*timed out"):
        archive.download(url, tmp_path / "speech", "", stall_seconds=0.2, attempts=2)
    assert time.monotonic() - before < 3


def test_download_without_network_ends_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="Run the same command again when there is a network"):
        archive.download("http://127.0.0.1:1/x", tmp_path / "speech", "", attempts=1)


def test_a_single_file_goes_on_where_it_stopped_and_is_checked(server, tmp_path):
    handler, url = server
    handler.body = np.random.default_rng(0).bytes(1000)
    (tmp_path / "x.gz.part").write_bytes(handler.body[:100])
    file = archive.download_file(url, tmp_path / "x.gz", _sha256(handler.body))
    assert file.read_bytes() == handler.body
    archive.download_file(url, file, "")  # It is there already.
    assert handler.ranges == ["bytes=100-"]
    with pytest.raises(DataError, match="SHA-256"):
        archive.download_file(url, tmp_path / "y.gz", "0" * 64)
    assert _left(file) == ["x.gz"]


def test_an_archive_that_leaves_its_folder_is_refused(server, tmp_path):
    handler, url = server
    handler.body = _archive(["../outside"])
    with pytest.raises(DataError, match="outside"):
        archive.download(url, tmp_path / "speech", _sha256(handler.body))
    assert not (tmp_path / "outside").exists() and not (tmp_path / "speech").exists()
