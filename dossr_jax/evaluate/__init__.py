"""Evaluation: metrics by name, LR images from HR images, and a table of what models achieve."""

from dossr_jax.evaluate.lowres import crop_to_multiple, make_lr
from dossr_jax.evaluate.scores import BORDER, METRICS, Metric, convention, score

__all__ = ["BORDER", "METRICS", "Metric", "convention", "crop_to_multiple", "make_lr", "score"]
