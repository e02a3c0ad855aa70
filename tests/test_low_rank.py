"""Low-rank factors: exact where they can be, near the best where not, and what they do to odd tensors."""

import numpy as np
import pytest
import stages
import tensorflow as tf

from tff_kit import encoders


class LowRankStageTest(stages.StageTest):
    def default_encoding_stage(self):
        return encoders.LowRankStage(2)

    def default_input(self):
        return tf.constant(_of_rank(2, 30, 20))

    def common_asserts_for_test_data(self, data):
        self.assertAllClose(data.x, data.decoded_x, rtol=1e-4, atol=1e-4)


def _of_rank(rank, m, n, seed=0):
    return stages.normal(m, rank, seed=seed) @ stages.normal(rank, n, seed=seed + 1)


def _tail(x, rank):
    """Returns the least squared error that rank allows (Eckart and Young), relative."""
    squares = np.square(np.linalg.svd(np.asarray(x, np.float64), compute_uv=False))
    return squares[rank:].sum() / squares.sum()


@pytest.mark.parametrize(("rank", "m", "n"), [(1, 40, 30), (3, 200, 17), (8, 17, 200)])
def test_a_matrix_of_the_rank_comes_back(rank, m, n):
    x = _of_rank(rank, m, n)
    decoded, encoded = stages.through(encoders.LowRankStage(rank), x)
    assert encoded["factors"].shape == (m + n, rank)
    assert stages.nmse(decoded, x) < 1e-9


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_the_error_is_near_the_least_there_is(decay):
    u, v = (np.linalg.qr(stages.normal(size, 100, seed=size))[0] for size in (300, 200))
    x = ((u * np.arange(1, 101) ** -decay) @ v.T).astype(np.float32)
    for rank in (1, 5, 20):
        decoded, _ = stages.through(encoders.LowRankStage(rank), x)
        assert _tail(x, rank) * 0.999 <= stages.nmse(decoded, x) <= 1.1 * _tail(x, rank)


def test_both_factors_of_a_component_weigh_the_same():
    _, encoded = stages.through(encoders.LowRankStage(4), _of_rank(6, 50, 80))
    factors = encoded["factors"].numpy()
    np.testing.assert_allclose(np.linalg.norm(factors[:50], axis=0), np.linalg.norm(factors[50:], axis=0), rtol=1e-4)


def test_dimensions_before_the_last_are_rows_unless_told_otherwise():
    x = _of_rank(2, 60, 40)
    for shape in ([5, 12, 40], [60, 40]):
        assert stages.nmse(stages.through(encoders.LowRankStage(2), x.reshape(shape))[0], x.reshape(shape)) < 1e-9
    flat = x.reshape(-1)
    decoded, encoded = stages.through(encoders.LowRankStage(2, rows=60), flat)
    assert encoded["factors"].shape == (100, 2)
    assert stages.nmse(decoded, flat) < 1e-9


@pytest.mark.parametrize("shape", [[], [0], [1], [7], [3, 0], [2, 2], [4, 4]])
def test_where_factors_are_no_smaller_the_tensor_is_sent(shape):
    x = stages.normal(*shape)
    decoded, encoded = stages.through(encoders.LowRankStage(2), x)
    assert encoded["factors"].shape == tuple(shape)
    np.testing.assert_array_equal(decoded, x)


def test_zeros_stay_zeros():
    decoded, _ = stages.through(encoders.LowRankStage(2), np.zeros([20, 30], np.float32))
    np.testing.assert_array_equal(decoded, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", ["lowrank:2", "lowrank:2+step:0.1+entropy"])
def test_nothing_finite_comes_of_what_is_not(spec, bad):
    x = _of_rank(2, 20, 30)
    x[3, 4] = bad
    decoded, _ = stages.round_trip(spec, x)
    assert not np.isfinite(decoded).any()


def test_payload_is_that_of_the_factors():
    x = _of_rank(5, 300, 200)
    assert stages.round_trip("lowrank:5+uniform:6", x)[1] == 500 * 5 * 6 + 64
    decoded, bits = stages.round_trip("lowrank:5+step:0.05+entropy", x)
    assert stages.nmse(decoded, x) < 0.05**2 / 12 * 2 * 1.2  # Error of either factor.
    assert bits < 500 * 5 * 8


@pytest.mark.parametrize(("arguments", "message"), [((0,), "rank to be at least 1"), ((1, 0), "rows to be at least 1")])
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        encoders.LowRankStage(*arguments)


def test_rows_that_do_not_divide_the_tensor_are_refused():
    with pytest.raises(ValueError, match="a matrix of 7 rows"):
        encoders.LowRankStage(1, 7).encode(tf.zeros([10, 10]), {})
