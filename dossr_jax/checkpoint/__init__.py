"""Checkpoints of a run's folder, over Orbax: saved in the background, completely or not at all.

OUTPUT/checkpoints/STEP holds the items `state` (all of the training state but what is frozen),
`config`, and `data` and `log` (JSON: where the data stream and the log are). OUTPUT/frozen
holds the frozen parameters, written once. Arrays restore onto any mesh. Only data is stored,
never code.
"""

from dossr_jax.checkpoint.files import damage
from dossr_jax.checkpoint.folder import Checkpoints, Saved
from dossr_jax.checkpoint.settings import differences

__all__ = ["Checkpoints", "Saved", "damage", "differences"]
