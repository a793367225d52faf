# The part of day.sh with a full disk, in a separate mount namespace: a store and a cache on filesystems of a few megabytes.
# Usage: unshare --mount bash day-full.sh PFIMG FOLDER
set -uo pipefail
P=$1 T=$2
same() { if [ "$2" = "$3" ]; then echo "ok   $1"; else echo "BAD  $1: got \"$(printf %s "$2" | tr '\n' ' ' | tail -c 300)\", wanted \"$3\""; fi; }
mkdir "$T/small" "$T/small-mnt" "$T/tree" "$T/tiny"
mount -t tmpfs -o size=12m none "$T/small" || exit 1
mount -t tmpfs -o size=1m none "$T/tiny" || exit 1
export PF_STORE=$T/small/store
head -c 2500000 /dev/urandom > "$T/tree/large"
echo small > "$T/tree/file"
"$P" import "$T/tree" --tag base > /dev/null 2>&1 || exit 1
M=$T/small-mnt
"$P" mount "$M" --seal manual --cache-dir "$T/tiny/cache" || exit 1
trap '"$P" umount "$M" >/dev/null 2>&1' EXIT

# The cache's folder has no space for a blob of this size.
same "a full cache folder keeps no file from being read" "$(cmp "$T/tree/large" "$M/tags/base/world/fs/large" 2>&1)" ""

"$P" fork base f > /dev/null
F=$M/forks/f/world/fs
echo kept > "$F/kept"
sync "$F/kept"
said=$(head -c 20000000 /dev/urandom 2>/dev/null | LC_ALL=C dd of="$F/huge" bs=64k 2>&1)
same "a full disk is reported as one" "$(grep -o 'No space left on device' <<< "$said" | head -1)" "No space left on device"
same "what was there stays" "$(cat "$F/kept" "$F/file" 2>&1 | tr '\n' ' ')" "kept small "
# The file has all bytes that dd counted.
written=$(stat -c %s "$F/huge")
same "what was taken is there" "$(head -c "$written" "$F/huge" | wc -c)" "$written"
rm "$F/huge"
for _ in $(seq 100); do head -c 1000000 /dev/zero | tr '\0' x > "$F/after" 2>/dev/null && break; rm -f "$F/after"; sleep 0.1; done
same "after a removal there is space again" "$(tr -d x < "$F/after" 2>&1 | wc -c) $(wc -c < "$F/after")" "0 1000000"
same "seal" "$("$P" seal f --tag after > /dev/null 2>"$T/said"; echo $?; cat "$T/said")" 0
same "umount" "$("$P" umount "$M" 2>&1; echo $?)" 0
same "verify finds no damage" "$("$P" verify > "$T/said" 2>&1; echo $?)" 0
same "the seal holds it" "$("$P" export after "$T/full-out" 2>"$T/said"; cat "$T/full-out/kept" 2>&1)" kept
