"""Reading, checking and tokenising data.  Nothing is imported here, so that checking a recipe stays fast."""
