"""Entropy coding: nothing is lost, and little more than the empirical entropy travels."""

import numpy as np
import pytest
import reference_decoder
import tensorflow as tf
import tensorflow_federated as tff
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit import encoders  # And with it the default context.
from tff_kit.encoders.entropy import codebook, fields, header, rans, rows, stage, tables, tuples

STAGE = encoders.EntropyCodingStage()
_REFERENCE_SIZE = 2**18  # The reference decoder is slow.
INT32 = st.integers(-(2**31), 2**31 - 1)


@pytest.mark.slow
class EntropyCodingStageTest(te.testing.BaseEncodingStageTest):
    """tensor_encoding's own tests of a stage."""

    def default_encoding_stage(self):
        return encoders.EntropyCodingStage()

    def default_input(self):
        return tf.round(tf.random.normal([5, 37], stddev=2.0))

    @property
    def is_lossless(self):
        return True

    def common_asserts_for_test_data(self, data):
        self.assertAllEqual(data.x, data.decoded_x)

    def evaluate_tf_py_list(self, fetches, session=None):  # The original compares arrays with (), an error in NumPy 1.25.
        flat = tf.nest.flatten(list(fetches))
        values = iter(self.maybe_evaluate([value for value in flat if tf.is_tensor(value)], session))
        return tf.nest.pack_sequence_as(list(fetches), [next(values) if tf.is_tensor(value) else value for value in flat])


def _round_trip(x):
    """Returns the decoded array and the bits that travel; asserts dtype and shape, and that the document's decoder agrees."""
    encoded = STAGE.encode(tf.constant(x), {})
    decoded, bits = STAGE.decode(encoded, {}, shape=list(x.shape)), encoders.payload_bits(encoded)
    assert decoded.dtype == x.dtype
    assert decoded.shape == x.shape
    if x.size <= _REFERENCE_SIZE:
        payload = encoded[STAGE.PAYLOAD_KEY].numpy().tobytes()
        np.testing.assert_array_equal(reference_decoder.decode(payload, x.shape, x.dtype), decoded)
    return decoded.numpy(), int(bits)


def _assert_lossless(x):
    decoded, bits = _round_trip(x)
    np.testing.assert_array_equal(decoded, x)
    return bits


def _entropy_bits(x):
    """The empirical entropy of all elements together, in bits."""
    counts = np.unique(x, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / x.size)))


def _gaussian(entropy, size, seed=0):
    """Gaussian numbers, rounded to multiples of the step that gives them about this entropy a number."""
    normal = np.random.default_rng(seed).normal(size=size)
    sample = normal[: 2**16]
    low, high = 0.01, 100.0  # Steps.
    while high / low > 1.0001:
        step = np.sqrt(low * high)
        low, high = (step, high) if _entropy_bits(np.round(sample / step)) > entropy * sample.size else (low, step)
    return np.round(normal / low).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("entropy", [0.1, 0.5, 1, 2, 3, 4])
def test_gaussian_integers_take_at_most_a_hundredth_more_than_their_entropy(entropy):
    x = _gaussian(entropy, 2**20)
    expected = _entropy_bits(x)
    assert expected / x.size == pytest.approx(entropy, rel=0.03)
    assert _assert_lossless(x) <= 1.01 * expected


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.12, 0.2, 0.4])
@pytest.mark.parametrize("shape", [(3136, 512)])
def test_sparse_laplacian_integers_of_a_dense_layer_too(scale, shape):
    x = np.round(np.random.default_rng(1).laplace(scale=scale, size=shape)).astype(np.float32)
    assert _assert_lossless(x) <= 1.01 * _entropy_bits(x)


@pytest.mark.slow
def test_what_is_not_around_zero_costs_no_more():
    x = _gaussian(3, 2**15)
    assert _assert_lossless(x + 1000) <= _assert_lossless(x) + 64


