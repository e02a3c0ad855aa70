#!/usr/bin/env bash
# Makes .venv-deploy from requirements-deploy.txt: what a server and its clients need, without TensorFlow Federated.
set -euo pipefail
cd "$(dirname "$0")/.."

needs="A deployment needs Python 3.11 with venv, on Linux x86-64 or aarch64"
python=
for candidate in ${PYTHON_FOR_VENV:-} python3.11 python3; do
    if command -v "$candidate" >/dev/null \
        && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [[ -z "$python" ]]; then
    echo "error: $needs; found $(python3 --version 2>/dev/null || echo 'no python3'). Install python3.11 and python3.11-venv." >&2
    exit 1
fi

echo "Making .venv-deploy with $("$python" --version)."
rm -rf .venv-deploy
"$python" -m venv .venv-deploy
# The list is closed, so nothing is resolved again.
.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r requirements-deploy.txt
# Flower starts its apps wherever it likes, and they find tff_kit here.
pwd > "$(.venv-deploy/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tff_kit.pth"
