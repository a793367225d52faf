#!/usr/bin/env bash
# A day of work with pfimg: mounts, imports, runs everyday programs in forks, restores, fills a disk, stops a foreign daemon.
# Usage: scripts/day.sh [PFIMG]     as root or as an ordinary user; no network but loopback
#
# Prints `ok` or `BAD` for each check of the files on the disk, and a summary at the end. The exit code is 1 if a check is BAD.
# Steps that are impossible on this machine are skipped, with the reason.
set -uo pipefail
umask 022
cd "$(dirname "$0")/.."
P=${1:-${PFIMG:-}}
if [ -z "$P" ]; then
  . scripts/setup.sh
  setup test
  cargo build --release --quiet || exit 1
  P=${CARGO_TARGET_DIR:-target}/release/pfimg
fi
P=$(realpath "$P")
scripts=$PWD/scripts

good=0 bad=0 skipped=0
ok() { good=$((good + 1)); echo "ok   $1"; }
skip() { skipped=$((skipped + 1)); echo "skip $1: $2"; }
# same WHAT GOT WANTED
same() {
  if [ "$2" = "$3" ]; then ok "$1"; return; fi
  bad=$((bad + 1))
  echo "BAD  $1: got \"$(printf %s "$2" | tr '\n' ' ' | tail -c 300)\", wanted \"$3\""
}
# does WHAT COMMAND…: the command succeeds.
does() {
  local what=$1 said
  shift
  if said=$(timeout -k 5 120 "$@" 2>&1); then ok "$what"; else same "$what" "exit $? $said" "exit 0"; fi
}
has() { command -v "$1" >/dev/null; }

T=$(mktemp -d "${TMPDIR:-/tmp}/pfimg-day.XXXXXX")
T=$(realpath "$T")
chmod 755 "$T"
stopped=() mounts=()
end() {
  cd /
  local it
  for it in "${stopped[@]}"; do kill -CONT "$it" 2>/dev/null; done
  # Only jobs of this script that still run: another program may have the number of an ended one.
  for it in $(jobs -rp); do kill "$it" 2>/dev/null; done
  for it in "${mounts[@]}"; do
    mountpoint -q "$it" && { timeout -k 3 30 "$P" umount "$it" >/dev/null 2>&1 || umount -l "$it" 2>/dev/null || fusermount3 -uz "$it"; }
  done
  # The daemons may still write their last lines.
  for _ in $(seq 50); do rm -rf --one-file-system "$T" 2>/dev/null && break; sleep 0.1; done
}
trap end EXIT
trap 'exit 130' INT TERM HUP

export HOME=$T/home XDG_CACHE_HOME=$T/cache XDG_STATE_HOME=$T/state PF_STORE=$T/store TZ=UTC LC_ALL=C.UTF-8
unset XDG_CONFIG_HOME PF_SESSION_SECRET MAKEFLAGS ${!GIT_@} ${!PYTHON@} ${!npm_config_@} ${!PIP_@} VIRTUAL_ENV
mkdir -p "$HOME" "$T/mnt" "$T/project"
M=$T/mnt
files() { echo "$M/forks/$1/world/fs"; }
run() { timeout -k 5 300 "$P" run --quiet "$@"; }

echo "== morning: a project is imported and mounted"
cd "$T/project"
git init -q -b main .
git config user.name Day; git config user.email day@localhost
cat > main.c <<'C'
#include <stdio.h>
int main(void) { puts("first"); return 0; }
C
printf 'main: main.c\n\tcc -o main main.c\n' > Makefile
head -c 3000000 /dev/urandom > data.bin
printf '.npm-cache/\n' > .pfignore
git add .; git commit -qm first
sum=$(sha256sum < data.bin)
state() { find . -type f -not -path './.git/*' -exec sha256sum {} + | sort | sha256sum; git rev-parse HEAD; git status --porcelain; }
untouched=$(state)
cd "$T"
does "import makes an image with a tag" "$P" import project --tag base
does "mount" "$P" mount "$M" --seal manual
mounts+=("$M")
same "the image shows the project" "$(diff -r "$T/project" "$M/tags/base/world/fs" 2>&1 | grep -v socket)" ""
same "nothing shows 1970" "$(find "$M/tags/base/" -not -newermt 1971-01-01 2>&1 | head -1)" ""

