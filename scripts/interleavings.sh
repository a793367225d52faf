#!/usr/bin/env bash
# Searches interleavings of the forks' threads: discards, renames, branches, seals and checkpoints at the same time.
# Usage: scripts/interleavings.sh [SCHEDULES of each test, 20000]
# A test that fails prints its schedule: PFIMG_SCHEDULE=… cargo test --lib NAME runs that one again.
set -euo pipefail
cd "$(dirname "$0")/.."

schedules=${1:-20000}
# Runs the tests without `cargo test`, in order to print the time of each.
tests=$(cargo test --lib --no-run --message-format=json --quiet | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
for name in $("$tests" fork::interleavings --list 2>/dev/null | sed -n 's/: test$//p'); do
    start=$SECONDS
    if PFIMG_SCHEDULES=$schedules "$tests" "$name" --exact >"$log" 2>&1; then
        echo "ok   $((SECONDS - start)) s  ${name##*::}"
    else
        echo "BAD  $((SECONDS - start)) s  ${name##*::}"
        grep -m 1 -A 12 "failing schedule" "$log" || cat "$log"
        failed=1
    fi
done
exit $failed
