#!/usr/bin/env bash
# Checks that the installed pf and this program can use each other's images in one store. Fails at the first error.
# Usage: scripts/interop.sh   (PFIMG, PF: programs to use; without PF it is installed, which takes minutes)
set -euo pipefail
cd "$(dirname "$0")/.."

[ -n "${PFIMG:-}" ] || { cargo build --release --quiet; PFIMG=$PWD/target/release/pfimg; }
PF=${PF:-$(command -v pf || true)}
if [ -z "$PF" ]; then
    cargo install --quiet --locked processfork --version 1.0.15 --root target/pf
    PF=$PWD/target/pf/bin/pf
fi
work=$(mktemp -d)
end() { "$PFIMG" umount "$work/mnt" >/dev/null 2>&1 || true; rm -rf "$work"; }
trap end EXIT
trap 'echo "interop: failed in line $LINENO" >&2' ERR
mkdir -p "$work/mnt" "$work/tree/src"
export PF_STORE=$work/store HOME=$work
mnt=$work/mnt
says() { echo "interop: $*"; }
id() { basename "$(readlink "$mnt/$1")"; }
# Waits for an image that pf made to be seen.
seen() { for _ in $(seq 200); do [ -e "$mnt/images/$1/manifest.json" ] && return; sleep 0.05; done; false; }
same() { diff -r --no-dereference -x .pfcid -x fifo "$1" "$2"; }
effect() { printf '{"ts":"2026-05-05T14:11:0%sZ","tool_id":"t","args_hash":"sha256:%064d","idempotency_key":"k%s","result_hash":"sha256:%064d","side_effect_class":"pure"}\n' "$1" "$1" "$1" "$1"; }
all_verify() { "$PF" verify --fail-on-unverifiable-ledgers >/dev/null; "$PFIMG" verify >/dev/null; }
# pf's merges have a ledger without a chain, which pf skips: there are two of them, and every other ledger verifies.
merged_verify() { "$PF" verify | grep -q ' 0 bad\. effects ledgers: .* 0 bad, 2 skipped'; "$PFIMG" verify >/dev/null; }

for file in left right both; do echo "$file of the base" >"$work/tree/src/$file"; done
ln -s src/left "$work/tree/link"
echo '{"role":"user","content":"hello"}' >"$work/trace"
effect 1 >"$work/effects"
base=$("$PF" snapshot --fs-root "$work/tree" --allow-empty-engine-layers --trace-from-jsonl "$work/trace" \
    --effects-from-jsonl "$work/effects" 2>/dev/null | grep -o 'sha256:[0-9a-f]*' | tail -n 1)
"$PFIMG" mount --seal manual "$PF_STORE" "$mnt" >/dev/null
same "$work/tree" "$mnt/images/${base#*:}/world/fs"
says "a snapshot of pf's is mounted as it was taken"

for fork in a b c unsealed; do mkdir "$mnt/forks/$fork@$base"; done
echo "left of a" >"$mnt/work/a/src/left"
mkfifo "$mnt/work/a/fifo"; ln "$mnt/work/a/src/left" "$mnt/work/a/twin"; touch -d 2001-02-03 "$mnt/work/a/src/both"
effect 2 >>"$mnt/forks/a/effects/ledger.jsonl"
echo '{"role":"assistant","content":"hi"}' >>"$mnt/forks/a/trace/messages.jsonl"
echo "right of b" >"$mnt/work/b/src/right"; effect 3 >>"$mnt/forks/b/effects/ledger.jsonl"
echo "left of c" >"$mnt/work/c/src/left"
for fork in a b c; do mkdir "$mnt/forks/$fork/.snap/sealed-$fork"; done
a=$(id tags/sealed-a) b=$(id tags/sealed-b) c=$(id tags/sealed-c)
all_verify
says "what was sealed verifies, ledgers too"
"$PF" log >"$work/log"
for image in "$a" "$b" "$c"; do grep -q "${image:0:12}" "$work/log"; done
"$PF" checkout "sha256:$a" --into "$work/out" >/dev/null
same "$work/out" "$mnt/work/a/"
"$PF" diff "$base" "sha256:$a" >"$work/diff"
grep -q '^+ world.fs' "$work/diff"; grep -q '^+ effects.ledger' "$work/diff"; grep -q '^  model.diff' "$work/diff"
for child in $("$PF" fork "sha256:$a" -n 2 | grep -o '[0-9a-f]\{64\}'); do
    seen "$child"; same "$mnt/images/$child/world/fs" "$mnt/work/a/"
done
says "log, checkout, diff and fork"

merge() { "$PF" merge "sha256:$1" --into "sha256:$2" 2>/dev/null | sed -n 's/^merged *: sha256://p'; }
merged=$(merge "$b" "$a"); seen "$merged"
mkdir "$mnt/forks/merged@$merged"
[ "$(cat "$mnt"/work/merged/src/{left,right})" = "left of a"$'\n'"right of b" ]
conflict=$(merge "$c" "$a") && { says "a conflict was not told"; exit 1; } || [ $? -eq 3 ]
seen "$conflict"
mkdir "$mnt/forks/resolved@$conflict"
grep -q '^<<<<<<< A' "$mnt/work/resolved/src/left"
echo "left of both" >"$mnt/work/resolved/src/left"
for fork in merged resolved; do
    effect 4 >>"$mnt/forks/$fork/effects/ledger.jsonl"; mkdir "$mnt/forks/$fork/.snap/sealed-$fork"
    "$PF" checkout "sha256:$(id "tags/sealed-$fork")" --into "$work/$fork" >/dev/null
    same "$work/$fork" "$mnt/work/$fork/"
done
merged_verify
says "siblings are merged, clean and in conflict, and forks of both sealed"

# Does not use a: pf opens a fifo and waits for ever.
snapshot=$("$PF" snapshot --fs-root "$mnt/work/b/" --allow-empty-engine-layers --parent "sha256:$b" 2>/dev/null | grep -o '[0-9a-f]\{64\}' | tail -n 1)
seen "$snapshot"; same "$mnt/images/$snapshot/world/fs" "$mnt/work/b/"
says "a snapshot of pf's of a mounted fork is what the fork is"

echo "not sealed" >"$mnt/work/unsealed/src/left"; head -c 300000 /dev/urandom >"$mnt/work/unsealed/large"
cp -r "$mnt/work/unsealed/" "$work/unsealed"
# Blobs of a removed image are garbage: gc must delete them, and no others.
mkdir "$work/garbage"; head -c 5000 /dev/urandom >"$work/garbage/file"
digest=$(sha256sum <"$work/garbage/file" | cut -c -64); garbage=$PF_STORE/blobs/sha256/${digest:0:2}/$digest.zst
gone=$("$PFIMG" import "$work/garbage" 2>/dev/null); [ -f "$garbage" ]
rm "$PF_STORE/images/${gone#sha256:}.json"
"$PF" gc >/dev/null
[ ! -e "$garbage" ] || { echo "interop: pf gc took no garbage" >&2; exit 1; }
merged_verify
for fork in a b c merged resolved; do same "$mnt/work/$fork/" "$mnt/tags/sealed-$fork/world/fs"; done
same "$work/unsealed" "$mnt/work/unsealed/"
"$PFIMG" umount "$mnt" >/dev/null; "$PFIMG" mount --seal manual "$PF_STORE" "$mnt" >/dev/null
same "$work/unsealed" "$mnt/work/unsealed/"; same "$work/out" "$mnt/work/a/"
says "gc takes no file of pfimg"
