"""Collecting preferences: `gro label`."""
