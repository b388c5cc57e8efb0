"""`gro inspect`: what happened to every token of a run, as a page."""
