#!/usr/bin/env python3
"""Runs a program in which io_uring_setup answers EPERM, as in a container that forbids it.

Usage: no-uring.py PROGRAM [ARGUMENT...]

A seccomp filter, inherited by whatever the program starts. x86-64 and aarch64 give io_uring_setup the same
number; the filter does not look at the architecture, since it forbids nothing that matters elsewhere.
"""

import ctypes
import errno
import os
import sys

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K
SYSCALL_NUMBER = 0  # offset in struct seccomp_data
IO_URING_SETUP = 425


class Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("jump_true", ctypes.c_ubyte),
        ("jump_false", ctypes.c_ubyte),
        ("k", ctypes.c_uint32),
    ]


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction))]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    instructions = (Instruction * 4)(
        Instruction(LOAD_WORD, 0, 0, SYSCALL_NUMBER),
        Instruction(JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP),
        Instruction(RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EPERM),
        Instruction(RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    program = Program(len(instructions), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    unused = ctypes.c_ulong(0)
    one = ctypes.c_ulong(1)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, one, unused, unused, unused) != 0:
        sys.exit(f"no-uring: no_new_privs: {os.strerror(ctypes.get_errno())}")
    mode = ctypes.c_ulong(SECCOMP_MODE_FILTER)
    if libc.prctl(PR_SET_SECCOMP, mode, ctypes.byref(program), unused, unused) != 0:
        sys.exit(f"no-uring: seccomp: {os.strerror(ctypes.get_errno())}")
    # The filter must be seen to work: a test that runs with a ring after all would prove nothing.
    libc.syscall(IO_URING_SETUP, 1, None)
    if ctypes.get_errno() != errno.EPERM:
        sys.exit("no-uring: the filter does not hold")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
