"""Time of a training step by phase: ``profiler=simple|advanced|pytorch``."""
