"""One run: fit, checkpoint, resume, score."""
