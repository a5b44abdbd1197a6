"""A checkpoint becomes a model archive, and the proof that both score alike."""
