"""Restoration for users: `Upscaler` and its `Settings`. The host side of dossr_jax.restore."""

from dossr_jax.pipeline.photos import RestoredPhoto, restore_photos
from dossr_jax.pipeline.settings import Settings, make_settings
from dossr_jax.pipeline.upscaler import DEFAULT_TILE, DTYPES, MODELS, Restored, Upscaler

__all__ = [
    "DEFAULT_TILE",
    "DTYPES",
    "MODELS",
    "Restored",
    "RestoredPhoto",
    "Settings",
    "Upscaler",
    "make_settings",
    "restore_photos",
]
