#!/bin/bash
# Trains on two workers of this machine, which end with it: scripts/train_cluster.sh PYTHON ARGUMENTS_OF_TRAIN
set -euo pipefail
python=$1
shift
folder=$(mktemp -d)
workers=()
trap 'kill "${workers[@]}" 2>/dev/null || true; rm -rf "$folder"' EXIT
for i in 1 2; do
    "$python" -m tff_kit worker --port 0 > "$folder/$i" &
    workers+=($!)
done
addresses=()
for i in 1 2; do
    until address=$(sed -n 's/^worker at \(.*\), plain text$/\1/p' "$folder/$i") && [ -n "$address" ]; do
        kill -0 "${workers[i - 1]}" 2>/dev/null || { echo "error: Expected a worker to start, but it ended." >&2; exit 2; }
        sleep 0.1
    done
    addresses+=("$address")
done
"$python" -m tff_kit train "$@" --workers "$(IFS=,; echo "${addresses[*]}")"
