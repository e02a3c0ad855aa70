#!/bin/bash
# Trains on workers of other machines, each behind a tunnel of ssh and ended with it:
#     scripts/workers_over_ssh.sh "HOST HOST..." emnist --rounds 20
# Each HOST, as ssh knows it, has the project in FOLDER (by default the folder that it has here), with its .venv, and the data at
# the same path as here. Nobody else reaches the workers: they listen on their machines' loopback addresses, on PORT.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: scripts/workers_over_ssh.sh 'HOST HOST...' TASK [SETTINGS]" >&2; exit 2; }
read -ra hosts <<< "$1"
shift
folder=${FOLDER:-$PWD}
port=${PORT:-7000}
python=.venv/bin/python
addresses=()
tunnels=()
trap 'kill "${tunnels[@]}" 2>/dev/null || true' EXIT
for i in "${!hosts[@]}"; do
    address=127.0.0.1:$((port + i))
    ssh -o BatchMode=yes -o ExitOnForwardFailure=yes -L "$address:127.0.0.1:$port" "${hosts[i]}" \
        "cd ${folder@Q} && exec $python -m tff_kit worker --port $port" < /dev/null > /dev/null &  # The worker ends with its connection.
    tunnels+=($!)
    addresses+=("$address")
done
"$python" -m tff_kit train "$@" --workers "$(IFS=,; echo "${addresses[*]}")"
