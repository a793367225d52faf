#!/usr/bin/env bash
# Random operations on files of a fork that begin as files of an image, in both write modes; fails at the first mismatch.
# Usage: scripts/fsx.sh [OPERATIONS for each seed, 100000] [SEEDS, 8] [MODES, "through back"]   (PFIMG, FSX: programs to use)
set -euo pipefail
cd "$(dirname "$0")/.."

operations=${1:-100000}
seeds=${2:-8}
modes=${3:-through back}
[ -n "${PFIMG:-}" ] || { cargo build --release --quiet; PFIMG=$PWD/target/release/pfimg; }
FSX=${FSX:-$(command -v fsx || true)}
[ -n "$FSX" ] || { cargo install --locked --quiet fsx@0.3.2; FSX=${CARGO_HOME:-$HOME/.cargo}/bin/fsx; }

work=$(mktemp -d)
end() { "$PFIMG" umount "$work/mnt" >/dev/null 2>&1 || true; rm -rf "$work"; }
trap end EXIT
mkdir "$work/mnt"
export PF_STORE=$work/store HOME=$work

# The second kind keeps the file's length, so that bytes of the base stay in the file for longer.
weights='invalidate = 2
mapread = 10
mapwrite = 10
read = 10
write = 10
fsync = 0.2
fdatasync = 0.2
punch_hole = 4
copy_file_range = 6
sendfile = 2
posix_fadvise = 2'
printf '[weights]\ntruncate = 6\nclose_open = 4\nposix_fallocate = 4\n%s\n' "$weights" >"$work/free.toml"
printf 'blockmode = true\n[weights]\ntruncate = 0\n%s\n' "$weights" >"$work/fixed.toml"

"$PFIMG" fixture --world-files "$seeds" --world-file-bytes 262144 >/dev/null
failed=0
for writes in $modes; do
    "$PFIMG" mount --writes "$writes" "$PF_STORE" "$work/mnt" >/dev/null
    for kind in free fixed; do
        mkdir "$work/mnt/forks/$writes-$kind@latest"
        mapfile -t files < <(find "$work/mnt/work/$writes-$kind/" -type f | sort)
        for seed in $(seq "$seeds"); do
            if "$FSX" -S "$seed" -N "$operations" -P "$work" -f "$work/$kind.toml" "${files[seed - 1]}" >"$work/log" 2>&1
            then echo "fsx: writes $writes, $kind, seed $seed: $operations operations held"
            else failed=$((failed + 1)); tail -n 60 "$work/log"; echo "fsx: writes $writes, $kind, seed $seed: FAILED"; fi
        done
    done
    "$PFIMG" umount "$work/mnt" >/dev/null
done
[ "$failed" = 0 ] || { echo "fsx: $failed runs failed" >&2; exit 1; }
