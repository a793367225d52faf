# Sourced by demo.sh and test.sh: makes sure that the programs they use are installed. This is the only list of packages.
# Usage: . scripts/setup.sh; setup demo|test
# As root it installs what is missing (Debian, Ubuntu); as an ordinary user it names the line to type and ends with 1.

# tool:package, for building and mounting
build_tools=(cc:gcc fusermount3:fuse3)
# and for the tests
test_tools=(setpriv:util-linux git:git rsync:rsync sqlite3:sqlite3 make:make python3:python3 node:nodejs npm:npm ssh:openssh-client bwrap:bubblewrap)

setup() {
  local missing=() tool line fuse
  local tools=("${build_tools[@]}")
  [ "$1" = test ] && tools+=("${test_tools[@]}")
  for tool in "${tools[@]}"; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
  done
  # Debian has the header files of the C library, and the pip of a new environment, in separate packages.
  [ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
  if [ "$1" = test ] && ! python3 -c 'import ensurepip' 2>/dev/null; then missing+=(python3-venv); fi

  # udev makes the device open to all; where no udev runs, as in containers, root has to.
  fuse=
  if [ -e /dev/fuse ] && ! [ "$(stat -c %a /dev/fuse)" = 666 ]; then
    if [ "$(id -u)" = 0 ] || ! [ -r /dev/fuse ] || ! [ -w /dev/fuse ]; then fuse='chmod 0666 /dev/fuse'; fi
  fi

  if [ ${#missing[@]} -gt 0 ]; then
    line="apt-get update && apt-get install -y ${missing[*]}"
  else
    line=
  fi
  if [ "$(id -u)" = 0 ]; then
    if [ -n "$line" ]; then
      echo "setup: installs ${missing[*]}" >&2
      command -v apt-get >/dev/null || { echo "setup: apt-get is missing; install with your system's packages: ${missing[*]}" >&2; exit 1; }
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
    [ -z "$fuse" ] || $fuse
  elif [ -n "$line$fuse" ]; then
    [ -n "$line" ] && [ -n "$fuse" ] && line="$line && "
    echo "setup: something is missing that only root can install. Type this, then start again:" >&2
    echo "  sudo sh -c '$line$fuse'" >&2
    exit 1
  fi

  [ -e /dev/fuse ] || echo "setup: /dev/fuse is missing: load the module (modprobe fuse), or give the container the device" >&2
  if ! command -v cargo >/dev/null; then
    [ -x "$HOME/.cargo/bin/cargo" ] && PATH=$HOME/.cargo/bin:$PATH
  fi
  command -v cargo >/dev/null || { echo "setup: cargo is missing: install Rust 1.95 or newer (https://rustup.rs), then start again" >&2; exit 1; }
}
