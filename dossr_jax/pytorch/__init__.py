"""Checkpoints of PyTorch: their files, the names in them, and the same tensors under our names."""