@pytest.mark.slow
def test_integers_of_one_sign_cost_little_more_than_their_entropy():
    x = np.abs(_gaussian(3, 2**13))  # No sign bits, so that there are few lanes and many steps.
    assert _assert_lossless(x) <= 1.02 * _entropy_bits(x) + 800  # Tables and header.


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.int8, np.uint8])
@pytest.mark.parametrize("shape", [(), (1,), (2, 0, 3), (1000,), (7, 11, 13)])
def test_dtypes_and_shapes(dtype, shape):
    _assert_lossless(np.random.default_rng(2).integers(0, 100, size=shape).astype(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, -5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("size", [1, 2, 5, 10_000])
def test_constants_take_a_few_bytes(value, size):
    assert _assert_lossless(np.full(size, value, np.int32)) <= 32 * 8


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 1023, 1024, 1025, 4099, 100_003])
def test_sizes(size):
    generator = np.random.default_rng(size)
    _assert_lossless(np.round(generator.normal(size=size) * 3).astype(np.float32))
    _assert_lossless(np.round(generator.laplace(size=size) / 3).astype(np.float32))


def _hostile():
    generator = np.random.default_rng(3)
    limits = np.iinfo(np.int32)
    yield "only extremes", np.array([limits.min, limits.max] * 50, np.int32)
    yield "mostly an extreme", np.array([limits.min] * 500 + [limits.max], np.int32)
    yield "uniform int32", generator.integers(limits.min, limits.max, 5000, np.int32, endpoint=True)
    yield "all distinct", generator.permutation(20_000).astype(np.int32)
    yield (
        "huge outliers",
        np.where(generator.random(50_000) < 0.001, 2.0**30, generator.integers(-1, 2, 50_000)).astype(np.float32),
    )
    yield "two far symbols", np.where(generator.random(5000) < 0.3, -70_000, 1_000_000).astype(np.int32)
    yield "one event at the start", np.eye(1, 30_000, 0, dtype=np.float32)
    yield "one event at the end", np.eye(1, 30_000, 29_999, dtype=np.float32)
    yield "alternating", np.tile([0, 7], 5000).astype(np.int32)
    yield "ascending", np.arange(-3000, 3000).astype(np.float32)
    yield "powers", np.concatenate([2 ** np.arange(31), -(2 ** np.arange(32))]).astype(np.int64).astype(np.int32)
    yield "heavy tail", np.round(generator.standard_cauchy(30_000)).clip(limits.min, limits.max).astype(np.int32)
    yield "every class once", np.unique(np.round(1.09 ** np.arange(245))).astype(np.int32)
    yield "floats of integer value that int32 can't hold", np.array([3e38, 0, -1, 2.0**31], np.float32)
    yield "int64 that int32 can't hold", np.array([2**63 - 1, -(2**63), 0], np.int64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "x"), _hostile(), ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_is_lost_of(name, x):
    del name
    _assert_lossless(x)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(INT32 | st.integers(-3, 3) | st.just(0), max_size=60), st.integers(0, 1))
def test_any_integers_come_back(numbers, repeats):
    _assert_lossless(np.repeat(np.array(numbers, np.int32), 1 + 9 * repeats))


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from(["normal", "laplace", "standard_cauchy", "exponential", "logistic"]),
    st.floats(-3, 5),
    st.integers(1, 20_000),
    st.integers(0, 2**32 - 1),
)
def test_random_integers_of_any_spread_come_back(distribution, exponent, size, seed):
    x = getattr(np.random.default_rng(seed), distribution)(size=size) * 10**exponent
    _assert_lossless(np.round(x).clip(-(2**31), 2**31 - 1).astype(np.int32))


