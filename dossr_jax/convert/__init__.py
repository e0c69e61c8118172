"""Conversion between PyTorch's checkpoints and our model files: `python -m dossr_jax.convert`."""
