#!/usr/bin/env bash
# The POSIX suite pjdfstest on a fork, as root; fails if one of its tests does.
# Usage: scripts/pjdfstest.sh [through|back]   (PFIMG, PJDFSTEST: programs to use)
set -euo pipefail
cd "$(dirname "$0")/.."

writes=${1:-through}
[ -n "${PFIMG:-}" ] || { cargo build --release --quiet; PFIMG=$PWD/target/release/pfimg; }
PJDFSTEST=${PJDFSTEST:-$(command -v pjdfstest || true)}
[ -n "$PJDFSTEST" ] || {
    cargo install --locked --quiet pjdfstest@0.2.2
    PJDFSTEST=${CARGO_HOME:-$HOME/.cargo}/bin/pjdfstest
}
getent group nogroup >/dev/null || groupadd nogroup
id -u "nobody" >/dev/null 2>&1 || useradd -g nogroup "nobody"
id -u pjdtest >/dev/null 2>&1 || useradd -M pjdtest

work=$(mktemp -d)
chmod 755 "$work"
end() { "$PFIMG" umount "$work/mnt" >/dev/null 2>&1 || true; rm -rf "$work"; }
trap end EXIT
mkdir "$work/mnt"
export PF_STORE=$work/store HOME=$work
cat >"$work/config.toml" <<'TOML'
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
rename_ctime = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["pjdtest", "pjdtest"]]
TOML

"$PFIMG" fixture >/dev/null
"$PFIMG" mount --writes "$writes" -o suid,dev --allow-other "$PF_STORE" "$work/mnt" >/dev/null
mkdir "$work/mnt/forks/pjd@latest"
"$PJDFSTEST" -c "$work/config.toml" -p "$work/mnt/work/pjd/" | tee "$work/out" | grep -E 'FAILED|Summary' || true
grep -q '^Summary: 0 failed' "$work/out"
