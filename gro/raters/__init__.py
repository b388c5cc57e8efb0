"""People, real or simulated, whose ratings are the rewards of a run."""
