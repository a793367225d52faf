"""Writes files until the disk is gone, and prints each begun write and each finished fsync; or checks that output.

An fsync that is under way when ext4 or xfs is shut down may report success without being done, natively too: a report
counts if it came before the shutdown.
"""
import os
import random
import sys

mode, root, arg, *before = sys.argv[1:]


def content(number):
    size = random.Random(number).choice([1, 300, 5000, 70_000, 200_000])
    return random.Random(number).randbytes(size)


if mode == "write":
    os.chdir(root)
    rng = random.Random(int(arg))
    # A fork of a sealed fork has files of the same names.
    base = sorted(os.path.normpath(os.path.join(d, f)) for d, _, files in os.walk(".") for f in files)
    while True:
        number = rng.randrange(1 << 40)
        name = rng.choice([rng.choice(base), f"new-{rng.randrange(20)}"])
        print(name, "begun", flush=True)
        target = name if rng.random() < 0.5 else name + ".tmp"
        with open(target, "wb") as file:
            file.write(content(number))
            file.flush()
            os.fsync(file.fileno())
        if target != name:
            os.rename(target, name)
            folder = os.open(os.path.dirname(name) or ".", os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        print(name, number, flush=True)

promised = {}
for line, text in enumerate(open(arg)):
    name, number = text.split()
    if line < int(before[0]) and number != "begun":
        promised[name] = int(number)
    elif line >= int(before[0]) or number == "begun":
        # There is no report yet for the file under way.
        promised.pop(name, None)

if not promised:
    # Not even the fork itself.
    sys.exit()
os.chdir(root)


def difference(name, should):
    """What is found there instead, in short."""
    if not os.path.exists(name):
        return "missing"
    found = open(name, "rb").read()
    if found == should:
        return None
    at = next((i for i, (a, b) in enumerate(zip(found, should)) if a != b), min(len(found), len(should)))
    zeros = "zeros" if not any(found[at:at + 64]) else "other bytes"
    return f"{len(found)} bytes instead of {len(should)}, {zeros} from {at} on"


wrong = [f"{name}: {what}" for name, number in promised.items() if (what := difference(name, content(number)))]
if wrong:
    sys.exit("powercut: not as promised: " + "; ".join(wrong))
