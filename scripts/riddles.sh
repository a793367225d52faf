#!/usr/bin/env bash
# Fails if a line matches a pattern of scripts/riddles.txt (phrases that make a reader stop). Prints these lines: of PATH…, or of
# everything in the repository that is read by people.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- src docs README.md CHANGELOG.md mount-tests benches scripts
patterns=$(grep -v '^#' scripts/riddles.txt)
found=0
grep -rnIiE -e "$patterns" --exclude=riddles.txt --exclude-dir=target "$@" || found=$?
case $found in
1) echo "riddles: none" ;;
0) echo "riddles: rewrite these lines in plain English" >&2 && exit 1 ;;
*) exit "$found" ;;
esac
