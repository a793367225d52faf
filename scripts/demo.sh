#!/usr/bin/env bash
# Builds pfimg and runs its demo: makes a store, mounts it, makes forks and seals, restores one, removes everything.
# Installs what is missing as root; as an ordinary user it names the line to type. Arguments go to `pfimg demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup demo
exec cargo run --release -- demo "$@"
