"""Evaluation: metrics by name, LR images from HR images, and a table of what models achieve."""

from dossr_jax.evaluate.scores import BORDER, METRICS, Metric, convention, score
from dossr_jax.evaluate.sets import crop_to_multiple, make_lr

__all__ = ["BORDER", "METRICS", "Metric", "convention", "crop_to_multiple", "make_lr", "score"]
