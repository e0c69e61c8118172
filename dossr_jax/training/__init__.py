"""Training of a model, stage by stage.

`stages` has one file per stage: what learns, its loss and validation. `initialize` makes the first
weights, `state` lays a run out on the devices, `step` advances it, `loop` runs it, `cli` is the
command. None but `stages` knows what a stage does.
"""

from dossr_jax.training import stages  # the stages register themselves
from dossr_jax.training.state import (
    TrainingRun,
    TrainState,
    abstract_run,
    start_run,
    trained_model,
)
from dossr_jax.training.step import make_eval_step, make_train_step

__all__ = [
    "TrainState",
    "TrainingRun",
    "abstract_run",
    "make_eval_step",
    "make_train_step",
    "stages",
    "start_run",
    "trained_model",
]
