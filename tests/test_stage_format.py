"""docs/format.md on messages and stages: golden bytes both ways, and a decoder that was written after it."""

import numpy as np
import pytest
import reference_stages
import stage_golden
import stages
import tensorflow as tf

from tff_kit import encoders


def _stages(spec):
    return [(stage.name, dict(stage.arguments)) for stage in encoders.Spec.parse(spec).large.stages]


def _decoded_by_both(spec, message):
    ours = stage_golden.codec(spec).decode(message)[0].numpy()
    return ours, reference_stages.decode(message, _stages(spec), spec, 0, stage_golden.SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("spec", stage_golden.SPECS)
def test_golden_messages_both_ways(spec):
    golden, x = stage_golden.path(spec).read_bytes(), stage_golden.tensor()
    ours, reference = _decoded_by_both(spec, golden)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-6 * np.abs(x).max())
    encoded = stage_golden.encode(spec)
    if any(name in spec for name in stage_golden.ROUNDED):
        assert abs(len(encoded) - len(golden)) <= ("rice" in spec)
        again = _decoded_by_both(spec, encoded)[0]
        assert stages.squared(again - ours) < 1e-3 * stages.squared(x)
    else:
        assert encoded == golden


def test_golden_messages_hold_the_tensor():
    """As good as each stage promises: a wrong golden message would not."""
    x = stage_golden.tensor()
    error = {spec: stages.nmse(_decoded_by_both(spec, stage_golden.path(spec).read_bytes())[1], x) for spec in stage_golden.SPECS}
    assert error["identity"] == 0
    step = np.ptp(x) / 255
    assert error["uniform:8"] * stages.squared(x) < x.size * step**2 / 4
    assert error["step:1,dithered+rice"] == pytest.approx(1 / 12, rel=0.25)
    assert error["topk:0.1"] == pytest.approx(np.sort(np.square(x), axis=None)[:-30].sum() / stages.squared(x), rel=1e-5)
    assert max(error[spec] for spec in error if "randk" not in spec and "0.5,64" not in spec and "lowrank" not in spec) < 0.75


@pytest.mark.parametrize("seed", [(0, 0), (1, -1), (-(2**31), 2**31 - 1)])
def test_the_documents_generator_draws_tensorflows_numbers(seed):
    drawn = tf.random.stateless_uniform(
        [1001], tf.constant(seed, tf.int32), minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    np.testing.assert_array_equal(reference_stages.draws(1001, seed).view(np.int32), drawn)
