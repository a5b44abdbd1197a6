"""Rendered demo bins: photos with exactly known counts, which need neither data nor a network.

Each photo is a fresh scene - boxes, books, bottles, cans and bags, some of them alike, behind elastic bands - drawn
from (seed, index). Only the items reveal the count: the filled area is drawn before the number of items that
share it, empty bins hold packing paper, and at least three fifths of every item can be seen.
"""
