"""One file and what programs do to it: data.py WHAT FOLDER AMOUNT, the amount in MiB or in how often."""
import mmap
import os
import random
import sqlite3
import sys

what, root, amount = sys.argv[1], sys.argv[2], int(sys.argv[3])
path, rng, MIB = root + "/file", random.Random(1), 1 << 20
block = rng.randbytes(MIB)
pages = os.path.getsize(path) // 4096 if os.path.exists(path) else 0
if what == "write":
    with open(path, "wb", buffering=0) as file:
        for n in range(amount):
            file.write(block)
elif what == "read":
    buffer, total = bytearray(MIB), 0
    with open(path, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            total += n + buffer[7]
    print(total)
elif what == "random-read":
    total = 0
    with open(path, "rb", buffering=0) as file:
        for _ in range(amount):
            total += sum(os.pread(file.fileno(), 4096, rng.randrange(pages) * 4096)[:4])
    print(total)
elif what == "random-write":
    with open(path, "r+b", buffering=0) as file:
        for n in range(amount):
            os.pwrite(file.fileno(), block[n : n + 4096], rng.randrange(pages) * 4096)
elif what == "mapped-read":
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m:
        print(sum(m[at] for at in range(0, len(m), 4096)))
elif what == "mapped-write":
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as m:
        for _ in range(amount):
            at = rng.randrange(pages) * 4096
            m[at] = (m[at] + 1) % 256
elif what == "append":
    with open(path, "ab", buffering=0) as file:
        for n in range(amount):
            file.write(block[n : n + 100])
elif what == "sqlite":
    # `delete` is the default journal, a file that each commit makes and deletes; `wal` is a log that stays.
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode=" + sys.argv[5])
    db.execute("pragma synchronous=" + sys.argv[4])
    db.execute("create table t(a)")
    for n in range(amount):
        db.execute("insert into t values(?)", (n,))
    print(db.execute("select count(*), sum(a) from t").fetchone())
