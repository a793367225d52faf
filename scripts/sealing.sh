#!/usr/bin/env bash
# Seals a fork eight times after ten changed files each; prints milliseconds as the caller sees them.
# Usage: scripts/sealing.sh [FILES in the image, 20000]   (PFIMG: program to use)
set -euo pipefail
cd "$(dirname "$0")/.."

[ -n "${PFIMG:-}" ] || { cargo build --release --quiet; PFIMG=$PWD/target/release/pfimg; }
work=$(mktemp -d)
end() { "$PFIMG" umount "$work/mnt" >/dev/null 2>&1 || true; rm -rf "$work"; }
trap end EXIT
mkdir "$work/mnt"
export PF_STORE=$work/store HOME=$work
"$PFIMG" fixture --world-files "${1:-20000}" --world-file-bytes 3000 >/dev/null
"$PFIMG" mount --seal manual "$PF_STORE" "$work/mnt" >/dev/null
mkdir "$work/mnt/forks/f@latest"
python3 - "$work/mnt" <<'PY'
import os, sys, time
mount = sys.argv[1]
root = mount + "/forks/f/world/fs/src"
names = sorted(os.listdir(root))
times = []
for seal in range(8):
    for n in range(10):
        with open(f"{root}/{names[(seal * 977 + n * 1999) % len(names)]}", "w") as file:
            file.write(f"changed {seal} {n}\n" * 20)
    begun = time.perf_counter()
    os.mkdir(f"{mount}/forks/f/.snap/s{seal}")
    times.append((time.perf_counter() - begun) * 1000)
times.sort()
print(f"{len(names)} files: {times[len(times) // 2]:.1f} ms ({times[0]:.1f}–{times[-1]:.1f})")
PY
