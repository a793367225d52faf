#!/usr/bin/env bash
# Prints the circles of files that import each other in src, benches and mount-tests; nothing if there is none. The test
# `circles` of the program `engine` checks that there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

built=${CARGO_TARGET_DIR:-target}/circles
mkdir -p "$(dirname "$built")"
CARGO_MANIFEST_DIR=$PWD rustc --edition 2024 -A dead_code -o "$built" scripts/circles.rs
exec "$built"
