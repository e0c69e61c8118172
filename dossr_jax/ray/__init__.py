"""Restoration on a Ray cluster: folders (`python -m dossr_jax.ray`) and Ray datasets."""

from dossr_jax.ray.dataset import restore_dataset

__all__ = ["restore_dataset"]
