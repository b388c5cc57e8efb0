"""Shared by all tests: tests/ on the path, no downloads, one thread per worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of child processes; two workers share two cores
sys.path.insert(0, str(Path(__file__).parent))

import torch
from hypothesis import settings

# The same examples each time, so that a machine which checks a change does not find what is not of it; `make slow`
# draws others.  No deadline: a machine may be busy.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

torch.set_num_threads(1)
