"""Stock records against photos: the records that are likely wrong, how many checks find, and the ranked list."""
