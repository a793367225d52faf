"""Writes files until the disk is gone, saying of each what it begins and what fsync promised; or checks that."""
import os
import random
import sys

mode, root, arg = sys.argv[1:]
os.chdir(root)


def content(number):
    size = random.Random(number).choice([1, 300, 5000, 70_000, 200_000])
    return random.Random(number).randbytes(size)


if mode == "write":
    rng = random.Random(int(arg))
    base = sorted(os.path.join(d, f) for d, _, files in os.walk(".") for f in files)
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
begun = None
for line in open(arg):
    name, number = line.split()
    begun = name if number == "begun" else None
    if number != "begun":
        promised[name] = int(number)
# Of the file that was under way when the power went nothing was said yet.
promised.pop(begun, None)
wrong = [name for name, number in promised.items()
         if not os.path.exists(name) or open(name, "rb").read() != content(number)]
if wrong:
    sys.exit(f"powercut: not as promised: {wrong}")