@pytest.mark.slow
def test_ten_million_elements():
    x = np.round(np.random.default_rng(4).normal(size=10**7) * 0.3).astype(np.float32)
    assert _assert_lossless(x) <= 1.01 * _entropy_bits(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_tensor_that_is_not_finite_does_not_come_back_as_numbers(bad, size, dtype):
    x = np.zeros(size, dtype)
    x[size // 2] = bad
    decoded, bits = _round_trip(x)
    assert not np.isfinite(decoded).any()
    assert bits == 8


def test_the_same_tensor_makes_the_same_bytes_and_the_bytes_alone_are_enough():
    x = _gaussian(1, 5000)
    payloads = [STAGE.encode(tf.constant(x), {})[STAGE.PAYLOAD_KEY] for _ in range(2)]
    np.testing.assert_array_equal(*payloads)
    decoded = encoders.EntropyCodingStage().decode({STAGE.PAYLOAD_KEY: payloads[0]}, {}, shape=[50, 100])
    np.testing.assert_array_equal(decoded, x.reshape(50, 100))


def test_an_unknown_shape_is_refused():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def encode(x):
        return STAGE.encode(x, {})

    with pytest.raises(ValueError, match="Expected a tensor of fully known shape"):
        encode.get_concrete_function()


@pytest.mark.slow
def test_behind_a_quantizer_and_inside_the_worker():
    spec = tf.TensorSpec([300, 50], tf.float32)
    quantization = encoders.UniformQuantizationStage(bits=4)

    def through(x):  # What a client encodes, and what the server makes of it.
        encoder = te.core.EncoderComposer(encoders.EntropyCodingStage()).add_parent(quantization, quantization.LEVELS_KEY).make()
        simple = te.encoders.as_simple_encoder(encoder, spec)
        encoded, _ = simple.encode(x)
        return simple.decode(encoded), tf.cast(encoders.payload_bits(encoded), tf.int64)

    x = np.random.default_rng(5).normal(size=spec.shape).astype(np.float32)
    in_worker = tff.tensorflow.computation(through, tff.TensorType(np.float32, spec.shape))
    decoded, bits = in_worker(x)
    levels = quantization.encode(tf.constant(x), {})
    np.testing.assert_allclose(decoded, quantization.decode(levels, {}), rtol=0, atol=1e-5)
    assert bits <= 1.05 * _entropy_bits(levels[quantization.LEVELS_KEY].numpy()) + 1000


def test_bytes_that_are_no_payload_end_in_one_sentence_inside_the_worker_too():
    @tff.tensorflow.computation(tff.TensorType(np.uint8, [None]))
    def decode(payload):
        return STAGE.decode({STAGE.PAYLOAD_KEY: payload}, {}, shape=[500])

    x = _gaussian(2, 500)
    payload = STAGE.encode(tf.constant(x), {})[STAGE.PAYLOAD_KEY].numpy()
    np.testing.assert_array_equal(decode(payload), x)
    with pytest.raises(Exception, match=r"Expected a stream of at least \d+ bits, found \d+\.|Expected at least \d+ bypass bits"):
        decode(payload[:-20])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=248).filter(any))
def test_frequencies_sum_to_the_total_and_leave_no_symbol_out(counts):
    counts = np.array([counts, counts[::-1], [7] + [0] * (len(counts) - 1)])
    frequencies = tables.proportional(tf.constant(counts, tf.int64)).numpy()
    np.testing.assert_array_equal(frequencies.sum(axis=1), tables.TOTAL)
    np.testing.assert_array_equal(frequencies > 0, counts > 0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 48).flatmap(lambda width: st.tuples(st.just(width), st.integers(0, 2**width - 1))), max_size=200))
def test_fields_of_any_widths_come_back_and_leave_no_gap(pairs):
    widths, values = (tf.constant([pair[k] for pair in pairs], tf.int64, [len(pairs)]) for k in (0, 1))
    packed = fields.pack_fields(values, widths)
    assert len(packed) == -(-sum(width for width, _ in pairs) // 8)
    start = tf.cumsum(widths, exclusive=True)
    np.testing.assert_array_equal(fields.read_fields(fields.field_windows(packed), start, widths), values)


class _Known(rans.Context):
    """Knows where each symbol's table begins, float64 [steps, group, lanes]."""

    def __init__(self, first_slots):
        self._first_slots = first_slots

    def begin(self):
        return (tf.constant(0),)

    def first_slots(self, k, seen):
        return self._first_slots[seen[0] // self._first_slots.shape[1], k]

    def after(self, seen, slots):
        return (seen[0] + 1,)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 3, 50])
