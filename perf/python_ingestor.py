#!/usr/bin/env python3
"""What a team would write first: threads that hash, a move, a row in SQLite. With its syncs, so that it keeps what it says.

Usage: python_ingestor.py STAGING WAREHOUSE STATE
"""

import hashlib
import os
import queue
import sqlite3
import sys
import threading

THREADS = 4


def sync_directory(path):
    directory = os.open(path, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def main():
    staging, warehouse, state = sys.argv[1:]
    os.makedirs(warehouse, exist_ok=True)
    os.makedirs(state, exist_ok=True)
    waiting = queue.SimpleQueue()
    hashed = queue.SimpleQueue()
    names = sorted(os.listdir(staging))
    for name in names:
        waiting.put(name)
    for _ in range(THREADS):
        waiting.put(None)

    def work():
        while (name := waiting.get()) is not None:
            with open(os.path.join(staging, name), "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            hashed.put((name, digest))

    for _ in range(THREADS):
        threading.Thread(target=work, daemon=True).start()

    ledger = sqlite3.connect(os.path.join(state, "ledger.sqlite"))
    ledger.execute("PRAGMA journal_mode=WAL")
    ledger.execute("PRAGMA synchronous=FULL")
    ledger.execute("CREATE TABLE IF NOT EXISTS files (digest TEXT PRIMARY KEY, name TEXT, done INTEGER)")
    for _ in names:
        name, digest = hashed.get()
        known = ledger.execute("SELECT 1 FROM files WHERE digest = ? AND done", (digest,)).fetchone()
        if known:
            os.unlink(os.path.join(staging, name))
        else:
            ledger.execute("INSERT OR REPLACE INTO files VALUES (?, ?, 0)", (digest, name))
            ledger.commit()
            os.rename(os.path.join(staging, name), os.path.join(warehouse, name))
            sync_directory(warehouse)
            sync_directory(staging)
            ledger.execute("UPDATE files SET done = 1 WHERE digest = ?", (digest,))
            ledger.commit()
    ledger.close()


main()
