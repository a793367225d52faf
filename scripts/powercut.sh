#!/usr/bin/env bash
# Power cuts: shuts down the loop-mounted filesystem of a store under the daemon. All fsynced data must survive.
# With `seal`, cuts the power during seals: acknowledged seals must survive, and no image may lack a blob.
# Usage: scripts/powercut.sh [ROUNDS on each filesystem, 50] [seal]   Needs root.   (PFIMG: program to use)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-50}
case ${2:-} in
    seal) seal=interval:5ms ;;
    *) seal=idle:5s ;;
esac
# In a separate mount namespace: a namespace that another program makes would copy these mounts, and keep the disk that was
# shut down in use.
[ -n "${IN_NAMESPACE:-}" ] || IN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
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

# Seals without a pause, and prints each finished seal.
sealer() {
    for n in $(seq 100000); do
        mkdir "$work/mnt/forks/r$1/.snap/r$1-$n" 2>/dev/null || return 0
        echo "r$1-$n" >>"$work/sealed"
    done
}

for type in ext4 xfs; do
    truncate -s 400M "$work/$type"
    "mkfs.$type" -q "$work/$type"
    mount -o loop "$work/$type" "$work/disk"
    "$PFIMG" fixture --world-files 20 --world-file-bytes 100000 >/dev/null
    # Does not use latest, which is a seal of the previous round.
    image=$(basename "$PF_STORE"/images/*.json .json)
    sync
    for round in $(seq "$rounds"); do
        "$PFIMG" mount --seal "$seal" "$PF_STORE" "$work/mnt" >/dev/null
        mkdir "$work/mnt/forks/r$round@$image"
        : >"$work/said"
        : >"$work/sealed"
        python3 scripts/powercut.py write "$work/mnt/work/r$round/" "$round" >>"$work/said" 2>/dev/null &
        workers=$!
        if [ "$seal" != idle:5s ]; then
            sealer "$round" &
            workers="$workers $!"
            until [ "$(wc -l <"$work/sealed")" -ge $((RANDOM % 6)) ]; do sleep 0.00$((RANDOM % 9 + 1)); done
        fi
        until [ "$(wc -l <"$work/said")" -ge $((RANDOM % 60 + 1)) ]; do sleep 0.01; done
        before=$(wc -l <"$work/said")
        sealed=$(cat "$work/sealed")
        # Without flushing what the disk's journal has in memory.
        xfs_io -x -c shutdown "$work/disk"
        daemon=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$work/mnt/.pfimg/status.json")
        kill -9 "$daemon"
        for worker in $workers; do wait "$worker" || true; done
        umount -l "$work/mnt"
        while kill -0 "$daemon" 2>/dev/null; do sleep 0.01; done
        umount "$work/disk"
        mount -o loop "$work/$type" "$work/disk"
        "$PFIMG" mount "$PF_STORE" "$work/mnt" >/dev/null
        python3 scripts/powercut.py check "$work/mnt/work/r$round/" "$work/said" "$before"
        # A torn blob that no image refers to is garbage.
        code=0; "$PFIMG" verify >"$work/verified" 2>&1 || code=$?
        # Its findings are checked below, and that it ran.
        { [ "$code" -eq 0 ] || [ "$code" -eq 4 ]; } && grep -q '^pfimg: verified ' "$work/verified" ||
            { cat "$work/verified"; exit 1; }
        if grep '^verify: ' "$work/verified" | grep -v 'odd-file\|no image that was looked at refers to it'; then exit 1; fi
        for name in $sealed; do
            [ -f "$work/mnt/tags/$name/manifest.json" ] || { echo "powercut: seal $name is gone" >&2; exit 1; }
        done
        "$PFIMG" umount "$work/mnt" >/dev/null
        "$PFIMG" discard --force "r$round" 2>/dev/null || [ "$before" -lt 2 ]
        echo "powercut: $type, round $round: $((before / 2)) files and $(wc -w <<<"$sealed") seals held"
    done
    umount "$work/disk"
done
