#!/usr/bin/env bash
# Checks the dependencies by deny.toml: known vulnerabilities, licences, where they come from.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v cargo-deny >/dev/null || cargo install cargo-deny --locked
cargo deny check "$@"
