"""Processes for code that nobody has read: bubblewrap around them, limits on them, an end to them.

In the sandbox there are the system's programs and libraries and the Python interpreter, read-only, an empty folder in
memory, and nothing else: no network, no home, no environment, no other process.  What runs there is
`gro.rewards.inside`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gro.errors import GroError
from gro.rewards.process import MARK

MOST_OUTPUT = 1 << 20
"""Bytes that a process may print."""
SCRATCH = 64 << 20
"""Bytes of the writable folder."""
_INSIDE = Path(__file__).with_name("inside")
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from inside.boot import main; del sys.path[0]; main()"
_SYSTEM = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/nix/store")


class SandboxError(Exception):
    """The sandbox itself failed, not what runs in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """On one process."""

    seconds: float
    memory: int
    """Bytes of address space."""

    def as_text(self) -> str:
        """For the process itself, which puts them on."""
        return json.dumps({"cpu": math.ceil(self.seconds) + 1, "memory": self.memory})


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A way to start processes."""

    unsafe: bool = False
    """As ordinary processes, which see everything that the trainer sees."""
    packages: bool = False
    """With the packages that are installed beside gro, not with the standard library alone."""

    def command(self, what: str, limits: Limits, descriptors: Sequence[int]) -> list[str]:
        """The command line of `inside.boot`."""
        python = [sys.executable if self.packages else os.path.realpath(sys.executable), "-I", "-B"]
        python += [] if self.packages else ["-S"]
        arguments = [what, limits.as_text(), *map(str, descriptors)]
        if self.unsafe:
            return [*python, "-c", _BOOT, str(_INSIDE.parent), *arguments]
        return [*_bubblewrap(self.packages), *python, "-c", _BOOT, "/gro", *arguments]

    @contextlib.contextmanager
    def run(
        self, what: str, limits: Limits, code: str, descriptors: Sequence[int] = (), stdin: str = ""
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The process while it runs, its output on pipes; killed with all that belongs to it at the end."""
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(_in_memory(text)) for text in (code, stdin)]
            folder = stack.enter_context(tempfile.TemporaryDirectory()) if self.unsafe else None
            process = subprocess.Popen(
                self.command(what, limits, [held[0], *descriptors]),
                stdin=held[1],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[held[0], *descriptors],
                start_new_session=True,
                cwd=folder,
                env={name: os.environ[name] for name in (MARK,) if name in os.environ},  # by which strays are found
            )
            try:
                yield process
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                assert process.stdout is not None
                assert process.stderr is not None
                process.stdout.close()
                process.stderr.close()


def sandbox(*, allow_unsafe: bool = False, packages: bool = False) -> Sandbox:
    """The sandbox of this machine.

    Raises GroError where there is none, unless allow_unsafe.
    """
    if (why := _unusable(packages)) is None:
        return Sandbox(packages=packages)
    if allow_unsafe:
        return Sandbox(unsafe=True, packages=packages)
    raise GroError(
        f"code that a model wrote runs in a sandbox, and there is none on this machine: {why}. Install bubblewrap (the "
        "package bubblewrap of every Linux distribution) and allow user namespaces; or say allow_unsafe: true, and the "
        "code runs as an ordinary process that can read and write what you can"
    )


def listen(
    pipes: Mapping[str, int], until: str, deadline: float, most: int = MOST_OUTPUT
) -> tuple[dict[str, bytes], Literal["time", "output"] | None]:
    """What arrives on the pipes until one of them is closed; and, if it came to that, which limit ended it."""
    heard = {name: bytearray() for name in pipes}
    with selectors.DefaultSelector() as selector:
        for name, descriptor in pipes.items():
            selector.register(descriptor, selectors.EVENT_READ, name)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                data = os.read(key.fd, 1 << 16)
                heard[key.data] += data
                if len(heard[key.data]) > most:
                    return _as_bytes(heard), "output"
                if not data:
                    selector.unregister(key.fd)
                    if key.data == until:
                        return _as_bytes(heard), None
    return _as_bytes(heard), "time"


def _as_bytes(heard: Mapping[str, bytearray]) -> dict[str, bytes]:
    return {name: bytes(data) for name, data in heard.items()}


def _bubblewrap(packages: bool) -> list[str]:
    command = ["bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--hostname", "sandbox"]
    command += ["--ro-bind", "/usr", "/usr"]
    for folder in map(Path, _SYSTEM):
        if folder.is_symlink():
            command += ["--symlink", os.readlink(folder), str(folder)]
        elif folder.exists():
            command += ["--ro-bind", str(folder), str(folder)]
    # Before the interpreter, which may lie there too.
    command += ["--size", str(SCRATCH), "--tmpfs", "/tmp", "--chdir", "/tmp", "--setenv", "HOME", "/tmp"]
    # The interpreter may lie in somebody's home: it alone is shown, at its place.
    for prefix in dict.fromkeys((os.path.realpath(sys.base_prefix), *([sys.prefix] if packages else []))):
        command += ["--ro-bind", prefix, prefix]
    command += ["--ro-bind", str(_INSIDE), "/gro/inside", "--proc", "/proc", "--dev", "/dev"]
    command += ["--setenv", "OMP_NUM_THREADS", "1", "--setenv", "OPENBLAS_NUM_THREADS", "1"]
    # What bubblewrap builds these on is memory without a limit.
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--"]


@functools.cache
def _unusable(packages: bool) -> str | None:
    """Why there is no sandbox here; None where one was just seen to work."""
    if shutil.which("bwrap") is None:
        return "there is no program bwrap"
    python = [sys.executable if packages else os.path.realpath(sys.executable), "-I", "-S", "-c", "print(6 * 7)"]
    try:
        result = subprocess.run([*_bubblewrap(packages), *python], capture_output=True, timeout=20, text=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bwrap cannot be started ({error})"
    if result.returncode == 0 and result.stdout == "42\n":
        return None
    said = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
    return f"bwrap does not work here ({said})"


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[int]:
    """A descriptor from which the text can be read."""
    descriptor = os.memfd_create("gro")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text.encode("utf-8", errors="surrogatepass"))
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