echo "== a run with ssh and git"
if has ssh; then
  mkdir "$T/ssh"
  # A proxy that creates a file when ssh starts it, which shows that ssh accepted its settings.
  printf 'Include /etc/ssh/ssh_config\nHost far\n  ProxyCommand touch reached; exit 1\n' > "$T/ssh/config"
  printf '#!/bin/sh\nexec ssh -F %s/ssh/config "$@"\n' "$T" > "$T/ssh/ssh"
  chmod 755 "$T/ssh/ssh"
  run --read "$T/ssh" net@base ssh -F "$T/ssh/config" far true > "$T/said" 2>&1
  same "ssh accepts the system's settings and starts its proxy" "$(ls "$(files net)/reached" 2>/dev/null || cat "$T/said")" "$(files net)/reached"
  rm -f "$(files net)/reached"
  run --read "$T/ssh" net env "GIT_SSH=$T/ssh/ssh" git ls-remote ssh://far/x > "$T/said" 2>&1
  same "git over ssh does too" "$(ls "$(files net)/reached" 2>/dev/null || cat "$T/said")" "$(files net)/reached"
  sshd=$(PATH=$PATH:/usr/sbin; command -v sshd)
  if [ -n "$sshd" ]; then
    port=$((20000 + RANDOM % 20000))
    for key in host user; do ssh-keygen -q -t ed25519 -N '' -f "$T/ssh/$key"; done
    cp "$T/ssh/user.pub" "$T/ssh/authorized"
    git clone -q --bare "$T/project" "$T/ssh/remote.git"
    "$sshd" -D -e -f /dev/null -h "$T/ssh/host" -p $port -o ListenAddress=127.0.0.1 -o StrictModes=no -o UsePAM=no \
      -o PidFile=none -o "AuthorizedKeysFile=$T/ssh/authorized" -o PermitRootLogin=yes > "$T/ssh/log" 2>&1 &
    for _ in $(seq 50); do grep -q listening "$T/ssh/log" && break; sleep 0.1; done
    printf 'Host near\n  HostName 127.0.0.1\n  Port %s\n  IdentityFile %s/ssh/user\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n' \
      $port "$T" >> "$T/ssh/config"
    if [ "$(timeout 20 ssh -F "$T/ssh/config" near echo there 2>/dev/null)" = there ]; then
      same "ssh runs a command at a server" "$(run --read "$T/ssh" net ssh -F "$T/ssh/config" near echo there 2>/dev/null)" there
      run --read "$T/ssh" net env "GIT_SSH=$T/ssh/ssh" git clone -q "near:$T/ssh/remote.git" cloned > "$T/said" 2>&1
      same "git clones over ssh" "$(git -C "$(files net)/cloned" rev-parse HEAD 2>&1)" "$(git -C "$T/project" rev-parse HEAD)"
    else
      skip "ssh to a server" "sshd lets this user not in here: $(tail -1 "$T/ssh/log")"
    fi
  else
    skip "ssh to a server" "sshd is not installed (openssh-server)"
  fi
else
  skip "a run with ssh" "ssh is not installed (openssh-client)"
fi
[ -d "$(files net)" ] || "$P" fork base net > /dev/null
run net sh -c 'echo more >> main.c && git commit -qam second && git branch side && git gc -q' > "$T/said" 2>&1
same "git commits in the fork" "$(git -C "$(files net)" log --format=%s 2>&1)" "second
first"
same "git finds its repository sound" "$(git -C "$(files net)" fsck --strict 2>&1 | grep -v dangling)" ""
same "the project is untouched" "$(cd "$T/project" && state)" "$untouched"

