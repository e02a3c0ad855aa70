#!/bin/bash
# Makes FILE: a key and its certificate, the shared credential of a training and its workers.
set -euo pipefail
[ $# = 1 ] || { echo "usage: scripts/credential.sh FILE" >&2; exit 2; }
[ ! -e "$1" ] || { echo "error: Expected a new file, found $1." >&2; exit 2; }
umask 077
certificate=$(mktemp)
trap 'rm -f "$certificate" "$1.part"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=tff-kit \
    -addext subjectAltName=DNS:tff-kit -keyout "$1.part" -out "$certificate" 2>/dev/null
cat "$certificate" >> "$1.part"
mv "$1.part" "$1"
