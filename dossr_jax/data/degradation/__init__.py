"""Second-order degradation of HR crops on the device, sampled independently per image."""

from dossr_jax.data.degradation.chain import degrade, missing
from dossr_jax.data.degradation.presets import PRESETS, Preset, choose_presets

__all__ = ["PRESETS", "Preset", "choose_presets", "degrade", "missing"]
