"""The stages of training, one file each. A stage of your own is a file and a line here."""

from dossr_jax.training.stages.adversarial import AdversarialRRDBStage, AdversarialStage
from dossr_jax.training.stages.base import Stage
from dossr_jax.training.stages.dossr import DoSSRStage
from dossr_jax.training.stages.prior import PriorStage
from dossr_jax.training.stages.resshift import ResShiftStage
from dossr_jax.training.stages.rrdb import RRDBStage
from dossr_jax.training.stages.vae import VAEStage

__all__ = [
    "AdversarialRRDBStage",
    "AdversarialStage",
    "DoSSRStage",
    "PriorStage",
    "RRDBStage",
    "ResShiftStage",
    "Stage",
    "VAEStage",
]
