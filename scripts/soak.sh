#!/usr/bin/env bash
# Tests that take too long for every run: many forks written at once, kill rounds, isolation programs.
# Usage: scripts/soak.sh [KILL ROUNDS, 200] [ISOLATION RUNS, 20000] [SECONDS of 64 writers, 60]   (PFIMG: program to use)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-200} runs=${2:-20000} seconds=${3:-60}
[ -n "${PFIMG:-}" ] || { cargo build --release --quiet; PFIMG=$PWD/target/release/pfimg; }
work=$(mktemp -d)
end() { "$PFIMG" umount "$work/mnt" >/dev/null 2>&1 || true; rm -rf "$work"; }
trap end EXIT
mkdir "$work/mnt"
export PF_STORE=$work/store
"$PFIMG" fixture >/dev/null
HOME=$work "$PFIMG" mount "$PF_STORE" "$work/mnt" >/dev/null
pid=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$work/mnt/.pfimg/status.json")
memory() { awk '/VmRSS/ { print $2 }' "/proc/$pid/status"; }

write() {
    set -e
    cd "$work/mnt/work/f$1/"
    for ((n = 0; SECONDS < end_at; n++)); do
        echo "$1 $n" >"own-$((n % 50))"; echo "$1 $n" >>log; mkdir -p "d$((n % 9))"
        mv "own-$((n % 50))" "d$((n % 9))/moved"
        [ "$(cat "d$((n % 9))/moved")" = "$1 $n" ]
        [ $((n % 200)) -ne 199 ] || : >log
    done
    # In the end every moved file must exist, and the log must not have a line of another fork.
    [ -f d0/moved ] && [ -f log ] && ! cat d*/moved log | grep -v "^$1 "
}
for n in $(seq 64); do mkdir "$work/mnt/forks/f$n@latest"; done
end_at=$((SECONDS + seconds / 4)) writers=()
for phase in warm full; do
    writers=()
    for n in $(seq 64); do write "$n" & writers+=($!); done
    for writer in "${writers[@]}"; do wait "$writer"; done
    [ $phase = full ] || { before=$(memory); end_at=$((SECONDS + seconds)); }
done
after=$(memory)
echo "soak: 64 writers for $seconds s: no error; $before KiB resident at first, $after KiB at the end"
[ "$after" -lt $((before * 2)) ] || { echo "soak: the memory grew" >&2; exit 1; }
for n in $(seq 64); do rm -rf "$work/mnt/forks/f$n"; done
du -sk "$work/store/forks"
PFIMG_ROUNDS=$rounds cargo test --release --test long fork_crash:: -- --nocapture
PFIMG_RUNS=$runs cargo test --release --test mount fork_isolation:: -- --nocapture
