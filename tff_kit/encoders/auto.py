"""Whatever suits a tensor, at one price of an error: low rank or not, which rank, how finely, and what is not worth sending.

All variables are rounded to multiples of one step, in proportion to the root mean square of them all. So a bit buys as much in
each variable: with rates R and squared errors D, -dD/dR is the same everywhere (reverse water-filling; T. M. Cover, J. A. Thomas:
Elements of Information Theory, 2nd edition, section 10.3.3). A bit is worth `PRICE` x step^2, about the slope that uniform
rounding has at high rates (quantization.py), where n numbers have an error of n step^2 / 12 and a little more.

A large matrix is sent as its elements, or as factors if these save more. The singular value decomposition X = U S V' makes
factors A = U S and B = V S, whose product A S^-1 B' is X. An error in A changes X by as much as itself, since the columns of
B S^-1 = V are orthonormal, and so does one in B, so that their step is that of all. The receiver takes for S what the rounded
factors say: sqrt(|a| |b|) of a component's columns a and b. A component is left out where its bits cost more than the error that
it takes away, so that the rank follows from the step.

One step suits a tensor whose squared norm is in few elements or components. Of others, such as updates of Adam's, which are about
equally large everywhere, it would leave nearly nothing. So the step is made smaller until no more is lost than is allowed.

P. A. Chou, T. Lookabaugh, R. M. Gray: Entropy-Constrained Vector Quantization. IEEE Transactions on Acoustics, Speech, and Signal
Processing 37, 1989. N. Halko, P.-G. Martinsson, J. A. Tropp: Finding Structure with Randomness. SIAM Review 53, 2011, arXiv
0909.4061. T. Vogels, S. P. Karimireddy, M. Jaggi: PowerSGD. NeurIPS 2019, arXiv 1905.13727.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, Optional

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.blocks import static_size
from tff_kit.encoders.checks import checked
from tff_kit.encoders.entropy import decode_integers, encode_integers
from tff_kit.encoders.graphs import built_once
from tff_kit.encoders.low_rank import components
from tff_kit.encoders.quantization import cheapest, root_mean_square
from tff_kit.encoders.stage import Stage
from tff_kit.encoders.views import Shape, View, matrix_views

PRICE = 0.12
"""Of a bit, in units of step^2."""
_FINER = 64  # At most, where too much would be lost.
_SAMPLE = 2**14  # Elements of a matrix by which its bits and error without factors are estimated.


@te.core.tf_style_encoding_stage
class AutoStage(Stage):
    """Encodes float32 variables, one behind another in one vector, or a single one. Biased: what is not worth its bits is lost.

    `encode` returns the step, and more tensors. `choice`, uint8 [variables with views (views.py)], is 0 for nothing, 1 for
    elements, and 2 and above for factors in a view. All others are payloads of the entropy coder, uint8 [bytes], without any
    bytes where they would hold zeros only. `factors` has the factors of all variables that are sent so, [m + n, rank] each, one
    below another. `elements_COLUMNS` has the elements of variables with views of so many columns, one below another, and `rest`
    those of variables without.

    The squared error is at most about `lost` |x|^2. A vector with an element that is not finite decodes to elements none of
    which is finite.

    Args:
      step: Distance of levels in units of the root mean square of the vector, 0.001 or more; less if more than `lost` were lost.
      rank: The most components of a matrix.
      lost: The largest share of the squared norm to lose, in (0, 1].
      shapes: Of the variables; by default the tensor is one.

    Raises:
      ValueError: If an argument is not as above, or on encoding, if the shape is not fully known.
    """

    STEP_KEY = "step"
    CHOICE_KEY = "choice"
    FACTORS_KEY = "factors"
    ELEMENTS_KEY = "elements_{}"
    REST_KEY = "rest"

    def __init__(self, step: float, rank: int = 32, lost: float = 1.0, shapes: Optional[Sequence[Shape]] = None):
        if not 0.001 <= step < float("inf"):  # A float32 holds all integers up to 2^24 only.
            raise ValueError(f"Expected step to be 0.001 or more, in units of the root mean square, found {step}.")
        if rank < 1:
            raise ValueError(f"Expected rank to be at least 1, found {rank}.")
        if not 0 < lost <= 1:
            raise ValueError(f"Expected the share of the squared norm to lose to be in (0, 1], found {lost}.")
        self._step = step
        self._rank = rank
        self._lost = lost
        self._shapes = shapes

    name = "auto"
    compressible_tensors_keys: list[str] = []
    decode_needs_input_shape = True

    def of_shapes(self, shapes: Sequence[Shape]) -> AutoStage:
        """Returns the stage that encodes variables of these shapes, one behind another."""
        return AutoStage(self._step, self._rank, self._lost, shapes)

    def encode(self, x, encode_params):
        del encode_params
        shapes = self._shapes_of(x.shape)
        unit = root_mean_square(x)
        place = tf.reshape(tf.math.divide_no_nan(x, unit), [-1])
        place = tf.where(tf.math.is_finite(unit), place, tf.zeros([], x.dtype))  # Of what is not finite the step tells.
        parts = tf.split(place, [math.prod(shape) for shape in shapes])
        seen = [_Seen.of(part, views, self._rank) for part, views in zip(parts, matrix_views(shapes))]
        step = self._fitting_step(seen, tf.reduce_sum(tf.square(place)))
        choices, factors, rest, matrices = [], [], [], collections.defaultdict(list)
        for shape, variable in zip(shapes, seen):
            rounded = built_once(_rounded, _spec(variable.elements))
            elements = lambda v=variable.elements, rounded=rounded: rounded(v / step)  # noqa: E731
            if not variable.sides:
                rest.append(elements())
                continue
            choice, _, found = variable.best(step)
            choices.append(tf.cast(choice, tf.uint8))
            nothing = tf.zeros([0], x.dtype)
            matrices[shape[-1]].append(tf.cond(tf.equal(choice, 1), elements, lambda nothing=nothing: nothing))
            made = [lambda levels=levels: self._wide(levels) for levels in found]
            none = lambda dtype=x.dtype: tf.zeros([0, self._rank], dtype)  # noqa: E731
            factors.append(tf.switch_case(choice, [none, none, *made]))
        encoded = collections.OrderedDict([(self.STEP_KEY, step * unit)])
        if choices:
            encoded[self.CHOICE_KEY] = tf.stack(choices)
            encoded[self.FACTORS_KEY] = _payload(tf.concat(factors, axis=0), self._rank)
        for columns, levels in matrices.items():
            encoded[self.ELEMENTS_KEY.format(columns)] = _payload(tf.concat(levels, axis=0), columns)
        encoded[self.REST_KEY] = _payload(tf.concat([*rest, tf.zeros([0], x.dtype)], axis=0))
        return encoded

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        shapes, step = self._shapes_of(shape), encoded_tensors[self.STEP_KEY]
        sizes, all_views = [math.prod(shape) for shape in shapes], matrix_views(shapes)
        with_views = [views for views in all_views if views]
        choices, lines = iter(()), []
        if with_views:
            found = tf.cast(encoded_tensors[self.CHOICE_KEY], tf.int32)
            most = [len(views) + 1 for views in with_views]
            found = checked(
                found, tf.reduce_all(found <= most), "Expected choices of at most {}, found {}.", tf.constant(most), found
            )
            lines = [tf.gather([0, 0, *map(sum, views)], c) for views, c in zip(with_views, tf.unstack(found))]
            factors = _levels(encoded_tensors[self.FACTORS_KEY], [tf.reduce_sum(lines), self._rank], step.dtype)
            choices = iter(zip(tf.unstack(found), tf.split(factors, tf.stack(lines), num=len(lines))))
        chosen = [next(choices) if views else (None, None) for views in all_views]
        counts = [size if c is None else tf.where(tf.equal(c, 1), size, 0) for size, (c, _) in zip(sizes, chosen)]
        elements = self._elements(encoded_tensors, [s[-1] if views else None for s, views in zip(shapes, all_views)], counts)
        variables = [
            tf.ensure_shape(own if c is None else _of_choice(c, own, factors, views, size), [size])
            for own, (c, factors), views, size in zip(elements, chosen, all_views, sizes)
        ]
        return tf.reshape(tf.concat(variables, axis=0) * step, tf.cast(shape, tf.int32))

    def _elements(self, encoded_tensors, columns: Sequence[Optional[int]], counts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns so many elements of each variable, flat; those of equal columns, or of none, are coded together."""
        dtype = encoded_tensors[self.STEP_KEY].dtype
        found: list[tf.Tensor] = [tf.zeros([0], dtype)] * len(counts)
        for own in dict.fromkeys([*columns, None]):
            at = [i for i, its in enumerate(columns) if its == own]
            its_counts = tf.stack([0, *(counts[i] for i in at)])
            total = tf.reduce_sum(its_counts)
            payload = encoded_tensors[self.REST_KEY if own is None else self.ELEMENTS_KEY.format(own)]
            levels = _levels(payload, [total] if own is None else [total // own, own], dtype)
            _, *parts = tf.split(tf.reshape(levels, [-1]), its_counts, num=len(at) + 1)
            for i, part in zip(at, parts):
                found[i] = part
        return found

    def _fitting_step(self, seen: Sequence[_Seen], norm: tf.Tensor) -> tf.Tensor:
        """Returns the largest step, in the unit of `seen`, with which no more of the squared norm is lost than may be."""
        largest = tf.constant(self._step, norm.dtype)
        if self._lost == 1:
            return largest

        def loses_too_much(step: tf.Tensor) -> tf.Tensor:
            kept = tf.add_n([one.best(step)[1] for one in seen]) * tf.square(step)
            return (kept < (1 - self._lost) * norm) & (step > largest / _FINER)

        return tf.while_loop(loses_too_much, lambda step: [step / 2**0.25], [largest])[0]

    def _shapes_of(self, shape) -> Sequence[Shape]:
        if self._shapes is not None:
            return self._shapes
        static_size(shape)
        static = shape if isinstance(shape, tf.TensorShape) else tf.get_static_value(tf.convert_to_tensor(shape))
        return [tuple(int(size) for size in static)]

    def _wide(self, levels: tf.Tensor) -> tf.Tensor:
        """Returns factors with as many columns as those of all variables."""
        return tf.pad(levels, [[0, 0], [0, self._rank - levels.shape[1]]])


def _of_choice(choice: tf.Tensor, elements: tf.Tensor, factors: tf.Tensor, views: Sequence[View], size: int) -> tf.Tensor:
    """Returns a variable in steps, flat, of what was chosen."""

    def product(m: int) -> tf.Tensor:
        a, b = factors[:m], factors[m:]
        return tf.reshape(tf.matmul(a * scales(a, b), b, transpose_b=True), [-1])

    nothing = lambda: tf.zeros([size], factors.dtype)  # noqa: E731
    return tf.switch_case(choice, [nothing, lambda: elements, *(lambda m=m: product(m) for m, _ in views)])


def _rounded(place: tf.Tensor) -> tf.Tensor:
    return cheapest(place, tf.round(place), PRICE) if place.shape[0] else place


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A variable and its matrices' components, in some unit.

    Attributes:
      elements: The variable, flat.
      norm: Its squared norm.
      sides: [m, rank] and [n, rank] of each of its views (`components`); none of a variable without views.
    """

    elements: tf.Tensor
    norm: tf.Tensor
    sides: list[tuple[tf.Tensor, tf.Tensor]]

    @classmethod
    def of(cls, elements: tf.Tensor, views: Sequence[View], rank: int) -> _Seen:
        """Returns a variable with the first components of its `views`."""
        matrices = [tf.reshape(elements, view) for view in views]
        norm = tf.reduce_sum(tf.square(elements))
        return cls(elements, norm, [built_once(components, _spec(x), rank=min(rank, *x.shape))(x) for x in matrices])

    def best(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Returns what to send, as the payload says it; about what that keeps of the squared norm; and all views' levels.

        What it keeps is in units of step^2.
        """
        of_elements = built_once(elements_in_steps, _spec(self.elements), _spec(self.norm), _spec(step))
        saved, kept = of_elements(self.elements, self.norm, step)
        if not self.sides:
            return tf.constant(1), kept, []
        found = [built_once(factor_levels, _spec(a), _spec(b))(a / step, b / step) for a, b in self.sides]
        nothing = tf.zeros_like(saved)
        choice = tf.argmax([nothing, saved, *(x.saved for x in found)], output_type=tf.int32)
        return choice, tf.gather([nothing, kept, *(x.kept for x in found)], choice), [x.levels for x in found]


def _spec(x: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(x.shape, x.dtype)


def elements_in_steps(elements: tf.Tensor, norm: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns about what rounded elements save and keep of the squared norm, in units of step^2.

    What they lose and their bits are found from a sample. What they keep would scatter with the largest elements in it.
    """
    size = elements.shape[0]
    if not size:
        return tf.zeros([], elements.dtype), tf.zeros([], elements.dtype)
    sample = elements[:: _stride(size)] / step
    levels = _rounded(sample)
    lost = tf.reduce_sum(tf.square(sample - levels))
    part = sample.shape[0] / size
    kept = norm / tf.square(step) - lost / part
    return kept - PRICE * bits(levels) / part, kept


def _stride(size: int) -> int:
    """Returns a distance between the elements of a sample. No dimension has a factor of it, so all rows and columns are seen."""
    stride = -(-size // _SAMPLE)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


class Factors(NamedTuple):
    """A matrix's rounded factors.

    Attributes:
      levels: [m + n, rank], with zeros where a component is left out.
      saved: What they keep, less the price of their bits.
      kept: What they keep of the squared norm.
    """

    levels: tf.Tensor
    saved: tf.Tensor
    kept: tf.Tensor


def factor_levels(a: tf.Tensor, b: tf.Tensor) -> Factors:
    """Returns what is sent of a matrix's components [m, rank] and [n, rank], which are in steps."""
    sides = [cheapest(side, tf.round(side), PRICE, axis=0) for side in (a, b)]
    singular = tf.norm(b, axis=0)
    scale = scales(*sides)
    agree = [tf.reduce_sum(side * exact, axis=0) for side, exact in zip(sides, (a, b))]
    norms = [tf.reduce_sum(tf.square(side), axis=0) for side in sides]
    kept = 2 * scale * tf.math.divide_no_nan(agree[0] * agree[1], singular) - tf.square(scale) * norms[0] * norms[1]
    saved = kept - PRICE * (bits(sides[0], axis=0) + bits(sides[1], axis=0))
    levels = tf.where(saved > 0, tf.concat(sides, axis=0), 0)
    return Factors(levels, tf.reduce_sum(tf.maximum(saved, 0)), tf.reduce_sum(tf.where(saved > 0, kept, 0)))


def scales(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns 1 / sqrt(|a| |b|) of the columns of rounded factors, [k]: 0 where one of them is zero."""
    norms = tf.reduce_sum(tf.square(a), axis=0) * tf.reduce_sum(tf.square(b), axis=0)
    return tf.math.divide_no_nan(tf.ones([], a.dtype), tf.sqrt(tf.sqrt(norms)))


def bits(levels: tf.Tensor, axis: Optional[int] = None) -> tf.Tensor:
    """Returns about what integers take, or those along `axis`: zeros by their share, geometric magnitudes, and signs."""
    size = tf.cast(tf.size(levels) if axis is None else tf.shape(levels)[axis], levels.dtype)
    magnitude = tf.reduce_sum(tf.abs(levels), axis=axis)
    others = tf.reduce_sum(tf.cast(tf.not_equal(levels, 0), levels.dtype), axis=axis)
    return _choices(others, size) + others + _choices(others, magnitude)


def _choices(k: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
    """Returns n times the entropy of a share of k / n."""
    return (tf.math.xlogy(n, n) - tf.math.xlogy(k, k) - tf.math.xlogy(n - k, n - k)) / math.log(2)


def _payload(levels: tf.Tensor, columns: Optional[int] = None) -> tf.Tensor:
    """Returns the entropy coder's payload of integers, or no bytes where all are 0."""
    flat = tf.reshape(levels, [-1])
    some = tf.reduce_any(tf.not_equal(flat, 0))
    payload = tf.cond(some, lambda: encode_integers(flat, columns), lambda: tf.zeros([0], tf.uint8))
    return tf.ensure_shape(payload, [None])


def _levels(payload: tf.Tensor, shape: list, dtype: tf.DType) -> tf.Tensor:
    """Undoes `_payload`."""
    shape = tf.stack(shape)
    return tf.cond(tf.size(payload) > 0, lambda: decode_integers(payload, shape, dtype), lambda: tf.zeros(shape, dtype))
