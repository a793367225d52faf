#!/usr/bin/env bash
# Counts the lines of each directory that match a pattern of scripts/riddles.txt (phrases that make a reader stop). Fails if a
# directory has more than scripts/riddles.max allows. `--list [PATH…]` prints the lines, `--lower` writes the present counts.
set -euo pipefail
cd "$(dirname "$0")/.."

lines() {
    grep -rIiE -f scripts/riddles.txt --exclude=riddles.txt --exclude=riddles.max --exclude-dir=target "$@" || [ $? = 1 ]
}

case "${1:-}" in
--list)
    shift
    [ $# -gt 0 ] || mapfile -t places < <(cut -d' ' -f1 scripts/riddles.max)
    lines -n "${@:-${places[@]}}"
    exit
    ;;
--lower | '') ;;
*)
    echo "usage: scripts/riddles.sh [--lower | --list [PATH…]]" >&2
    exit 2
    ;;
esac

failed=0 counts=
while read -r place most; do
    [ -e "$place" ] || { echo "riddles: $place, named in scripts/riddles.max, does not exist" >&2; exit 1; }
    count=$(lines -h "$place" | wc -l)
    printf '%-12s %4d of at most %d\n' "$place" "$count" "$most"
    if [ "$count" -gt "$most" ]; then
        echo "riddles: $place has $((count - most)) more than before; list them with scripts/riddles.sh --list $place" >&2
        failed=1
    fi
    counts+="$place $((count < most ? count : most))"$'\n'
done <scripts/riddles.max
[ "${1:-}" != --lower ] || printf %s "$counts" >scripts/riddles.max
exit $failed
