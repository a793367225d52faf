"""Drives eight forks of a project at once, by what pfimg prints with --json alone.

Usage: driver.py PFIMG   (in the project's folder). Prints the number of objects that it read.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PFIMG = sys.argv[1]
FORKS = 8
read = []


def objects(args, code):
    """Runs a command, and returns the objects on its stdout. Each has the envelope."""
    done = subprocess.run([PFIMG, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == code, said
    found, at = [], 0
    while at < len(done.stdout):
        whole, at = json.JSONDecoder().raw_decode(done.stdout, at)
        at += 1  # the newline
        found.append(whole)
    for whole in found:
        assert whole["pfimg"] == 1 and whole["command"] == args[0], said
        assert ("result" in whole) != ("error" in whole) and len(whole) == 3, said
    assert found, said
    read.extend(found)
    return found


def result(*args, code=0):
    found = objects([*args, "--json"], code)
    assert len(found) == 1, found
    return found[0]["result"]


def error(*args, code, kind):
    found = objects([*args, "--json"], code)
    assert len(found) == 1, found
    told = found[0]["error"]
    assert told["kind"] == kind and told["message"] and "\n" not in told["message"], told
    return told


def run(*args, code=0):
    return [line["result"] for line in objects(["run", "--json=-", *args], code)]


def drive(number):
    """What one agent's driver does with one fork, start to end."""
    name = f"try-{number}"
    exit_code = number % 2
    started, ended = run(name, "--", "sh", "-c", f"echo {number} > result; rm docs/one.md; exit {exit_code}", code=exit_code)
    assert (started["event"], started["fork"], started["made"]) == ("started", name, True), started
    assert (ended["event"], ended["exit"], ended["added"], ended["deleted"]) == ("ended", exit_code, 1, 1), ended
    assert ended["deletions"] == ["docs/one.md"], ended

    changes = {(entry["status"], entry["path"]) for entry in result("diff", name)["entries"]}
    assert changes == {("A", "result"), ("D", "docs/one.md")}, changes
    sealed = result("seal", name, "--tag", f"result-{number}")
    first = sealed["image"]
    run(name, "--", "sh", "-c", "echo more >> result")
    result("restore", f"{name}@result-{number}")
    shown, = [line for line in run(name, "--", "cat", "result") if line["event"] == "ended"]
    assert shown["exit"] == 0, shown
    assert result("output", name)["text"].strip() == str(number), name
    assert result("show", f"result-{number}")["id"] == first

    error("diff", f"{name}-not", code=5, kind="not-found")
    error("restore", f"{name}@999", code=5, kind="not-found")
    error("seal", name, "--tag", "no/tag", code=2, kind="invalid-input")
    error("tag", first, name, code=6, kind="exists")
    error("run", "--no-such-option", code=2, kind="usage")
    return first


with ThreadPoolExecutor(FORKS) as pool:
    images = list(pool.map(drive, range(1, FORKS + 1)))
assert len(set(images)) == FORKS, "two forks with other content have one image"

rows = {row["name"]: row for row in result("forks")["forks"]}
assert sorted(rows) == [f"try-{number}" for number in range(1, FORKS + 1)], rows
tags = {row["name"]: row["image"] for row in result("tags")["tags"]}
assert [tags[f"result-{number}"] for number in range(1, FORKS + 1)] == images, tags
gone = result("discard", *rows, "--force")
assert sorted(gone["discarded"]) == sorted(rows) and gone["failed"] == [], gone
assert result("forks")["forks"] == []
print(len(read))
