#!/usr/bin/env bash
# Runs all tests: unit tests and real mounts. Without /dev/fuse they fail and say so.
# Installs what is missing as root; as an ordinary user it names the line to type. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup test
exec cargo test "$@"
