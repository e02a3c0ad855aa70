"""Whisper's frozen encoder: turns one-second clips of sound into embeddings. It runs once a clip and is never trained.

A. Radford, J. W. Kim, T. Xu, G. Brockman, C. McLeavey, I. Sutskever: Robust Speech Recognition via Large-Scale Weak
Supervision. ICML 2023, arXiv 2212.04356.

Whisper hears 30 s, so a clip of 1 s is followed by 29 s of zeros. They make most of the work and of the result. Flower's
example does it this way. The 1-s window gives the encoder only the clip, and it makes only its first 50 positions. These differ
from the first 50 of the long window, where every position attends to the zeros too.
"""

from __future__ import annotations

import os
import pathlib
from typing import Callable, Union

import numpy as np
import tensorflow as tf

from tff_kit.datasets.federated import DataError
from tff_kit.embeddings import frozen
from tff_kit.embeddings.frozen import Encoder
from tff_kit.tasks.keywords.speech_commands import SAMPLE_RATE

DEFAULT_MODEL = "openai/whisper-tiny"
WINDOWS = {"30s": 30, "1s": 1}
"""The windows, with the seconds of sound that the encoder is given."""
_POSITIONS_PER_SECOND = 50

_FRAME_SAMPLES = 400  # of the log-mel spectrogram that Whisper was trained on
_HOP_SAMPLES = 160
_FLOOR = 1e-10


def positions(window: str) -> int:
    """Returns the number of embeddings of a clip with `window`.

    Raises:
      ValueError: If there is no such window.
    """
    if window not in WINDOWS:
        raise ValueError(f"Expected a window of {' or '.join(WINDOWS)}, found {window!r}.")
    return WINDOWS[window] * _POSITIONS_PER_SECOND


def load_encoder(model: Union[str, os.PathLike] = DEFAULT_MODEL, window: str = "30s") -> Encoder:
    """Loads Whisper's encoder with transformers' TensorFlow classes. PyTorch is not needed.

    Args:
      model: An id of the Hugging Face hub, or a local folder with `config.json` and `model.safetensors`. The decoder's
        weights may be missing.
      window: "30s" or "1s".

    Returns:
      The encoder.

    Raises:
      DataError: If the model cannot be found, downloaded or read, or is not a Whisper model.
      ValueError: If there is no such window.
    """
    count = positions(window)
    folder = frozen.find_model(os.fspath(model), "Whisper", DEFAULT_MODEL)
    config, encoder = _load(folder)
    if count > config.max_source_positions:
        raise DataError(f"Expected an encoder of {count} positions in {folder}, found {config.max_source_positions}.")
    encoder.max_source_positions = count  # It adds only the first `count` positional embeddings.
    log_mel = log_mel_fn(config.num_mel_bins, WINDOWS[window])

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32)])
    def embed(clips):
        return tf.ensure_shape(encoder(log_mel(clips), training=False)[0], [None, count, config.d_model])

    weights = [weight.numpy() for weight in encoder.weights]
    return Encoder(frozen.model_name(model), frozen.sha256(weights), window, count, config.d_model, embed)


def log_mel_fn(mel_bins: int, seconds: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function that makes the encoder's input: float32 [batch, samples] to float32 [batch, mel_bins, 100 x seconds].

    It computes the numbers of transformers' feature extractor. That one, without PyTorch, loops over every frame in Python.
    """
    from transformers import audio_utils  # The import takes seconds, and only this module needs it.

    filters = tf.constant(
        audio_utils.mel_filter_bank(
            _FRAME_SAMPLES // 2 + 1, mel_bins, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
    )
    fourier = tf.constant(_windowed_fourier())
    samples = seconds * SAMPLE_RATE

    def log_mel(clips):
        clips = tf.cast(clips[:, :samples], tf.float64)  # In float32, the quiet bins of a loud frame are off by 1e-3.
        # Frames in the zeros behind a clip are all at the floor, so only frames that touch the clip are computed.
        touched = tf.minimum(samples, tf.shape(clips)[1] + _FRAME_SAMPLES)
        clips = tf.pad(clips, [[0, 0], [0, touched - tf.shape(clips)[1]]])
        centred = tf.pad(clips, [[0, 0], [_FRAME_SAMPLES // 2, _FRAME_SAMPLES // 2]], "REFLECT")
        frames = tf.signal.frame(centred, _FRAME_SAMPLES, _HOP_SAMPLES)[:, :-1]
        cosines, sines = tf.split(tf.matmul(frames, fourier), 2, axis=-1)
        mel = tf.matmul(tf.square(cosines) + tf.square(sines), filters)
        decades = tf.math.log(tf.maximum(mel, _FLOOR)) / np.log(10.0)
        left = samples // _HOP_SAMPLES - tf.shape(decades)[1]
        decades = tf.pad(decades, [[0, 0], [0, left], [0, 0]], constant_values=np.log10(_FLOOR))
        decades = tf.maximum(decades, tf.reduce_max(decades, axis=[1, 2], keepdims=True) - 8.0)
        return tf.cast(tf.transpose((decades + 4.0) / 4.0, [0, 2, 1]), tf.float32)

    return log_mel


def _windowed_fourier() -> np.ndarray:
    """Returns the real and imaginary halves of the Fourier transform of a frame under a Hann window, as one matrix.

    At this size, a matrix product is several times faster than TensorFlow's transform.
    """
    n = np.arange(_FRAME_SAMPLES)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / _FRAME_SAMPLES)
    angles = 2 * np.pi / _FRAME_SAMPLES * (np.outer(n, np.arange(_FRAME_SAMPLES // 2 + 1)) % _FRAME_SAMPLES)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * hann[:, np.newaxis]


def _load(folder: pathlib.Path):
    """Returns the model's configuration and its encoder, a Keras layer."""
    import transformers

    with frozen.reading("Whisper", folder):
        config = transformers.WhisperConfig.from_pretrained(folder)
        frozen.check_kind(config, "whisper", "Whisper", folder)
        config.decoder_layers = 1  # The decoder is never used.
        model, info = transformers.TFWhisperModel.from_pretrained(folder, config=config, output_loading_info=True)
    missing = [name for name in info["missing_keys"] if "encoder" in name.split("/")[0].split(".") or "/encoder/" in name]
    if missing or info["mismatched_keys"]:
        raise DataError(f"Expected all weights of the encoder in {folder}, found none for {missing or info['mismatched_keys']}.")
    return config, model.model.encoder
