"""The keyword head, against NumPy and PyTorch."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import tensorflow_federated as tff

import tff_kit
from tff_kit.tasks.keywords import head as kws_head


def _numpy_head(weights: dict, x: np.ndarray) -> np.ndarray:
    """The head by the definition of PyTorch's modules: convolution, ReLU, flatten with the filter as slowest index, linear."""
    conv = weights["0.weight"][:, :, 0].astype(np.float64)
    hidden = np.stack([conv @ clip + weights["0.bias"][:, None] for clip in x.astype(np.float64)])
    flat = np.maximum(hidden, 0).reshape(len(x), -1)
    return flat @ weights["3.weight"].T.astype(np.float64) + weights["3.bias"]


def _random_weights(positions: int, width: int = 384) -> dict:
    rng = np.random.default_rng(positions)
    shapes = {"0.weight": (128, positions, 1), "0.bias": (128,), "3.weight": (12, 128 * width), "3.bias": (12,)}
    return {
        name: (rng.standard_normal(shape) * np.prod(shape[1:]) ** -0.5 * 0.5).astype(np.float32) for name, shape in shapes.items()
    }


def _inputs(positions: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal([3, positions, 384]).astype(np.float32)


@pytest.mark.parametrize("positions, size", [(1500, 781_964), (50, 596_364)])
def test_number_of_weights(positions, size):
    assert kws_head.create_kws_head(positions).count_params() == size == 128 * positions + 128 + 12 * 128 * 384 + 12
    assert kws_head.create_kws_head(positions, filters=16).count_params() == 16 * positions + 16 + 12 * 16 * 384 + 12


@pytest.mark.parametrize("positions", [50, 1500])
def test_agrees_with_numpy_after_import(tmp_path, positions):
    weights, x = _random_weights(positions), _inputs(positions)
    safetensors.numpy.save_file(weights, str(tmp_path / "head.safetensors"))
    head = kws_head.create_kws_head(positions)
    kws_head.load_safetensors(head, tmp_path / "head.safetensors")
    expected = _numpy_head(weights, x)
    assert expected.max() - expected.min() > 0.01  # else the comparison says nothing
    np.testing.assert_allclose(head(x), expected, atol=1e-5)


def test_export_gives_back_the_bytes_that_were_imported(tmp_path):
    weights = _random_weights(50)
    safetensors.numpy.save_file(weights, str(tmp_path / "in.safetensors"))
    head = kws_head.create_kws_head(50)
    kws_head.load_safetensors(head, tmp_path / "in.safetensors")
    kws_head.save_safetensors(head, tmp_path / "out.safetensors")
    exported = safetensors.numpy.load_file(str(tmp_path / "out.safetensors"))
    assert exported.keys() == weights.keys()
    for name, tensor in weights.items():
        np.testing.assert_array_equal(exported[name], tensor)


def test_export_of_a_fresh_head_describes_it(tmp_path):
    head = kws_head.create_kws_head(50)
    kws_head.save_safetensors(head, tmp_path / "head.safetensors")
    x = _inputs(50)
    weights = safetensors.numpy.load_file(str(tmp_path / "head.safetensors"))
    np.testing.assert_allclose(head(x), _numpy_head(weights, x), atol=1e-5)


_PYTORCH = """
import sys
import numpy as np, torch
from safetensors.torch import load_file, save_file

folder, positions = sys.argv[1:]
x = torch.from_numpy(np.load(folder + "/x.npy"))
for source in ("keras", "torch"):
    module = torch.nn.Sequential(torch.nn.Conv1d(int(positions), 128, 1), torch.nn.ReLU(), torch.nn.Flatten(1),
                                 torch.nn.Linear(128 * 384, 12))
    if source == "keras":
        module.load_state_dict(load_file(folder + "/keras.safetensors"))
    else:
        save_file(module.state_dict(), folder + "/torch.safetensors")
    with torch.no_grad():
        np.save(f"{folder}/{source}.npy", module(x).numpy())
"""


@pytest.mark.parametrize("positions", [50, 1500])
def test_agrees_with_pytorch_both_ways(tmp_path, torch_python, positions):
    head, x = kws_head.create_kws_head(positions), _inputs(positions)
    np.save(tmp_path / "x.npy", x)
    kws_head.save_safetensors(head, tmp_path / "keras.safetensors")
    subprocess.run([torch_python, "-c", _PYTORCH, str(tmp_path), str(positions)], check=True)
    np.testing.assert_allclose(head(x), np.load(tmp_path / "keras.npy"), atol=1e-5)
    kws_head.load_safetensors(head, tmp_path / "torch.safetensors")
    np.testing.assert_allclose(head(x), np.load(tmp_path / "torch.npy"), atol=1e-5)


def test_a_clip_far_off_still_teaches_inside_tff():
    loss_fn = tff_kit.KeywordSpotting().build_loss()

    @tff.tensorflow.computation(np.float32)
    def gradient(logit):
        with tf.GradientTape() as tape:
            tape.watch(logit)
            loss = loss_fn([1], tf.stack([logit, 0.0])[tf.newaxis])
        return loss, tape.gradient(loss, logit)

    loss, by_logit = gradient(100.0)
    assert loss == pytest.approx(100)
    assert by_logit == pytest.approx(1)


def test_gradients_agree_with_finite_differences():
    head, x = kws_head.create_kws_head(5, width=3, seed=0), np.random.default_rng(0).standard_normal([4, 5, 3]).astype(np.float32)
    kernel, bias = head.weights[:2]
    bias.assign(np.where(np.arange(bias.shape[0]) == 7, 5, bias).astype(np.float32))  # Away from the ReLU's bend.

    def loss():
        return tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy([0, 3, 10, 11], head(x), from_logits=True))

    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, kernel).numpy()
    step = np.zeros(kernel.shape, np.float32)
    step[7, 2], start = 1e-2, kernel.numpy()
    kernel.assign(start + step)
    above = loss()
    kernel.assign(start - step)
    assert gradient[7, 2] == pytest.approx(float(above - loss()) / 2e-2, rel=0.02, abs=1e-4)


def test_initial_weights_are_spread_as_pytorchs():
    head = kws_head.create_kws_head(50)
    for weight, fan_in in zip(head.get_weights(), [50, 50, 49_152, 49_152]):
        assert np.abs(weight).max() <= fan_in**-0.5
        if weight.size > 1000:  # the variance of a uniform distribution between -a and a is a^2 / 3
            assert weight.var() == pytest.approx(1 / (3 * fan_in), rel=0.05)
    kernel, bias = head.get_weights()[2:]
    assert not np.array_equal(kernel.ravel()[:12], bias)  # not drawn alike


_MISFITS = {
    "other window": lambda weights: _random_weights(1500),
    "a name too few": lambda weights: {k: v for k, v in weights.items() if k != "0.bias"},
    "a name too many": lambda weights: {**weights, "4.bias": weights["3.bias"]},
    "another shape": lambda weights: {**weights, "3.bias": weights["0.bias"]},
}


@pytest.mark.parametrize("kind", _MISFITS)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path, kind):
    path = tmp_path / "head.safetensors"
    safetensors.numpy.save_file(_MISFITS[kind](_random_weights(50)), str(path))
    head = kws_head.create_kws_head(50)
    before = head.get_weights()
    with pytest.raises(ValueError, match="Expected the tensors .*head.safetensors"):
        kws_head.load_safetensors(head, path)
    for old, new in zip(before, head.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    path = tmp_path / "head.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="as safetensors at .*head.safetensors"):
        kws_head.load_safetensors(kws_head.create_kws_head(50), path)