echo "== a run with pip"
if python3 -c 'import ensurepip, venv' 2>/dev/null; then
  mkdir "$T/wheels"
  # A wheel is an archive with these files: none is fetched.
  python3 - "$T/wheels" <<'PY'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + "/dayword-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("dayword.py", "word = 'installed'\n")
    info = "dayword-1.0.dist-info/"
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: dayword\nVersion: 1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: day\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "dayword.py,,\n" + "".join(info + name + ",,\n" for name in ("METADATA", "WHEEL", "RECORD")))
PY
  run --read "$T/wheels" python@base sh -c "python3 -m venv env && env/bin/pip install -q --disable-pip-version-check --no-index --find-links '$T/wheels' dayword" > "$T/said" 2>&1
  same "pip installs into an environment in the fork" "$(cat "$(files python)"/env/lib/python3*/site-packages/dayword.py 2>&1 || cat "$T/said")" "word = 'installed'"
  same "the environment's python imports it" "$(run python env/bin/python -c 'import dayword; print(dayword.word)' 2>&1)" installed
else
  skip "a run with pip" "python3 makes no environments (python3-venv)"
fi

echo "== a run with npm"
if has npm; then
  mkdir "$T/package"
  printf '{"name":"dayword","version":"1.0.0","main":"word.js"}' > "$T/package/package.json"
  printf 'module.exports = "installed"\n' > "$T/package/word.js"
  (cd "$T" && npm_config_cache=$T/npm npm pack --silent ./package > /dev/null 2>&1)
  run --read "$T/dayword-1.0.0.tgz" node@base env "npm_config_cache=/tmp/npm" npm install --offline --no-audit --no-fund --silent "$T/dayword-1.0.0.tgz" > "$T/said" 2>&1
  same "npm installs into the fork" "$(cat "$(files node)/node_modules/dayword/word.js" 2>&1)" 'module.exports = "installed"'
  same "node requires it" "$(run node node -p 'require("dayword")' 2>&1)" installed
else
  skip "a run with npm" "npm is not installed"
fi

echo "== a run with make and a sandbox as browsers make one"
if has cc && has make; then
  run work@base make -s > "$T/said" 2>&1
  same "make builds" "$("$(files work)/main" 2>&1)" first
  before=$(stat -c %Y.%y "$(files work)/main" 2>&1)
  run work make -s > /dev/null 2>&1
  same "and builds nothing twice" "$(stat -c %Y.%y "$(files work)/main" 2>&1)" "$before"
  run work sh -c 'sed -i s/first/second/ main.c && make -s' > "$T/said" 2>&1
  same "but what has changed" "$("$(files work)/main" 2>&1)" second
else
  "$P" fork base work > /dev/null
  sed -i s/first/second/ "$(files work)/main.c"
  skip "a run with make" "make or cc is not installed"
fi
# Browsers: a user, a process and a network namespace, then a process that can do nothing but compute and answer.
sandbox='unshare --user --map-current-user --pid --net --ipc --fork sh -c "echo \$\$ > inner-pid; tail -n +3 /proc/net/dev | wc -l > inner-net; echo done > inner"'
if unshare --user --map-current-user --pid --net --ipc --fork true 2>/dev/null; then
  run work sh -c "$sandbox" > "$T/said" 2>&1
  same "a sandbox of user, process and network namespaces runs in a run" "$(cd "$(files work)" && cat inner inner-pid 2>&1 | tr '\n' ' ')$(grep -v '^$' "$T/said")" "done 1 "
  if has bwrap; then
    work=$(files work)
    run work bwrap --unshare-user --unshare-pid --unshare-net --ro-bind / / --dev /dev --bind "$work" "$work" sh -c 'echo bubble > bubble' > "$T/said" 2>&1
    same "bubblewrap makes one too" "$(cat "$work/bubble" 2>&1)" bubble
  else
    skip "bubblewrap" "bwrap is not installed (bubblewrap)"
  fi
else
  skip "sandboxes" "this system lets this user make no namespaces"
fi
same "the project is untouched" "$(cd "$T/project" && state)" "$untouched"

