"""Checkpoints in a run's folder, by Orbax: saved in the background, completely or not at all.

OUTPUT/checkpoints/STEP holds the items `state` (the training state without frozen parameters),
`config`, `data` and `log` (JSON: positions of the data stream and of the log). OUTPUT/frozen holds
the frozen parameters, written once. Arrays restore onto any mesh. Only data is stored, never code.
"""

from dossr_jax.checkpoint.files import damage
from dossr_jax.checkpoint.folder import Checkpoints
from dossr_jax.checkpoint.managed import Managed
from dossr_jax.checkpoint.settings import Saved, differences

__all__ = ["Checkpoints", "Managed", "Saved", "damage", "differences"]
