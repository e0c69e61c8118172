"""Models small enough for tests, of the same code as the large ones."""

from collections.abc import Callable

import numpy as np
from flax import nnx

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig, RRDBConfig, UNetConfig, VAEConfig
from dossr_jax.models.dossr import DoSSR

TINY = DoSSRConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(False, True),
        head_dim=8,
        context_dim=8,
        norm_groups=8,
    ),
    vae=VAEConfig(
        z_channels=4,
        base_channels=16,
        channel_mult=(1, 1),
        num_res_blocks=1,
        norm_groups=8,
        patch_size=4,
    ),
    rrdb=RRDBConfig(num_features=8, num_blocks=1, growth=4),
    context_length=2,
)


def randomised(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> nnx.Module:
    """A random module in which every layer, the zero-initialised ones too, contributes.

    Drawing the weights compiles nothing.
    """
    rng = np.random.default_rng(seed)
    module = weights.make_abstract(make)
    shapes = {name: param.shape for name, param in weights.names_and_params(module)}

    def draw(name: str) -> np.ndarray:
        shape = shapes[name]
        if name.endswith("scale"):
            return 1 + 0.1 * rng.normal(size=shape)
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1], initial=1)) * 0.7

    weights.fill(module, {name: draw(name) for name in shapes}, "random")
    return module


def tiny_model(seed: int = 0, config: DoSSRConfig = TINY) -> DoSSR:
    """A whole model of this kind."""
    return randomised(lambda rngs: DoSSR(config, rngs=rngs), seed)
