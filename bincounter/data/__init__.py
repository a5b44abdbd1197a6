"""From photo bytes to batches: sources, sync, records, splits, the data module."""
