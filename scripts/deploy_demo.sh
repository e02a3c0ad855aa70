#!/usr/bin/env bash
# A server and two clients on this machine, with TLS and authentication: three rounds on real digits. Ends by itself.
set -euo pipefail
python=${1:?usage: scripts/deploy_demo.sh PYTHON [SETTINGS OF SERVE]}
shift

work=$(mktemp -d)
clients=()
end() {
    [ ${#clients[@]} = 0 ] || kill "${clients[@]}" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap end EXIT

address=127.0.0.1:$("$python" -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
"$python" -m tff_kit credential "$work/credentials" --nodes form00 form01
"$python" -m tff_kit partition emnist --data digits --only form00 form01 --out "$work/data"
for client in form00 form01; do
    "$python" -m tff_kit join "$address" emnist --data "$work/data/$client" --credential "$work/credentials/$client" &
    clients+=($!)
done
"$python" -m tff_kit serve emnist --data digits --clients 2 --rounds 3 --broadcast uniform:8 --mean uniform:8 \
    --address "$address" --credential "$work/credentials/server" "$@"
