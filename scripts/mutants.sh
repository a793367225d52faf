#!/usr/bin/env bash
# Changes the code line by line and runs the unit tests against each change. Prints the changes that no test notices.
# Over the audit, the crash packs, the oracles, tags, manifests, fixtures and the registry of forks.
# Usage: scripts/mutants.sh [FILE…]   (a path as git lists it; JOBS, 2: how many changes are tried at once; SHARD, 1/8)
# IN_PLACE=1 changes this working tree instead of copies, one change at a time: it needs no first build.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v cargo-mutants >/dev/null || cargo install cargo-mutants --locked

files=("$@")
if [ ${#files[@]} = 0 ]; then
    files=('src/audit/*.rs' 'src/crashpack.rs' 'src/crashpack/*.rs' 'src/oracle.rs' 'src/ops/recover.rs' 'src/store/tags.rs'
        'src/store/copy_tag.rs' 'src/store/manifest.rs' 'src/ops/fixture.rs' 'src/fork/registry/*.rs')
fi
for file in "${files[@]}"; do args+=(--file "$file"); done
# Runs only the tests of the changed module: all unit tests would take minutes for each change.
tests=(audit crashpack oracle recover store::tags store::manifest fixture fork verify)
# Functions that only write to a terminal or to the log of a daemon, and those that tests use.
skip=('impl Debug for' 'impl fmt::Debug' 'failing')
for pattern in "${skip[@]}"; do args+=(--exclude-re "$pattern"); done
[ -z "${SHARD:-}" ] || args+=(--shard "$SHARD")
if [ -n "${IN_PLACE:-}" ]; then args+=(--in-place); else args+=(--jobs "${JOBS:-2}"); fi
exec cargo mutants --output target --minimum-test-timeout 60 --baseline=skip --timeout 300 \
    --cap-lints=true "${args[@]}" -- --lib -- "${tests[@]}"
