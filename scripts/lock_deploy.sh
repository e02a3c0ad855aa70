#!/usr/bin/env bash
# Resolves requirements-deploy.in into requirements-deploy.txt: one list, of wheels only, for x86-64 and aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work" requirements-deploy.txt.part' EXIT
python3 -m venv "$work/uv"
"$work/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv

for machine in x86_64 aarch64; do
    UV_PYTHON_DOWNLOADS=never "$work/uv/bin/uv" pip compile requirements-deploy.in --no-config --quiet --python-version 3.11 \
        --python-platform "$machine-manylinux_2_31" --only-binary :all: --no-header --no-annotate > "$work/$machine.txt"
done
diff "$work/x86_64.txt" "$work/aarch64.txt" || { echo "error: Expected one list for both machines, found two." >&2; exit 1; }
{
    echo "# What server and clients of a deployment have installed, closed and pinned; made by \`make lock-deploy\` for Python 3.11"
    echo "# on x86-64 and aarch64, to be installed with --no-deps."
    cat "$work/x86_64.txt"
} > requirements-deploy.txt.part
mv requirements-deploy.txt.part requirements-deploy.txt
