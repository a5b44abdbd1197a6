"""A data set, split, as bin folders or shards, in a folder or a bucket: what ``python -m bincounter prepare`` does."""