@pytest.mark.parametrize("total_bits", [12, 16])
def test_the_coder_returns_symbols_and_initial_states_and_reaches_the_entropy_of_its_tables(lanes, total_bits):
    generator, coder, steps = np.random.default_rng(6), rans.Rans(total_bits, 8192), 40
    scale = coder.total // tables.TOTAL
    table = scale * tables.proportional(tf.constant(generator.integers(0, 1000, (5, 30)) ** 3)).numpy()
    shape = (steps, coder.group, lanes)
    table_of = generator.integers(0, 5, shape).astype(np.int32)
    drawn = np.stack([generator.choice(30, shape, p=row / coder.total) for row in table])
    symbols = np.take_along_axis(drawn, table_of[np.newaxis], 0)[0]
    ends = np.cumsum(table, axis=1)
    entries = coder.entries(tf.constant(table), tf.constant(ends - table)).numpy()[table_of, symbols]
    initial = generator.integers(0, 256, rans.STATE_BYTES * lanes).astype(np.uint8)
    states, stream = coder.encode(tf.constant(entries), tf.constant(initial))

    symbol_of = np.stack([np.repeat(np.arange(30), row) for row in table])
    f, end = (np.take_along_axis(x, symbol_of, 1) for x in (table, ends))
    by_slot = coder.entries(tf.constant(f), tf.constant(np.arange(coder.total) - end + f))
    behind = np.full(5, 255, np.uint8)
    followed = tf.concat([stream, behind], axis=0)
    context = _Known(tf.constant(table_of * coder.total, tf.float64))
    slots, bypass = coder.decode(followed, tf.reshape(by_slot, [-1]), states, tf.constant(steps), context)
    np.testing.assert_array_equal(symbol_of.ravel()[slots], symbols)
    np.testing.assert_array_equal(bypass, np.concatenate([initial, behind]))
    assert len(states) == len(initial)
    expected = -np.sum(np.log2(table[table_of, symbols] / coder.total))
    assert 8 * len(stream) <= expected + lanes + 8  # A state ends less than a bit larger than it began.


def _shape(x):
    """Returns the shape of the tuples that `x` is coded in, or tuples.NONE where its elements are coded one by one."""
    first, body = header.PayloadHeader.unpack(STAGE.encode(tf.constant(x), {})[STAGE.PAYLOAD_KEY])
    return int(header.TuplesHeader.unpack(body)[0].shape) if first.coder == stage.TUPLES else tuples.NONE


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "bits"), enumerate([0.43, 0.6, 1, 1.6, 2.1, 3, 5]))
def test_each_shape_of_tuples_takes_at_most_a_hundredth_more_than_the_entropy(shape, bits):
    x = _gaussian(bits, 2**19)
    assert _shape(x) == shape
    assert _assert_lossless(x) <= 1.01 * _entropy_bits(x)


