"""Rendered demo bins: photos of bins with exactly known counts, for people who have no data and no network.

Each photo is a fresh scene - boxes, books, bottles, cans and bags, some of them alike, behind elastic bands - drawn
from (seed, index). What tells the count is the items alone: the filled area is drawn before the number of items that
share it, empty bins hold packing paper, and at least a third of every item can be seen.
"""
