"""DoSSR in JAX: diffusion super-resolution with domain-shift SDEs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dossr_jax.errors import UserError
    from dossr_jax.pipeline import Restored, Settings, Upscaler

__version__ = "0.1.0"
__all__ = ["Restored", "Settings", "Upscaler", "UserError"]


def __getattr__(name: str) -> Any:
    # On demand: data workers and `--help` need none of the networks.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dossr_jax import errors, pipeline

    return getattr(errors if name == "UserError" else pipeline, name)
