#!/bin/sh
# Fuzzes every parser for a while; fails if one panics, or takes too much time or memory.
# Usage: scripts/fuzz.sh [SECONDS for each target, 60 if not said] [TARGET…]
# Failing inputs are kept in scripts/fuzz/artifacts/, other useful inputs in scripts/fuzz/corpus/ (neither is committed).
set -eu
cd "$(dirname "$0")/fuzz"

seconds=${1:-60}
[ $# -eq 0 ] || shift
cargo +nightly fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked

# This folder is the fuzz crate itself, where cargo-fuzz looks for one named fuzz.
fuzz() { command=$1; shift; cargo +nightly fuzz "$command" --fuzz-dir . "$@"; }

fuzz build
[ $# -gt 0 ] || set -- $(fuzz list)
failed=
for target; do
    mkdir -p "corpus/$target"
    echo "fuzz: $target for $seconds s"
    # 8 KiB of input is enough for these formats. An input that takes more than 10 s or 1 GiB is a failure.
    fuzz run "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=1024 -verbosity=0 || failed="$failed $target"
done
[ -z "$failed" ] || { echo "fuzz: failed:$failed" >&2; exit 1; }
echo "fuzz: all held"