def _hostile_to_tuples():
    generator, size, limits = np.random.default_rng(11), 2**17 + 5, np.iinfo(np.int32)
    few = generator.integers(-1, 2, size)
    yield "one of each outlier", np.concatenate([few, [limits.min, limits.max, 126, 127, -127, 128, -128]]).astype(np.int32)
    yield "around the smallest", (np.minimum(few, 0) * 3 + limits.min + 3).astype(np.int32)
    yield "around the largest", (limits.max - np.abs(few)).astype(np.int32)
    yield "two far symbols", np.where(generator.random(size) < 0.4, -(2**31), 2**31 - 1).astype(np.int32)
    yield (
        "only where no sample is taken",
        np.where(np.arange(size) % 9 == 1, generator.integers(-99, 99, size), few).astype(np.int32),
    )
    yield "all that is rare at the end", np.concatenate([few, generator.integers(-500, 500, 9000)]).astype(np.int32)
    yield "all that is rare at the start", np.concatenate([generator.integers(-500, 500, 9000), few]).astype(np.int32)
    yield "levels of eight bits", generator.normal(128, 22, size).clip(0, 255).astype(np.uint8)
    yield "floats beside a large centre", (few + 2**23).astype(np.float32)
    yield "alternating", np.tile([0, 1, 3, -2], size // 4).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "x"), _hostile_to_tuples(), ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_is_lost_of_a_long_tensor_with(name, x):
    del name
    _assert_lossless(x)


@pytest.mark.slow
def test_a_sample_for_tuples_sees_all_columns_of_a_matrix():
    spread = np.tile([0.5, 2.0, 8.0], 2**16)  # Every third element would tell of one column only.
    x = np.round(np.random.default_rng(13).normal(size=spread.size) * spread).astype(np.float32)
    assert _shape(x.reshape(-1, 3)) == tuples.NONE - 1
    assert _assert_lossless(x.reshape(-1, 3)) <= 1.01 * _entropy_bits(x)


@pytest.mark.slow
def test_a_hundred_tuples_that_no_sample_told_of_are_escaped_at_little_cost():
    x = _gaussian(1, 2**18)
    with_rare = x.copy()
    with_rare[np.random.default_rng(12).choice(x.size, 100, replace=False)] = 1000
    assert _shape(with_rare) == _shape(x) == 2
    assert _assert_lossless(with_rare) <= _assert_lossless(x) + 100 * 64


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, tuples.NONE - 1), st.integers(0, 2**32 - 1), st.floats(0, 6))
def test_a_codebook_has_as_many_slots_as_the_coder_and_gives_tuples_their_share(shape, seed, peak):
    length, digits = codebook.SHAPES[shape].length, codebook.SHAPES[shape].digits
    share = np.random.default_rng(seed).exponential(size=digits + 1) ** peak
    table = tables.proportional(tf.constant((share / share.sum() * 1e6).astype(np.int64)[np.newaxis])).numpy()[0]
    ends, escape = (x.numpy() for x in codebook.codebook(tf.constant(table[1:]), tf.constant(shape)))
    slots = np.diff(ends, prepend=0)
    assert (slots >= 0).all()
    assert escape >= 1
    assert ends[-1] + escape == 2**16 or ends[-1] == 0
    product = np.ones(1)
    for _ in range(length):
        product = np.outer(product, table[1:] / tables.TOTAL).ravel()
    assert not slots[product == 0].any()
    assert np.abs(slots - 2**16 * product).max() <= 1.5 + 0.02 * (2**16 * product).max()


def _structured(rows, columns, seed=7):
    """Sparse integers whose spread is that of their row times that of their column; some lines are all zeros."""
    generator = np.random.default_rng(seed)
    row, column = np.exp(generator.normal(size=(rows, 1)) - 3), np.exp(generator.normal(size=(1, columns)))
    row[generator.random(rows) < 0.3] = 0
    column[:, generator.random(columns) < 0.2] = 0
    return np.round(generator.laplace(size=(rows, columns)) * row * column).astype(np.float32), row * column


def test_a_matrix_takes_fewer_bits_than_its_elements_apart_if_its_rows_and_columns_differ():
    x, scale = _structured(800, 500)
    bits = _assert_lossless(x)
    assert bits <= 1.1 * _laplacian_bits(x, scale) + 4 * sum(x.shape) + 200  # Spreads have to be said or learnt; and tables.
    assert bits <= 0.75 * _entropy_bits(x)
    assert _assert_lossless(x.reshape(-1)) > 1.2 * bits


def _laplacian_bits(x, scale):
    """The bits of rounded Laplacian numbers if each one's scale were known."""
    with np.errstate(all="ignore"):
        zero = -np.expm1(-0.5 / scale)
        nonzero = (np.exp((0.5 - np.abs(x)) / scale) - np.exp((-0.5 - np.abs(x)) / scale)) / 2
        return -np.sum(np.log2(np.where(x == 0, zero, nonzero))[scale > 0])


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_factors_of_low_rank_take_little_more_than_if_the_scale_of_each_element_were_known(spread):
    generator = np.random.default_rng(14)
    tops = [spread * 0.85 ** np.arange(32), spread * 0.7 ** np.arange(32)[generator.permutation(32)]]  # Of two matrices.
    scale = np.concatenate([np.exp(0.3 * generator.normal(size=(2000, 1))) * top for top in tops])
    x = np.round(generator.laplace(size=scale.shape) * scale).astype(np.float32)
    assert _assert_lossless(x) <= 1.08 * _laplacian_bits(x, scale) + 5000  # Scales of rows have to be learnt.


