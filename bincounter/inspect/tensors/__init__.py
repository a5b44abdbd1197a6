"""What happens inside a model while it is trained: statistics of its tensors, recorded every so many steps."""
