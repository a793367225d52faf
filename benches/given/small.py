"""Small files in 50 folders, by one process, so that no other is measured: small.py WHAT FOLDER COUNT"""
import os
import sys

what, root, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = [f"{root}/d{n % 50:02}/f{n:04}" for n in range(count)]
moved = [name + "-moved" for name in names]
if what == "create":
    for n in range(50):
        os.mkdir(f"{root}/d{n:02}")
    for name in names:
        with open(name, "wb") as file:
            file.write(name[len(root):].encode() * 40)
elif what == "stat":
    print(sum(os.stat(name).st_size for name in names))
elif what == "missing":
    print(sum(os.path.exists(name + ".missing") for name in names))
elif what == "read":
    total = 0
    for name in names:
        with open(name, "rb") as file:
            total += len(file.read())
    print(total)
elif what == "list":
    for _ in range(10):
        total = sum(len(os.listdir(f"{root}/d{n:02}")) for n in range(50))
    print(total)
elif what == "rename":
    for name, new in zip(names, moved):
        os.rename(name, new)
elif what == "unlink":
    for name in moved:
        os.unlink(name)