@pytest.mark.slow
def test_columns_of_one_sign_cost_no_signs():
    x = np.round(np.random.default_rng(15).laplace(size=(2000, 8)) * 3).astype(np.float32)
    aligned = np.abs(x) * [1, -1, 1, 1, -1, -1, 1, 1]
    encode = tf.function(STAGE.encode, autograph=False)  # Op by op, so many steps take long.
    of_aligned, of_x = (8 * encode(tf.constant(y, tf.float32), {})[STAGE.PAYLOAD_KEY].shape[0] for y in (aligned, x))
    assert of_aligned <= of_x - 0.85 * np.count_nonzero(x)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (40_000, 2), (5, 5, 16, 200), (2, 40_000), (30_000, 4), (3, 8192)])
def test_matrices_of_any_proportions_come_back(shape):
    x, _ = _structured(int(np.prod(shape[:-1])), shape[-1], seed=8)
    _assert_lossless(x.reshape(shape))


def _coded_by_rows(x, sections=3):
    """Returns the header of a payload that the coder of rows made of a matrix, and asserts that nothing is lost."""
    body = _encode_rows(x.reshape(-1), x.shape[1], sections)
    payload = tf.concat([header.PayloadHeader(stage.ROWS, header.VERSION).pack(), body], axis=0)
    decoded = _decode_rows(payload[1:], x.size, x.shape[1])
    np.testing.assert_array_equal(np.reshape(decoded, x.shape), x)
    np.testing.assert_array_equal(reference_decoder.decode(payload.numpy().tobytes(), x.shape, np.int32), x)
    return header.RowsHeader.unpack(payload[1:])[0]


_encode_rows = tf.function(rows.encode, [tf.TensorSpec([None], tf.int32), *[tf.TensorSpec([], tf.int32)] * 2], autograph=False)
_decode_rows = tf.function(rows.decode, rows.CODE, autograph=False)


def _hostile_to_rows():
    generator, limits = np.random.default_rng(16), np.iinfo(np.int32)
    yield "one element", np.eye(2, 4, dtype=np.int32)[:, ::-1] * [[0], [5]]
    yield "uniform int32", generator.integers(limits.min, limits.max, (50, 7), np.int32, endpoint=True)
    yield "extremes", np.array([[limits.min, limits.max, 0, -1, 1]] * 30, np.int32)
    yield "around the smallest", generator.integers(0, 3, (90, 5)) + limits.min
    yield "around the largest", limits.max - generator.integers(0, 3, (90, 5))
    yield "one large row", np.where(np.arange(400)[:, np.newaxis] == 7, 2**30, generator.integers(-1, 2, (400, 6)))
    yield "one large column", np.where(np.arange(9) == 7, 2**30, generator.integers(-1, 2, (400, 9)))
    yield "fewer rows than sections", generator.integers(-9, 9, (2, 100))
    yield "rows of zeros at the end", np.concatenate([generator.integers(-9, 9, (300, 5)), np.zeros([999, 5], int)])
    yield "more rows than lanes", generator.integers(-1, 2, (20_000, 4))
    yield "as many columns as there may be", generator.integers(-1, 2, (3, 8192))
    yield "signs that turn", np.abs(generator.integers(-9, 9, (600, 5))) * np.repeat([1, -1, 1], 200)[:, np.newaxis]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "x"), _hostile_to_rows(), ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_is_lost_of_a_matrix_with(name, x):
    del name
    assert _coded_by_rows(x.astype(np.int32)).sections == 3


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from([4, 5, 7, 48]),
    st.integers(2, 300),
    st.integers(1, 9),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(-2, 4),
    st.integers(0, 2**32 - 1),
)
def test_any_matrix_comes_back_by_rows(columns, height, sections, of_rows, of_columns, exponent, seed):
    generator = np.random.default_rng(seed)
    spread = np.exp(of_rows * generator.normal(size=(height, 1)) + of_columns * generator.normal(size=columns))
    drawn = generator.normal(size=(height, columns)) + generator.choice([-1, 0, 1], columns)
    x = np.round(drawn * spread * 10**exponent).clip(-(2**31), 2**31 - 1).astype(np.int32)
    x[0, 0] += 1  # Something is off the offset.
    _coded_by_rows(x, sections)
