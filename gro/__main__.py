"""`python -m gro`, as torchrun starts it."""

from gro.cli import main

if __name__ == "__main__":
    main()
