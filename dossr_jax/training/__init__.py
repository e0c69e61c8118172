"""Training of a model, stage by stage.

`stages` has one file per stage: what learns, its loss and validation. `params` makes the first
weights, `state` lays a run out on the devices, `step` advances it, `loop` runs it, `cli` is the
command. Only `stages` knows what a stage does.
"""

from typing import TYPE_CHECKING, Any

from dossr_jax.training import stages  # they register themselves

if TYPE_CHECKING:
    from dossr_jax.training.loop import fit

__all__ = ["fit", "stages"]


def __getattr__(name: str) -> Any:
    # On demand: listing configurations needs neither Grain nor Optax.
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dossr_jax.training.loop import fit

    return fit
