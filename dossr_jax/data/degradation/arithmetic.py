"""Sums and products of arrays, where Python's and JAX's own have a catch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def add_up(terms: Iterable[jax.Array]) -> jax.Array:
    """Sum of one or more arrays from first to last; `sum` would start at an integer 0."""
    return functools.reduce(operator.add, terms)


def product(subscripts: str, *factors: jax.Array | np.ndarray) -> jax.Array:
    """`jnp.einsum` in float32 throughout: accelerators would round the factors otherwise."""
    return jnp.einsum(subscripts, *factors, precision=lax.Precision.HIGHEST)
