"""A variable as a matrix: which of its elements make a row, found from its shape and the model's other shapes.

A kernel's last dimension is its outputs, so that the dimensions before it are the rows: [5, 5, 32, 64] is 800 x 64. A dense layer
behind a flattened image has a kernel such as [128 * 384, 12], whose 12 columns leave nothing to gain. One of the factors of its
rows is then a dimension that other variables of the model have as well, as the filters of the layer before: 128. Images are
flattened with the channels first or last, so that there are two ways to cut the rows there, and the encoder takes the better.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

Shape = tuple[int, ...]
View = tuple[int, int]
"""Rows and columns."""

SMALLEST = 4096
"""Elements of the smallest variable that is worth factors: of smaller ones these save less than they take to say."""
_NARROW = 16  # Columns of a matrix that factors would hardly make smaller.
_SMALLEST_CUT = 2**15  # Elements of the smallest variable whose rows are worth cutting.


def matrix_views(shapes: Sequence[Shape]) -> list[tuple[View, ...]]:
    """Returns for each variable of a model the matrices that it may be seen as: none of a small one or a vector."""
    known = collections.Counter(size for shape in shapes for size in set(shape))
    return [_views(shape, known) for shape in shapes]


def _views(shape: Shape, known: collections.Counter) -> tuple[View, ...]:
    size = math.prod(shape)
    if size < SMALLEST or len(shape) < 2:
        return ()
    columns = shape[-1]
    rows = size // columns
    if rows >= _NARROW and columns >= _NARROW:
        return ((rows, columns),)
    longest = max(shape)
    others = [d for d in known if d >= _NARROW and d < longest and longest % d == 0]
    if size < _SMALLEST_CUT or columns >= _NARROW or rows != longest or not others:
        return ()
    # The factors of a component are smallest where the matrix is nearest to a square.
    factor = min(others, key=lambda d: (d + size // d, d))
    views = [(factor, size // factor), (rows // factor, factor * columns)]
    return tuple(dict.fromkeys(view for view in views if min(view) >= _NARROW))
