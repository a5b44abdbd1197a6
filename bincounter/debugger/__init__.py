"""Tensors recorded during a training, and rules on them: ``debugger=tensors``."""
