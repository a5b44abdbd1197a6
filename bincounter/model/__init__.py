"""Batches of photos -> distributions over counts, and the numbers that score them."""
