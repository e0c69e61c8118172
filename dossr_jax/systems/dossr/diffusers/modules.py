"""Our modules of networks of diffusers, each with the weights' own dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dossr_jax import weights
from dossr_jax.models.controlnet import ControlNet
from dossr_jax.models.text_encoder import TextEncoder
from dossr_jax.models.unet import UNet
from dossr_jax.models.vae import VAE
from dossr_jax.pytorch.state import State
from dossr_jax.systems.dossr.diffusers.networks import Configs
from dossr_jax.weights import Lazy, lazy

_MODULES = {"unet": UNet, "control": ControlNet, "vae": VAE, "text": TextEncoder}


class Networks(NamedTuple):
    """Networks of ours, None for those that are not there, and their configurations.

    They are named as the attributes of dossr_jax.models.dossr.DoSSR.
    """

    unet: UNet | None
    control: ControlNet | None
    vae: VAE | None
    text: TextEncoder | None
    configs: Configs


def build_networks(
    configs: Configs,
    tensors: Mapping[str, Lazy],
    source: str,
    *,
    dtype: Any,
    param_dtype: Any | None = None,
) -> Networks:
    """Modules with the given tensors.

    Args:
      source: where they come from, for messages.
      dtype: compute dtype. param_dtype: dtype of the parameters, that of the tensors if None.
    """
    state = State(source, tensors)
    built: dict[str, Any] = {}
    for name, make in _MODULES.items():
        config, found = getattr(configs, name), state.below(f"{name}.").tensors
        built[name] = None
        if config is not None:
            kinds = {"dtype": dtype, "param_dtype": param_dtype or dtype}
            module = weights.make_abstract(
                lambda rngs, make=make, config=config, kinds=kinds: make(config, **kinds, rngs=rngs)
            )
            if param_dtype is None:
                weights.keep_dtypes(module, found)
            weights.fill(module, found, source)
            built[name] = module
    return Networks(**built, configs=configs)


def tensors_of(networks: Networks) -> dict[str, Lazy]:
    """Parameters by name, with the names of the networks in front."""
    return {
        f"{name}.{path}": lazy(np.asarray(param[...]))
        for name in _MODULES
        if (module := getattr(networks, name)) is not None
        for path, param in weights.names_and_params(module)
    }
