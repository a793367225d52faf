#!/usr/bin/env bash
# Power cuts: the store on a loop-mounted filesystem that is shut down under the daemon; everything fsynced must be there.
# Usage: scripts/powercut.sh [ROUNDS on each filesystem, 50]   Needs root.   (PFIMG: program to use)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-50}
[ -n "${PFIMG:-}" ] || { cargo build --release --quiet; PFIMG=$PWD/target/release/pfimg; }
command -v xfs_io mkfs.xfs >/dev/null || { apt-get update -qq; apt-get install -y -qq xfsprogs >/dev/null; }
work=$(mktemp -d)
end() {
    "$PFIMG" umount "$work/mnt" >/dev/null 2>&1 || true
    umount -l "$work/disk" 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT
mkdir "$work/mnt" "$work/disk"
export PF_STORE=$work/disk/store HOME=$work

for type in ext4 xfs; do
    truncate -s 400M "$work/$type"
    "mkfs.$type" -q "$work/$type"
    mount -o loop "$work/$type" "$work/disk"
    "$PFIMG" fixture --world-files 20 --world-file-bytes 100000 >/dev/null
    sync
    for round in $(seq "$rounds"); do
        "$PFIMG" mount "$PF_STORE" "$work/mnt" >/dev/null
        mkdir "$work/mnt/forks/r$round@latest"
        : >"$work/said"
        python3 scripts/powercut.py write "$work/mnt/work/r$round/" "$round" >>"$work/said" 2>/dev/null &
        writer=$!
        until [ "$(wc -l <"$work/said")" -ge $((RANDOM % 60 + 1)) ]; do sleep 0.01; done
        before=$(wc -l <"$work/said")
        # Without flushing what the disk's journal has in memory.
        xfs_io -x -c shutdown "$work/disk"
        daemon=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$work/mnt/.pfimg/status.json")
        kill -9 "$daemon"
        wait "$writer" || true
        umount -l "$work/mnt"
        while kill -0 "$daemon" 2>/dev/null; do sleep 0.01; done
        umount "$work/disk"
        mount -o loop "$work/$type" "$work/disk"
        "$PFIMG" mount "$PF_STORE" "$work/mnt" >/dev/null
        python3 scripts/powercut.py check "$work/mnt/work/r$round/" "$work/said" "$before"
        "$PFIMG" umount "$work/mnt" >/dev/null
        "$PFIMG" discard "r$round" 2>/dev/null || [ "$before" -lt 2 ]
        echo "powercut: $type, round $round: $((before / 2)) files held"
    done
    umount "$work/disk"
done
