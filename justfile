# Recipes for daily work. Each one calls cargo or a script, so they also work without just.

# Lists the recipes.
default:
    @just --list

# Builds pfimg.
build:
    cargo build

# Runs pfimg with arguments: `just pfimg status`.
pfimg *arguments:
    cargo run --quiet -- {{arguments}}

# Makes a store, mounts it, makes forks and seals, and removes everything.
demo:
    scripts/demo.sh

# Runs everything that has to pass before a merge.
gate:
    .ci/run

# Runs what needs no mount: format, lints, plain English, the documents, the imports between rooms.
check:
    cargo fmt --all --check
    cargo clippy --all-targets -- -D warnings
    scripts/riddles.sh
    cargo test --test engine -- documents:: written:: arrows::

# Formats the code.
fmt:
    cargo fmt --all

# Runs all tests, or those whose name has a word: `just test forks::posix`.
test *arguments:
    scripts/test.sh {{arguments}}

# Runs the unit tests, which need no /dev/fuse.
unit *arguments:
    cargo test --lib {{arguments}}

# Runs the tests of forks, seals and layers, which need no /dev/fuse.
engine *arguments:
    cargo test --test engine {{arguments}}

# Runs tests of mounts.
mount *arguments:
    cargo test --test mount {{arguments}}

# Runs tests of commands.
cli *arguments:
    cargo test --test cli {{arguments}}

# Runs the long tests: killed daemons, full disks, large stores.
long *arguments:
    cargo test --test long {{arguments}}

# Builds the docs of the library and fails for a broken link.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# Lists the phrases that make a reader stop, in a path.
riddles *paths:
    scripts/riddles.sh {{paths}}

# Compares workloads with a native directory and other filesystems.
bench *arguments:
    cargo bench --bench workloads -- {{arguments}}

# Measures seals, import, export and large files.
bench-keeping *arguments:
    cargo bench --bench keeping -- {{arguments}}

# Runs libFuzzer on every parser, some seconds each (nightly toolchain).
fuzz seconds="30":
    scripts/fuzz.sh {{seconds}}

# Searches interleavings of threads.
interleavings schedules="20000":
    scripts/interleavings.sh {{schedules}}

# Shuts the store's filesystem down under the daemon (root).
powercut rounds="50":
    scripts/powercut.sh {{rounds}}

# Runs a day of work and judges the disk after it.
day:
    scripts/day.sh

# Runs demo and tests on a fresh Debian (root).
fresh-machine *arguments:
    scripts/fresh-machine.sh {{arguments}}

# Checks the dependencies: vulnerabilities, licences, sources.
deny:
    scripts/deny.sh
