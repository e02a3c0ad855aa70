#!/usr/bin/env bash
# Resolves pyproject.toml into requirements.txt, the environment of the simulation, notebooks and tests: one list, of wheels only,
# that serves Python 3.9, 3.10 and 3.11.
set -euo pipefail
cd "$(dirname "$0")/.."

{
    cat <<'HEADER'
# Everything that is installed, closed and pinned; made by `make requirements`, to be installed with --no-deps.
# Resolved for Python 3.9, whose versions run on 3.10 and 3.11 as well. Odd ones:
#   jax, jaxlib 0.4.18           TFF 0.87.0 asks for 0.4.14, which the package index no longer has.
#   tensorflow 2.14.1, numpy, scipy, attrs, packaging, typing-extensions 4.5, old as TFF 0.87.0 asks. A typing-extensions
#                                from 4.6 on breaks tf.saved_model.save, and with it TFF's checkpoints.
#   sqlalchemy 1.4.54            google-vizier, which TFF asks for, wants <=1.4.20, which has no wheel for Python 3.11.
#   jupyterlab 4.5.6             The last one that starts with packaging 22.0, which TFF asks for.
#   setuptools 79.0.1            TensorBoard 2.14 imports pkg_resources, which setuptools warns of from 80.9 on, and has not from 82 on.
#   transformers 4.46.3          The last line that runs beside TensorFlow 2.14 and its Keras.
HEADER
    UV_PYTHON_DOWNLOADS=never uv pip compile pyproject.toml --extra simulation --extra notebooks --extra dev --quiet \
        --python-version 3.9 --python-platform x86_64-manylinux_2_31 --only-binary :all: --no-header --no-annotate
} > requirements.txt.part
mv requirements.txt.part requirements.txt
