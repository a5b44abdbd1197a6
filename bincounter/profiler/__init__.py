"""Where the time of a training step goes: ``profiler=simple|advanced|pytorch``."""
