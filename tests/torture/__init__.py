"""Whole jobs, killed and refused the disk at every place that can be found, and compared to the bit with quiet ones.

    make torture                     from tests/: python -m torture --help

A job is a real process: forked from one that has imported everything, so that an attempt takes a second, and killed
with SIGKILL.  The same command is given again and again until it ends with 0.  Then weights, optimizer, exported
models, and everything in run.db are compared with those of a run that nobody disturbed.

    cases.py      the jobs: one for every trainer, and one for everything that a run carries from step to step
    attempts.py   one command in one process, watched, and killed or refused on the way
    compare.py    what differs between two runs
    trials.py     random kills; kills, full disks and broken disks at every operation
"""
