"""Training of a model, stage by stage.

`stages` has one file per stage: what learns, its loss and validation. `params` makes the first
weights, `state` lays a run out on the devices, `step` advances it, `loop` runs it, `cli` is the
command. Only `stages` knows what a stage does.
"""

from dossr_jax.training import stages  # they register themselves

__all__ = ["stages"]
