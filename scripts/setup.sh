#!/usr/bin/env bash
# Makes .venv from requirements.txt with a Python that TensorFlow Federated 0.87 runs on.
set -euo pipefail
cd "$(dirname "$0")/.."

needs="tff_kit needs Python 3.9, 3.10 or 3.11 on Linux x86-64 with glibc 2.31 or newer, the only ones for which TensorFlow Federated 0.87 exists"

if [[ "$(uname -s) $(uname -m)" != "Linux x86_64" ]]; then
    echo "error: $needs; this is $(uname -s) $(uname -m)." >&2
    exit 1
fi
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2 || true)
if [[ -z "$glibc" || "$(printf '%s\n' 2.31 "$glibc" | sort -V | head -1)" != 2.31 ]]; then
    echo "error: $needs; this system has ${glibc:-no glibc}." >&2
    exit 1
fi

runs_here() { # That it starts is not enough: a shim may name a version that isn't installed; and it needs venv.
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null
}

python=
for candidate in ${PYTHON_FOR_VENV:-} python3.11 python3.10 python3.9 python3 python; do
    if command -v "$candidate" >/dev/null && runs_here "$candidate"; then
        python=$candidate
        break
    fi
done
if [[ -z "$python" ]]; then
    echo "error: $needs; found $(python3 --version 2>/dev/null || echo 'no python3') and no other python3.x with venv." \
         "Install one, such as python3.11 and python3.11-venv." >&2
    exit 1
fi

echo "Making .venv with $("$python" --version)."
rm -rf .venv
"$python" -m venv .venv
# The list is closed, so nothing is resolved again: TFF's own pins can't be met (see requirements.txt).
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r requirements.txt
