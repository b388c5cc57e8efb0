"""`python -m torture`: from tests/, with the packages of the project."""

from __future__ import annotations

import argparse
import os
import sys

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # a process with threads cannot be forked
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}

from torture.main import main, options  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    options(parser)
    sys.exit(main(parser.parse_args()))
