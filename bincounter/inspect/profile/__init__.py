"""Where the time of a run goes, and what to do about it."""
