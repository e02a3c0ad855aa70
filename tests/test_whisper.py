"""The frozen encoder, against transformers' own feature extractor and against PyTorch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import run_python

from tff_kit.datasets import DataError
from tff_kit.tasks.keywords import whisper


@pytest.fixture(scope="module", params=["1s", "30s"])
def encoder(request, whisper_folder):
    return whisper.load_encoder(whisper_folder, request.param)


def _features(clips, seconds):
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(chunk_length=seconds)
    return extractor(list(clips), sampling_rate=16_000, return_tensors="np").input_features


@pytest.mark.parametrize("seconds", [1, 30])
def test_log_mel_is_that_of_transformers(seconds):
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    fading = rng.standard_normal(16_000) * np.geomspace(1, 1e-6, 16_000)
    clips = np.stack([tone, fading, np.zeros(16_000), 0.1 * rng.standard_normal(16_000)]).astype(np.float32)
    found = whisper.log_mel_fn(80, seconds)(tf.constant(clips))
    assert found.shape == (4, 80, 100 * seconds)
    np.testing.assert_allclose(found, _features(clips, seconds), atol=1e-4)


def test_shapes(encoder, real_clips):
    positions = {"1s": 50, "30s": 1500}[encoder.window]
    assert (encoder.positions, encoder.width, whisper.positions(encoder.window)) == (positions, 384, positions)
    embedded = encoder.embed(real_clips[:2])
    assert embedded.shape == (2, positions, 384) and embedded.dtype == tf.float32
    assert np.isfinite(embedded).all()


def test_a_clip_does_not_depend_on_its_neighbours(encoder, real_clips):
    together, alone = encoder.embed(real_clips[:2])[1], encoder.embed(real_clips[1:2])[0]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_layer_norm_is_the_last_thing(encoder, real_clips, whisper_folder):
    """A position's embedding, with the last layer's scale and shift taken back, has mean 0 and variance 1."""
    from safetensors import numpy as safetensors_numpy

    weights = safetensors_numpy.load_file(str(whisper_folder / "model.safetensors"))
    scale, shift = (weights[f"model.encoder.layer_norm.{x}"].astype(np.float64) for x in ("weight", "bias"))
    plain = (encoder.embed(real_clips[:1]).numpy() - shift) / scale
    np.testing.assert_allclose(plain.mean(-1), 0, atol=1e-3)
    np.testing.assert_allclose(plain.var(-1), 1, atol=1e-2)


def test_hash_is_of_the_weights_not_of_the_file(encoder, whisper_folder, tmp_path):
    from safetensors import numpy as safetensors_numpy

    for name in ("config.json", "model.safetensors"):
        shutil.copy(whisper_folder / name, tmp_path)
    weights = safetensors_numpy.load_file(str(tmp_path / "model.safetensors"))
    wide = {name: x.astype(np.float32) for name, x in weights.items()}
    safetensors_numpy.save_file(wide, str(tmp_path / "model.safetensors"), {"format": "pt"})
    assert whisper.load_encoder(tmp_path, encoder.window).weights_sha256 == encoder.weights_sha256
    wide["model.encoder.layers.0.fc1.bias"][0] += 1
    safetensors_numpy.save_file(wide, str(tmp_path / "model.safetensors"), {"format": "pt"})
    changed = whisper.load_encoder(tmp_path, encoder.window).weights_sha256
    assert changed != encoder.weights_sha256 and len(changed) == len(hashlib.sha256().hexdigest())


_PYTORCH = """
import json, sys
import numpy as np, torch, transformers
from safetensors.torch import load_file

folder, window, clips, out = sys.argv[1:]
clips = np.load(clips)
seconds = {"1s": 1, "30s": 30}[window]
config = transformers.WhisperConfig.from_pretrained(folder)
encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
prefix = "model.encoder."
encoder.load_state_dict({k[len(prefix):]: v.float() for k, v in load_file(folder + "/model.safetensors").items()
                         if k.startswith(prefix)})
positions = 50 * seconds
encoder.embed_positions.weight = torch.nn.Parameter(encoder.embed_positions.weight[:positions])
encoder.config.max_source_positions = positions
features = transformers.WhisperFeatureExtractor(chunk_length=seconds)(
    list(clips), sampling_rate=16_000, return_tensors="pt").input_features
with torch.no_grad():
    np.save(out, encoder(features.float()).last_hidden_state.numpy())
"""


def test_embeddings_are_those_of_pytorch(encoder, real_clips, whisper_folder, torch_python, tmp_path):
    clips = real_clips[:4]
    np.save(tmp_path / "clips.npy", clips)
    arguments = [str(whisper_folder), encoder.window, str(tmp_path / "clips.npy"), str(tmp_path / "out.npy")]
    subprocess.run([torch_python, "-c", _PYTORCH, *arguments], check=True)
    np.testing.assert_allclose(encoder.embed(clips), np.load(tmp_path / "out.npy"), atol=1e-3)


@pytest.mark.slow
def test_an_unknown_id_without_network_ends_in_a_sentence_within_seconds(tmp_path):
    code = (
        "import time\nimport huggingface_hub\n"
        "from tff_kit.datasets import DataError\nfrom tff_kit.tasks.keywords import whisper\n"
        "before = time.monotonic()\n"
        "try:\n    whisper.load_encoder('nobody/no-such-model')\n"
        "except DataError as error:\n    print(f'{time.monotonic() - before:.1f}|{error}')\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path)}
    done = run_python("-c", code, env=environment)
    seconds, message = done.stdout.strip().split("|")
    assert float(seconds) < 10
    assert "nobody/no-such-model" in message and "cannot be reached" in message and "\n" not in message


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "three/part/name", "", "a b/c"])
def test_neither_folder_nor_id(name):
    before = time.monotonic()
    with pytest.raises(DataError, match="neither|Expected config.json"):
        whisper.load_encoder(name)
    assert time.monotonic() - before < 1


def test_bad_folders_are_named(tmp_path, whisper_folder):
    with pytest.raises(DataError, match=f"{tmp_path}.*no config.json and no model.safetensors"):
        whisper.load_encoder(tmp_path)
    shutil.copy(whisper_folder / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((whisper_folder / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(DataError, match=f"{tmp_path}, found files that cannot be read"):
        whisper.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(DataError, match="a bert model"):
        whisper.load_encoder(tmp_path)


def test_a_file_without_all_of_the_encoder_is_refused(tmp_path, whisper_folder):
    from safetensors import numpy as safetensors_numpy

    shutil.copy(whisper_folder / "config.json", tmp_path)
    weights = safetensors_numpy.load_file(str(whisper_folder / "model.safetensors"))
    del weights["model.encoder.layers.2.fc1.weight"]
    safetensors_numpy.save_file(weights, str(tmp_path / "model.safetensors"), {"format": "pt"})
    with pytest.raises(DataError, match="layers.2.*fc1"):
        whisper.load_encoder(tmp_path)


def test_an_unknown_window_is_refused(whisper_folder):
    with pytest.raises(ValueError, match="30s or 1s, found '2s'"):
        whisper.load_encoder(whisper_folder, "2s")
