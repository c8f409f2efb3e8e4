#!/usr/bin/env python3
"""Stores into files in a staging directory through shared mappings.

Usage: mmap-writer.py STAGING SEED CYCLES

Prints a JSON line for every cycle: which file, what it held after the last store, whether its name still led to
it then, and whether that content must be found at the end (it was neither overwritten here nor seen in place).
"""

import hashlib
import json
import mmap
import os
import random
import sys
import time

NAMES = 6


def main():
    staging, seed, cycles = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    last = {}
    said = []
    for cycle in range(cycles):
        name = f"mapped-{chance.randrange(NAMES)}.bin"
        path = os.path.join(staging, name)
        descriptor, new = open_or_create(path)
        if new:
            # What it held before was taken: it must be somewhere.
            if name in last:
                last.pop(name)["must_exist"] = True
            content = chance.randbytes(chance.randrange(1, 40_000))
            with open(descriptor, "wb") as file:
                file.write(content)
            record = {
                "digest": hashlib.sha256(content).hexdigest(),
                "taken_while_open": False,
            }
        else:
            record = store(path, descriptor, chance)
        record.update(name=name, cycle=cycle, must_exist=False)
        last[name] = record
        said.append(record)
        time.sleep(chance.random() * 0.02)
    for record in last.values():
        record["must_exist"] = True
    for record in said:
        print(json.dumps(record))


def open_or_create(path):
    """A descriptor, and whether the file is new. ringest may take it, or put it back, between any two calls."""
    while True:
        try:
            return os.open(path, os.O_RDWR), False
        except FileNotFoundError:
            pass
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            pass


def store(path, descriptor, chance):
    """Maps the open file, and stores here and there."""
    opened = os.fstat(descriptor)
    if opened.st_size == 0:
        sys.exit(f"{path} is empty, and only this writer writes it")
    with mmap.mmap(descriptor, opened.st_size) as mapped:
        os.close(descriptor)
        for _ in range(3):
            place = chance.randrange(opened.st_size)
            stored = chance.randbytes(min(8, opened.st_size - place))
            mapped[place : place + len(stored)] = stored
            time.sleep(chance.random() * 0.001)
        digest = hashlib.sha256(mapped).hexdigest()
        try:
            here = os.stat(path, follow_symlinks=False)
            taken = (here.st_dev, here.st_ino) != (opened.st_dev, opened.st_ino)
        except FileNotFoundError:
            taken = True
    return {
        "device": opened.st_dev,
        "inode": opened.st_ino,
        "digest": digest,
        "taken_while_open": taken,
    }


if __name__ == "__main__":
    main()
