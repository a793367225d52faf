"""Watches a folder and a file by inotify(7), as an editor does, and prints the events.

Usage: day-watch.py FOLDER FILE     ends once both got an event, or after ten seconds
"""

import ctypes
import os
import select
import struct
import sys
import time

IN_ACCESS, IN_OPEN, IN_CLOSE_NOWRITE = 0x1, 0x20, 0x10
ALL = 0xFFF & ~(IN_ACCESS | IN_OPEN | IN_CLOSE_NOWRITE)

libc = ctypes.CDLL(None, use_errno=True)
inotify = libc.inotify_init1(os.O_CLOEXEC)
watched = {}
for what, path in (("folder", sys.argv[1]), ("file", sys.argv[2])):
    number = libc.inotify_add_watch(inotify, os.fsencode(path), ALL)
    if number < 0:
        sys.exit(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")
    watched[number] = what
print("ready", flush=True)
end, told = time.monotonic() + 10, set()
while len(told) < 2:
    if not select.select([inotify], [], [], max(0, end - time.monotonic()))[0]:
        break
    events, at = os.read(inotify, 65536), 0
    while at < len(events):
        number, mask, _, length = struct.unpack_from("iIII", events, at)
        name = events[at + 16 : at + 16 + length].rstrip(b"\0")
        print(watched.get(number, "queue"), hex(mask), name, flush=True)
        told.add(number)
        at += 16 + length
