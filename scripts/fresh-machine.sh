#!/usr/bin/env bash
# Shows that scripts/demo.sh and scripts/test.sh pass on a fresh Debian, as root and as an ordinary user.
# Usage: scripts/fresh-machine.sh [ARGUMENTS for `cargo test`]   (needs root, and the network for Debian's packages)
#
# debootstrap makes a Debian, pivot_root enters it in separate namespaces: a chroot could make no user namespaces. The
# Rust toolchain and the registry of cargo are bound in, the last commit of this checkout is copied in. The ordinary user
# types the line that the scripts name; nothing else is installed.
#
#   FRESH_DIR=DIR        where all of it lies, a few gigabytes; kept [default: a temporary folder, removed at the end]
#   FRESH_SUITE=NAME     Debian's release [default: this machine's, or stable]
#   FRESH_MIRROR=URL     [default: http://deb.debian.org/debian]
#   FRESH_TARGET=DIR     a target folder that is copied in, which saves compiling
set -euo pipefail

# The second half of this script runs in the fresh machine, as the first program there.
inside() {
  local who=$1; shift
  export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 TERM=dumb PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin
  export CARGO_HOME=/opt/cargo CARGO_NET_OFFLINE=true HOME=/root
  cd /src/pfimg
  say() { printf '\n== %s, %s: %s\n' "$(. /etc/os-release; echo "$PRETTY_NAME")" "$who" "$*"; }
  if [ "$who" = root ]; then
    say scripts/demo.sh; scripts/demo.sh
    say "scripts/test.sh $*"; scripts/test.sh "$@"
    return
  fi
  useradd --create-home --shell /bin/bash "$who"
  chown -R "$who:" /src/pfimg /opt/cargo
  # setpriv is part of every Debian; sudo is not, so root types the line.
  as_user() { setpriv --reuid="$who" --regid="$who" --init-groups --inh-caps=-all env HOME="/home/$who" "$@"; }
  local script line
  for script in demo test; do
    local arguments=(); [ $script = test ] && arguments=("$@")
    say "scripts/$script.sh ${arguments[*]}"
    if as_user "scripts/$script.sh" "${arguments[@]}" 2>/tmp/said; then cat /tmp/said >&2; continue; fi
    cat /tmp/said >&2
    line=$(sed -n "s/^  sudo sh -c '\(.*\)'\$/\1/p" /tmp/said)
    [ -n "$line" ] || { echo "scripts/$script.sh failed and names no line to type" >&2; return 1; }
    say "root types: $line"
    sh -c "$line" >/dev/null
    say "scripts/$script.sh ${arguments[*]}"
    as_user "scripts/$script.sh" "${arguments[@]}"
  done
}

# Enters a root: separate namespaces, a /dev with what containers have.
enter() {
  local root=$1
  mount --bind "$root" "$root"
  mkdir -p "$root"/{opt/rust,opt/cargo/registry,src/pfimg/target,old}
  mount --bind "$SYSROOT" "$root/opt/rust"
  mount -o remount,bind,ro "$root/opt/rust"
  # No step writes to it: files that cargo unpacks lie above it.
  mkdir -p "$root.above" "$root.work"
  mount -t overlay overlay -o "lowerdir=$REGISTRY,upperdir=$root.above,workdir=$root.work" "$root/opt/cargo/registry"
  mount --bind "$TARGET" "$root/src/pfimg/target"
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount -t tmpfs -o mode=755 dev "$root/dev"
  local device
  for device in 'null 1 3 666' 'zero 1 5 666' 'full 1 7 666' 'random 1 8 666' 'urandom 1 9 666' 'tty 5 0 666' 'fuse 10 229 600'; do
    set -- $device
    mknod -m "$4" "$root/dev/$1" c "$2" "$3"
  done
  mkdir "$root"/dev/{pts,shm}
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
  mount -t tmpfs -o mode=755 run "$root/run"
  mkdir -m 1777 "$root/run/lock"
  cd "$root"
  pivot_root . old
  cd /
  umount -l /old
}

case ${1-} in
  --inside) shift; inside "$@"; exit ;;
  --enter) root=$2; shift 2; enter "$root"; exec /bin/bash /src/pfimg/scripts/fresh-machine.sh --inside "$@" ;;
esac

cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "fresh-machine: only root can enter another root: sudo $0 $*" >&2; exit 1; }
if ! command -v debootstrap >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
fi
for tool in cargo git debootstrap; do
  command -v $tool >/dev/null || { echo "fresh-machine: $tool is missing" >&2; exit 1; }
done

if [ -n "${FRESH_DIR-}" ]; then
  mkdir -p "$FRESH_DIR"
  dir=$(realpath "$FRESH_DIR")
else
  dir=$(mktemp -d /var/tmp/pfimg-fresh.XXXXXX)
  trap 'rm -rf --one-file-system "$dir"' EXIT
  trap 'exit 130' INT TERM HUP
fi
chmod 755 "$dir"
suite=${FRESH_SUITE:-$(. /etc/os-release; [ "${ID-}" = debian ] && echo "${VERSION_CODENAME-}")}
suite=${suite:-stable}
export SYSROOT REGISTRY TARGET
SYSROOT=$(rustc --print sysroot)
REGISTRY=${CARGO_HOME:-$HOME/.cargo}/registry
TARGET=$dir/target
cargo fetch --locked --quiet

[ -z "$(git status --porcelain)" ] || echo "fresh-machine: what is not committed is not tried" >&2
if ! [ -e "$dir/debian/etc/debian_version" ]; then
  echo "== debootstrap $suite in $dir"
  mkdir -p "$dir/packages"
  debootstrap --variant=minbase --cache-dir="$dir/packages" "$suite" "$dir/debian" "${FRESH_MIRROR:-http://deb.debian.org/debian}" >"$dir/debootstrap.log" \
    || { tail -5 "$dir/debootstrap.log" >&2; exit 1; }
  rm -rf "$dir/packages"
fi
rm -rf --one-file-system "$dir/pfimg"
git clone --quiet --no-hardlinks . "$dir/pfimg"
if ! [ -e "$TARGET" ]; then
  if [ -n "${FRESH_TARGET-}" ]; then cp -a "$FRESH_TARGET" "$TARGET"; else mkdir "$TARGET"; fi
fi

for who in root dev; do
  rm -rf --one-file-system "$dir/$who" "$dir/$who".{above,work}
  cp -a "$dir/debian" "$dir/$who"
  cp -L /etc/resolv.conf "$dir/$who/etc/resolv.conf"
  mkdir -p "$dir/$who/src"
  # With its times: cargo then knows that it compiled this before.
  cp -a "$dir/pfimg" "$dir/$who/src/pfimg"
  unshare --mount --pid --fork --kill-child --uts --ipc --propagation private \
    "$PWD/scripts/fresh-machine.sh" --enter "$dir/$who" "$who" "$@"
  rm -rf --one-file-system "$dir/$who" "$dir/$who".{above,work}
done
echo
echo "fresh-machine: scripts/demo.sh and scripts/test.sh pass on a fresh Debian $suite, as root and as an ordinary user"
