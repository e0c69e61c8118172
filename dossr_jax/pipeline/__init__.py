"""Restoration for users: `Upscaler` and its `Settings`. The host side of dossr_jax.restore."""

from typing import TYPE_CHECKING, Any

from dossr_jax.pipeline.photos import RestoredPhoto, restore_photos
from dossr_jax.pipeline.settings import DEFAULT_TILE, MODELS, Settings, make_settings

if TYPE_CHECKING:
    from dossr_jax.pipeline.stream import Restored
    from dossr_jax.pipeline.upscaler import DTYPES, Stages, Upscaler

__all__ = [
    "DEFAULT_TILE",
    "DTYPES",
    "MODELS",
    "Restored",
    "RestoredPhoto",
    "Settings",
    "Stages",
    "Upscaler",
    "make_settings",
    "restore_photos",
]


def __getattr__(name: str) -> Any:
    # On demand: options and `--help` need no networks.
    if name not in ("DTYPES", "Restored", "Stages", "Upscaler"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dossr_jax.pipeline import upscaler

    return getattr(upscaler, name)
