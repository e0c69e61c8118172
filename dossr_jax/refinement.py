"""The refiner after the colour fix; not part of the published method (docs/mini-notes.md)."""

from __future__ import annotations

import functools
from collections.abc import Callable

from jax import Array
from jax.typing import ArrayLike

from dossr_jax.image import detail_fix
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.rrdbnet import UPSCALE


def refine_images(
    model: DoSSR,
    lr: Array,
    pre: Array,
    image: Array,
    size: Array,
    detail: ArrayLike,
    apply: Callable[..., Array],
) -> Array:
    """Images (b, H, W, 3) refined in their two finest bands; the rest is the pre-restored image's.

    lr, pre, size and apply are those of dossr_jax.method.restore_images; detail: see
    models.refiner. A model without a refiner returns the images.
    """
    if model.refiner is None:
        return image
    unit = model.config.vae.downscale
    refiner = functools.partial(model.refiner, detail=detail)
    refined = apply(refiner, [lr, pre, image], [unit // UPSCALE, unit, unit], unit, 3)
    return detail_fix(refined, pre, UPSCALE * size)
