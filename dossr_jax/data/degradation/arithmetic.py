"""Sums of arrays; Python's own start at the number 0, which type checkers then allow for."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import jax


def add_up(terms: Iterable[jax.Array]) -> jax.Array:
    """Sum of one or more arrays, from the first to the last."""
    return functools.reduce(operator.add, terms)
