"""Watching a data set and a run: reports, plots, comparisons, and where a model looked."""
