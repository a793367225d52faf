#!/usr/bin/env bash
# Prints the circles of files that import each other in src, benches and mount-tests; nothing if there is none. `--lower`
# deletes the rows of scripts/circles.txt whose arrow is gone. The test `circles` of the program `engine` checks the list.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
--lower | '') ;;
*)
    echo "usage: scripts/circles.sh [--lower]" >&2
    exit 2
    ;;
esac

built=${CARGO_TARGET_DIR:-target}/circles
mkdir -p "$(dirname "$built")"
CARGO_MANIFEST_DIR=$PWD rustc --edition 2024 -A dead_code -o "$built" scripts/circles.rs
exec "$built" "$@"
