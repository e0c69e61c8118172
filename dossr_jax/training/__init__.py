"""Training of the four stages: pre-restorer, autoencoder, prior and DoSSR itself.

`stages` has their losses, `params` says what learns, `start` makes the first weights, `state`
lays a run out on the devices, `step` advances it, `loop` runs it.
"""

from dossr_jax.training.start import set_scale_factor
from dossr_jax.training.state import Run, TrainState, abstract_run, start_run, trained_model
from dossr_jax.training.step import make_eval_step, make_train_step

__all__ = [
    "Run",
    "TrainState",
    "abstract_run",
    "make_eval_step",
    "make_train_step",
    "set_scale_factor",
    "start_run",
    "trained_model",
]
