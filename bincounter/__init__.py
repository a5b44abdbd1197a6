"""Count the items in a warehouse bin from one photo."""

__version__ = "0.1.0"
