"""`python -m gro.cli`."""

from gro.cli import main

main()
