"""The orchestrator's end of a worker process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from common import ROOT, Job

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "16000000000"}
"""Freed memory is kept and not given back to the system, for both sides: a seventh less time for TRL, a twentieth for
gro, and a tenth more memory for both."""


class Worker:
    """One side of the comparison: a process that does one training step whenever it is told to.

    >>> with Worker("gro", python, "ours.py", job, log) as worker:
    ...     worker.step()["seconds"]
    ...     worker.finish()
    """

    def __init__(self, name: str, python: Path, script: str, job: Job, log: Path) -> None:
        """Starts the process and waits until it has loaded everything; raises RuntimeError if it ends before."""
        self.name, self.job, self._log = name, job, log
        self.steps: list[dict[str, Any]] = []
        """What it reported of each step: `seconds`, `cpu_seconds`, `loss`, `grad_norm`, …"""
        self.peak_rss = 0
        """Bytes, at the end."""
        if not python.exists():
            raise RuntimeError(f"{name} needs the environment {python.parents[1]}; `make bench` creates it")
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
        threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                [python, ROOT / "bench" / script, job.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | MALLOC | quiet | threads,
                cwd=ROOT,
            )
        try:
            self.facts = self._receive("ready")
        except BaseException:
            self.close()
            raise

    def step(self) -> dict[str, Any]:
        """One training step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.steps.append(self._receive("step"))
        return self.steps[-1]

    def finish(self) -> None:
        """Waits for its last message and its end."""
        self.peak_rss = self._receive("done")["peak_rss"]
        self._process.wait(timeout=60)

    def close(self) -> None:
        """Ends the process whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text().splitlines()[-15:])
            raise RuntimeError(f"{self.name} ended early; the end of {self._log}:\n{tail}")
        message = json.loads(line)
        if message.pop("event") != event:
            raise RuntimeError(f"{self.name} sent {message} where {event!r} was expected")
        return message
