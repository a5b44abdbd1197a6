"""Photos in S3: fetched whole to a folder here, read by range, and sent."""
