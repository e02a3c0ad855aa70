"""Graphs that are built once and called from others."""

import tensorflow as tf

from tff_kit.encoders.graphs import built_once

_BUILT = []


def _shifted(x, by):
    _BUILT.append(by)
    return x + by


def test_graphs_share_one_for_the_same_constants_and_it_computes_what_the_function_does():
    _BUILT.clear()
    spec = tf.TensorSpec([None], tf.float32)
    for by in (1.0, 2.0, 1.0, 2.0):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            assert session.run(built_once(_shifted, spec, by=by)(tf.constant([5.0, 6.0]))).tolist() == [5 + by, 6 + by]
    assert sorted(_BUILT) == [1.0, 2.0]


def test_without_a_graph_the_function_itself_is_called():
    _BUILT.clear()
    assert built_once(_shifted, tf.TensorSpec([], tf.float32), by=3.0)(tf.constant(1.0)).numpy() == 4.0
    assert _BUILT == [3.0]
