"""What every algorithm must do, as checks that run on any: the tests run them, and `gro algorithms --verify`."""
