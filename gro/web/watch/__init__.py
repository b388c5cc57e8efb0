"""`gro watch`: runs while they are trained, as a page."""
