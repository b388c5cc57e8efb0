"""Limits that a process puts on itself before it runs somebody's code; none of them can be lifted again."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
from typing import Any

MOST_FILE = 16 << 20
"""Bytes of one file."""
MOST_OPEN = 64
MOST_PROCESSES = 32
"""Where processes cannot be forbidden altogether."""

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000
"""Bit of the system calls of the 32-bit interface of x86-64, which would go round the list."""

_CLONE3 = 435
_FORBIDDEN = {
    # Audit architecture, clone, and what is forbidden, in the order: (fork, vfork,) socket, memfd_create, shmget,
    # msgget, ptrace, process_vm_readv, process_vm_writev, mount, umount2, pivot_root, unshare, setns, bpf,
    # perf_event_open, userfaultfd, add_key, request_key, keyctl, io_uring_setup, memfd_secret.
    "x86_64": (
        0xC000003E,
        56,
        (57, 58, 41, 319, 29, 68, 101, 310, 311, 165, 166, 155, 272, 308, 321, 298, 323, 248, 249, 250, 425, 447),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (198, 279, 194, 186, 117, 270, 271, 40, 39, 41, 97, 268, 280, 241, 282, 217, 218, 219, 425, 447),
    ),
}
"""New processes, network, memory that is in no process, other processes, and kernel interfaces no answer needs.

Why processes are forbidden rather than counted: RLIMIT_NPROC does not bind root, and a limit on memory is one of each
process.  Threads share their process's."""


def confine(limits: dict[str, Any]) -> None:
    """limits: `cpu` in seconds and `memory` in bytes."""
    for kind, bound in (
        (resource.RLIMIT_CPU, limits["cpu"]),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, MOST_FILE),
        (resource.RLIMIT_NOFILE, MOST_OPEN),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (bound, bound))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # too large a file is an OSError, not the end
    libc = ctypes.CDLL(None, use_errno=True)
    _ask(libc, _PR_SET_PDEATHSIG, signal.SIGKILL, 0)
    if (numbers := _FORBIDDEN.get(platform.machine())) is None:
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
        return
    program = _filter(*numbers)
    held = ctypes.create_string_buffer(program, len(program))
    description = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held)))
    _ask(libc, _PR_SET_NO_NEW_PRIVS, 1, 0)
    _ask(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(description))


def _ask(libc: ctypes.CDLL, option: int, first: int, second: int) -> None:
    arguments = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    if libc.prctl(option, *arguments) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _filter(architecture: int, clone: int, forbidden: tuple[int, ...]) -> bytes:
    """A seccomp filter.  Each instruction: code, jump if true, jump if false (instructions skipped), operand."""
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    number_at, architecture_at, first_argument_at = 0, 4, 16
    rules = [
        (load, 0, 0, architecture_at),
        (equal, 1, 0, architecture),
        (end, 0, 0, _KILL_PROCESS),
        (load, 0, 0, number_at),
        (at_least, 0, 1, _X32),
        (end, 0, 0, _ERRNO | _EPERM),
        # Its flags lie in memory, where a filter cannot look; without it the C library takes clone.
        (equal, 0, 1, _CLONE3),
        (end, 0, 0, _ERRNO | _ENOSYS),
    ]
    for number in forbidden:
        rules += [(equal, 0, 1, number), (end, 0, 0, _ERRNO | _EPERM)]
    rules += [
        (equal, 0, 3, clone),
        (load, 0, 0, first_argument_at),
        (any_bit, 1, 0, _CLONE_THREAD),
        (end, 0, 0, _ERRNO | _EPERM),
        (end, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)
