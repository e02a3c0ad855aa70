#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment of each Python that is named, and says what it can do there:
#   bash scripts/try_wheel.sh python3.9 python3.13
# REQUIREMENTS="tensorflow==2.19.1" asks for other versions than the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$1" -m venv "$folder/build"
"$folder/build/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" .
for python in "$@"; do
    rm -rf "$folder/venv"
    "$python" -m venv "$folder/venv"
    # shellcheck disable=SC2086 # Several requirements are several words.
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "$folder"/tff_kit-*.whl ${REQUIREMENTS:-}
    (cd "$folder" && "venv/bin/python" - < "$OLDPWD/scripts/try_wheel.py")
done