echo "== restores under an editor that watches"
work=$(files work)
echo one > "$work/text"
does "seal" "$P" seal work --tag one
echo two > "$work/text"; echo new > "$work/new"
if has python3; then
  python3 "$scripts/day-watch.py" "$work" "$work/text" > "$T/events" 2>&1 &
  watcher=$!
  for _ in $(seq 100); do grep -q ready "$T/events" && break; sleep 0.05; done
  does "restore" "$P" restore work one
  wait $watcher
  same "a watcher of the folder gets its event" "$(grep -c '^folder' "$T/events" | sed 's/^[1-9].*/told/')" told
  same "a watcher of the file gets its event" "$(grep -c '^file' "$T/events" | sed 's/^[1-9].*/told/')" told
else
  does "restore" "$P" restore work one
  skip "a watcher" "python3 is not installed"
fi
same "the file has its old content" "$(cat "$work/text" 2>&1)" one
same "what was new is gone" "$(ls "$work/new" 2>&1 | grep -c 'No such')" 1
same "unsealed changes are in a separate seal" "$(cat "$M"/forks/work/.snap/*/world/fs/text 2>/dev/null | sort | tr '\n' ' ')" "one two "

echo "== a full disk"
# In a separate mount namespace, which an ordinary user has with a user namespace.
space=(unshare --mount --propagation private)
[ "$(id -u)" = 0 ] || space=(unshare --user --map-root-user --mount --propagation private)
if "${space[@]}" mount -t tmpfs none "$T/home" 2>/dev/null; then
  "${space[@]}" bash "$scripts/day-full.sh" "$P" "$T" > "$T/full" 2>&1 || echo "BAD  the part with a full disk did not end: $(tail -1 "$T/full")" >> "$T/full"
  while IFS= read -r line; do
    case $line in
      ok\ *) good=$((good + 1)); echo "$line" ;;
      BAD\ *) bad=$((bad + 1)); echo "$line" ;;
    esac
  done < "$T/full"
else
  skip "a full disk" "this system lets this user mount no tmpfs"
fi

echo "== a daemon of another store is stopped"
mkdir "$T/other"
PF_STORE=$T/foreign "$P" fixture > /dev/null
does "mount of the other store" env "PF_STORE=$T/foreign" "$P" mount "$T/other"
mounts+=("$T/other")
other=$(python3 -c 'import json,sys; print(json.load(sys.stdin)["pid"])' < "$T/other/.pfimg/status.json" 2>/dev/null || sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$T/other/.pfimg/status.json")
kill -STOP "$other"; stopped+=("$other")
began=$SECONDS
timeout -k 3 20 "$P" status > "$T/status" 2>&1
same "status ends in time" "$([ $((SECONDS - began)) -le 5 ] && echo yes || echo "$((SECONDS - began)) s")" yes
same "and shows the own mount" "$(grep -c "^$M\$" "$T/status")" 1
began=$SECONDS
timeout -k 3 20 "$P" run --quiet work sh -c 'echo second > second' > "$T/said" 2>&1
same "a run ends in time" "$([ $((SECONDS - began)) -le 8 ] && echo yes || echo "$((SECONDS - began)) s")" yes
same "and does its work" "$(cat "$work/second" 2>&1)" second
kill -CONT "$other"; stopped=()
does "umount of the other store" "$P" umount "$T/other"

echo "== evening: the mount ends, and all is there"
does "seal" "$P" seal work --tag evening
does "umount" "$P" umount "$M"
same "nothing is mounted" "$(mountpoint -q "$M"; echo $?)" 32
does "verify finds no damage" "$P" verify
does "export" "$P" export evening "$T/out"
same "the export is what was sealed" "$(cat "$T/out/text" "$T/out/second" 2>&1 | tr '\n' ' ')" "one second "
same "large files too" "$(sha256sum < "$T/out/data.bin" 2>&1)" "$sum"
same "the project is untouched" "$(cd "$T/project" && state)" "$untouched"
same "nothing else was made" "$(ls -A "$HOME" | tr '\n' ' ')" ""

echo
echo "day: $good ok, $bad BAD, $skipped skipped"
[ $bad = 0 ]
